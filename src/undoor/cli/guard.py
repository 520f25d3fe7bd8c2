"""The commands ``undoor guard fit`` and ``undoor guard check``."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from undoor.cli.options import FORMATS, TEST_SPLIT, Model, ModelOptions, Overwrite, ReadingOptions, Seed
from undoor.cli.signature import with_options
from undoor.errors import UndoorError

guard = typer.Typer(
    name="guard",
    help="Reject suspicious queries while a network is in use.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@guard.command()
@with_options
def fit(
    model: Model,
    *,
    data: Annotated[str, Option(help=f"Clean images that the network was not trained on: {FORMATS}.")],
    out: Annotated[Path, Option(help="The .safetensors file for the guard.")],
    layer: Annotated[
        list[str] | None,
        Option(help="Watch the input of this layer. May be repeated. By default the last three layers with weights."),
    ] = None,
    statistic: Annotated[
        str,
        Option(help="What is measured: density (of the decided class) or kl (divergence over the other classes)."),
    ] = "density",
    false_positive_rate: Annotated[float, Option(help="Share of clean queries that may be rejected.")] = 0.05,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    network: ModelOptions,
    reading: ReadingOptions = TEST_SPLIT,
) -> None:
    """Fit a guard for MODEL on clean images.

    Example: undoor guard fit model.safetensors --data photos-test --out guard.safetensors
    """
    from undoor.cli import terminal
    from undoor.defenses.test_time import Ada
    from undoor.defenses.test_time.guard import refuse_guard
    from undoor.networks.weights import require_same_classes

    defense = Ada(
        layers=tuple(layer) if layer else None, false_positive_rate=false_positive_rate, seed=seed,
        statistic=statistic,  # type: ignore[arg-type] # Ada checks it
    )  # fmt: skip
    refuse_guard(out, overwrite)
    # The classifier of a network without a linear layer needs the name of a layer for its features.
    classifier, class_names = network.load(model, layer[-1] if layer else None)
    clean = reading.read(data)
    require_same_classes(class_names, clean.class_names, model)
    with terminal.stages("features") as bar:
        fitted = defense.fit(classifier, clean, on_batch=bar.counting("features"), on_layer=bar.counting("layers"))
    fitted.write(out, overwrite=overwrite)
    terminal.print_result({**fitted.summary(), "guard": out})
    terminal.print_guard(fitted)
    terminal.print_line(f"guard: {out}")


@guard.command()
@with_options
def check(
    model: Model,
    *,
    guard: Annotated[Path, Option(help="The file that undoor guard fit wrote for MODEL.")],
    data: Annotated[
        str | None,
        Option(help=f"The queries: {FORMATS}. By default standard input gives the paths of image files, one per line."),
    ] = None,
    out: Annotated[Path | None, Option(help="A .parquet file for all results; a report (.html) beside it.")] = None,
    overwrite: Overwrite = False,
    exit_zero: Annotated[bool, Option("--exit-zero", help="Exit with 0 even if a query is rejected.")] = False,
    network: ModelOptions,
    reading: ReadingOptions = TEST_SPLIT,
) -> None:
    """Check queries to MODEL with its guard.

    Exits with 1 if a query is rejected and 0 if none is. Images from standard input are resized to the size of those
    that the guard was fitted on.

    Example: undoor guard check model.safetensors --guard guard.safetensors --data queries
    """
    from undoor.cli import terminal
    from undoor.data.readers.images import decode_files
    from undoor.defenses.test_time import Guard, classifier_layer
    from undoor.report.guard import write_checked

    if out is not None and out.suffix != ".parquet":
        raise UndoorError(f"{out} does not end in .parquet; choose a name for --out that does")
    for file in () if out is None else (out, out.with_suffix(".html")):
        if file.exists() and not overwrite:
            raise UndoorError(f"{file} exists already; choose another --out or add --overwrite")
    classifier, _ = network.load(model, classifier_layer(guard))
    fitted = Guard.read(guard, classifier)
    if data is None:
        images, ids = decode_files(_read_paths(), fitted.shape, skip_broken=reading.skip_broken)
    else:
        queries = reading.read(data)
        images, ids = queries.images, queries.ids
    with terminal.counting_bar("check") as on_batch:
        checked = fitted.check(images, on_batch=on_batch)
    table = checked.table(ids, fitted.class_names)
    if out is not None:
        write_checked(fitted, checked, images, ids, out)
    rejected = int(checked.rejected.sum())
    terminal.print_result(
        {"rejected": rejected, "threshold": fitted.threshold, "queries": table.to_dict("records"), "out": out}
    )
    terminal.print_checked(table, fitted.threshold)
    if out is not None:
        terminal.print_line(f"report: {out.with_suffix('.html')}")
    if rejected and not exit_zero:
        raise typer.Exit(1)


def _read_paths() -> list[Path]:
    """Return the paths on standard input, one per line."""
    if sys.stdin.isatty():
        raise UndoorError("no queries are given; add --data, or write paths of image files to standard input")
    paths = [Path(line.rstrip("\r\n")) for line in sys.stdin if line.strip()]
    if not paths:
        raise UndoorError("standard input names no image; write one path per line, or add --data")
    return paths

"""The commands ``undoor guard fit`` and ``undoor guard check``."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from undoor.cli.options import (
    DATA,
    ImageColumn,
    ImageSize,
    LabelColumn,
    Mean,
    Network,
    Overwrite,
    Seed,
    SkipBroken,
    Split,
    Std,
    numbers,
    read_data,
)
from undoor.cli.output import with_output_options
from undoor.errors import UndoorError

guard = typer.Typer(
    name="guard",
    help="Say at test time which queries to refuse.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Model = Annotated[Path, typer.Argument(help="the network's weights", metavar="MODEL")]


@guard.command()
@with_output_options
def fit(
    model: Model,
    data: Annotated[str, typer.Option(help=f"clean images, not those the network was trained on: {DATA}")],
    out: Annotated[Path, typer.Option(help="the file for the guard, .safetensors")],
    network: Network = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(help="a layer whose input is watched; may be repeated; by default the last three with weights"),
    ] = None,
    mean: Mean = None,
    std: Std = None,
    statistic: Annotated[
        str, typer.Option(help="density at the decision, or kl, the divergence over the other classes")
    ] = "density",
    false_positive_rate: Annotated[float, typer.Option(help="share of clean queries that may be refused")] = 0.05,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    split: Split = "test",
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    image_size: ImageSize = None,
    skip_broken: SkipBroken = False,
) -> None:
    """Fit a guard for MODEL on clean images.

    Example: undoor guard fit model.safetensors --data photos-test --out guard.safetensors
    """
    from undoor.cli import terminal
    from undoor.defenses.test_time import Ada
    from undoor.defenses.test_time.guard import refuse_guard
    from undoor.networks.classifier import Classifier
    from undoor.networks.weights import load_model, require_same_classes

    defense = Ada(
        layers=tuple(layer) if layer else None, false_positive_rate=false_positive_rate, seed=seed,
        statistic=statistic,  # type: ignore[arg-type] # which it checks
    )  # fmt: skip
    scaling: dict[str, Any] = {"mean": numbers(mean, "--mean"), "std": numbers(std, "--std")}
    refuse_guard(out, overwrite)
    loaded, class_names = load_model(model, network)
    # A network without a linear layer has to be told which of its layers yields the features.
    classifier = Classifier(loaded, layer=layer[-1] if layer else None, **scaling)
    clean = read_data(
        data, split=split, image_column=image_column, label_column=label_column,
        image_size=image_size, skip_broken=skip_broken,
    )  # fmt: skip
    require_same_classes(class_names, clean.class_names, model)
    with terminal.stages("features") as bar:
        fitted = defense.fit(classifier, clean, on_batch=bar.counting("features"), on_layer=bar.counting("layers"))
    fitted.write(out, overwrite=overwrite)
    terminal.print_result({**fitted.summary(), "guard": out})
    terminal.print_guard(fitted)
    terminal.out.print(f"guard: {out}", soft_wrap=True, markup=False)


@guard.command()
@with_output_options
def check(
    model: Model,
    guard: Annotated[Path, typer.Option(help="of MODEL, as undoor guard fit wrote it")],
    data: Annotated[
        str | None,
        typer.Option(help=f"the queries: {DATA}; by default paths of image files on standard input, one a line"),
    ] = None,
    network: Network = None,
    mean: Mean = None,
    std: Std = None,
    out: Annotated[
        Path | None,
        typer.Option(help="a .parquet file for all that is found of every query; a report, .html, beside it"),
    ] = None,
    overwrite: Overwrite = False,
    exit_zero: Annotated[bool, typer.Option("--exit-zero", help="end with 0 although a query is rejected")] = False,
    split: Split = "test",
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    image_size: ImageSize = None,
    skip_broken: SkipBroken = False,
) -> None:
    """Check queries. Ends with 1 if one is rejected, 0 if none is.

    Images from standard input are brought to the size that the guard was fitted on.

    Example: undoor guard check model.safetensors --guard guard.safetensors --data queries
    """
    from undoor.cli import terminal
    from undoor.data.readers.images import decode_files
    from undoor.defenses.test_time import Guard, classifier_layer
    from undoor.networks.classifier import Classifier
    from undoor.networks.weights import load_model
    from undoor.report import write_checked

    if out is not None and out.suffix != ".parquet":
        raise UndoorError(f"{out} should end in .parquet; choose such a name for --out")
    for file in () if out is None else (out, out.with_suffix(".html")):
        if file.exists() and not overwrite:
            raise UndoorError(f"{file} exists already; choose another --out or add --overwrite")
    scaling: dict[str, Any] = {"mean": numbers(mean, "--mean"), "std": numbers(std, "--std")}
    classifier = Classifier(load_model(model, network)[0], layer=classifier_layer(guard), **scaling)
    fitted = Guard.read(guard, classifier)
    if data is None:
        images, ids = decode_files(_paths_given(), fitted.shape, skip_broken=skip_broken)
    else:
        queries = read_data(
            data, split=split, image_column=image_column, label_column=label_column,
            image_size=image_size, skip_broken=skip_broken,
        )  # fmt: skip
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
        terminal.out.print(f"report: {out.with_suffix('.html')}", soft_wrap=True, markup=False)
    if checked.rejected.any() and not exit_zero:
        raise typer.Exit(1)


def _paths_given() -> list[Path]:
    if sys.stdin.isatty():
        raise UndoorError("no queries are given; add --data, or write paths of image files to standard input")
    paths = [Path(line.rstrip("\r\n")) for line in sys.stdin if line.strip()]
    if not paths:
        raise UndoorError("standard input names no image; write one path a line, or add --data")
    return paths

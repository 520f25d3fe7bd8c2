"""The command line: parse, call, print.

Nothing heavy is imported at the top: ``undoor --help`` answers at once.
"""

import sys
import traceback
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from undoor._version import __version__
from undoor.errors import UndoorError, UndoorNotice

app = typer.Typer(
    name="undoor",
    help="Find and remove backdoor poisoning from the training set of an image classifier.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

DATA = "a folder with a sub-folder per class, .parquet, .npz, CIFAR batches, hub:NAME, or digits"

Data = Annotated[str, typer.Argument(help=DATA, metavar="DATA")]
Out = Annotated[Path, typer.Option(help="the new folder")]
Seed = Annotated[int, typer.Option(min=0, help="of everything that is random")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace what an earlier run wrote there")]
Preset = Annotated[
    str, typer.Option(help="fast (a short schedule for a CPU), paper (200 epochs) or large-batch (for a GPU)")
]
Epochs = Annotated[int | None, typer.Option(min=1, help="instead of the preset's number")]
LearningRate = Annotated[float | None, typer.Option(help="instead of the preset's highest")]
Network = Annotated[str | None, typer.Option(help="resnet20, small-cnn or package.module:factory")]
Split = Annotated[str, typer.Option(help="the part of DATA to read, where it has several")]
ImageColumn = Annotated[str | None, typer.Option(help="of Parquet and hub data")]
LabelColumn = Annotated[str | None, typer.Option(help="of Parquet and hub data")]
ImageSize = Annotated[int | None, typer.Option(min=1, help="resize all images to this height and width")]
SkipBroken = Annotated[bool, typer.Option("--skip-broken", help="leave out images that cannot be decoded")]


def _read(data: str, **options: Any) -> Any:
    from undoor.readers import read
    from undoor.terminal import err

    with err.status(f"reading {data}") if err.is_terminal else warnings.catch_warnings():
        return read(data, **options)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"undoor {__version__}")
        raise typer.Exit


@app.callback()
def _undoor(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="the folder for findings/ and demo.json")] = Path("undoor-demo"),
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Plant a backdoor in embedded data, find it, remove it, retrain, and show before and after."""
    from undoor import terminal
    from undoor.experiments.demo import demo as run

    with terminal.training_bar() as on_step:
        result = run(out, seed, overwrite=overwrite, on_stage=terminal.print_stage, on_step=on_step)
    attack = result.attack
    terminal.out.print(
        f"planted: {attack.count} images of class {', '.join(attack.sources)} with one brighter pixel at "
        f"{attack.trigger.row},{attack.trigger.column}, labelled {attack.target}"
    )
    terminal.print_findings(result.findings)
    terminal.print_before_after(result.before, result.after)
    terminal.out.print(f"report: {out / 'findings' / 'report.html'}", soft_wrap=True)


@app.command()
def poison(
    data: Data,
    out: Out,
    target: Annotated[str, typer.Option(help="the class that poisoned images are labelled as")],
    source: Annotated[
        list[str] | None,
        typer.Option(help="a class to poison; may be repeated; by default all but the target"),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="of poisoned images")] = 1000,
    size: Annotated[float, typer.Option(help="of the change of the pixel, from 0 to 1")] = 0.25,
    position: Annotated[
        str | None, typer.Option(help="ROW,COLUMN of the pixel; by default drawn from the central half")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="remove the originals of poisoned images")] = False,
    seed: Seed = 0,
    split: Split = "train",
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    image_size: ImageSize = None,
    skip_broken: SkipBroken = False,
) -> None:
    """Write a poisoned copy of DATA (Parquet, lossless) with the truth in it, and attack.json beside it."""
    from undoor.attacks import Attack, write_attack
    from undoor.attacks import poison as plant
    from undoor.files import atomic_folder
    from undoor.readers.parquet import write_parquet
    from undoor.terminal import out as console

    place = _position(position)
    _refuse_existing(out)
    dataset = _read(
        data, split=split, image_column=image_column, label_column=label_column,
        image_size=image_size, skip_broken=skip_broken,
    )  # fmt: skip
    attack = Attack.one_pixel(
        dataset, target=target, count=count, size=size, sources=source or None, position=place,
        keep_originals=not replace, seed=seed,
    )  # fmt: skip
    poisoned = plant(dataset, attack)
    with atomic_folder(out) as folder:
        write_parquet(poisoned, folder / "train.parquet")
        write_attack(attack, folder / "attack.json")
    pixel = attack.trigger
    console.print(
        f"{len(poisoned)} images, {count} of them poisoned: pixel {pixel.row},{pixel.column} brighter by {size}, "
        f"labelled {target}\nwritten to {out}",
        soft_wrap=True,
        markup=False,
    )


@app.command()
def train(
    data: Data,
    out: Annotated[Path, typer.Option(help="the file for the network, .safetensors")],
    preset: Preset = "fast",
    epochs: Epochs = None,
    learning_rate: LearningRate = None,
    network: Network = None,
    test: Annotated[str | None, typer.Option(help="clean test DATA: print the accuracy")] = None,
    attack: Annotated[
        Path | None, typer.Option(help="attack.json of undoor poison: print its success on the test data too")
    ] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    split: Split = "train",
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    image_size: ImageSize = None,
    skip_broken: SkipBroken = False,
) -> None:
    """Train a network on DATA. An interrupted training resumes when the command is given again."""
    from undoor import terminal
    from undoor.attacks import read_attack
    from undoor.experiments.measure import measure
    from undoor.recipes import recipe
    from undoor.victims import fit_victim

    chosen = recipe(preset, epochs=epochs, learning_rate=learning_rate, seed=seed)
    planned = None if attack is None else read_attack(attack)
    if planned is not None and test is None:
        raise UndoorError("--attack is measured on test images; add --test DATA")
    columns = {"image_column": image_column, "label_column": label_column, "image_size": image_size}
    dataset = _read(data, split=split, skip_broken=skip_broken, **columns)
    test_set = None if test is None else _read(test, split="test", skip_broken=skip_broken, **columns)
    with terminal.training_bar() as on_step:
        model = fit_victim(dataset, chosen, out, network, overwrite=overwrite, on_step=on_step)
    terminal.out.print(f"network: {out}", soft_wrap=True, markup=False)
    if test_set is not None:
        terminal.print_success(measure(model, test_set, planned))


EngineKind = Annotated[
    str, typer.Option("--engine", help="local, processes of this machine, or ray, the cluster of RAY_ADDRESS")
]
Workers = Annotated[int | None, typer.Option(min=1, help="tasks at once; by default one per core")]
Gpus = Annotated[float, typer.Option(min=0, help="share of a GPU for a task on ray, such as 0.25")]


@app.command()
def scan(
    data: Data,
    out: Annotated[Path, typer.Option(help="the folder for the findings")],
    model: Annotated[
        Path | None,
        typer.Option(help="the network's weights; by default one is trained on DATA and kept in --out"),
    ] = None,
    network: Network = None,
    layer: Annotated[
        str | None,
        typer.Option(help="the layer whose input are the features; by default the last linear one"),
    ] = None,
    mean: Annotated[str | None, typer.Option(help="M,M,M: subtracted from each channel in [0, 1] first")] = None,
    std: Annotated[str | None, typer.Option(help="S,S,S: each channel is divided by it next")] = None,
    image_filter: Annotated[
        str, typer.Option("--filter", help="average[:SIZE[:zero]], median, gaussian, noise or quantise")
    ] = "average:2",
    decision: Annotated[
        str,
        typer.Option(help="changes that count: confident ones (threshold 0.15), or all, plain, as in the paper (0.5)"),
    ] = "confident",
    threshold: Annotated[
        float | None, typer.Option(help="impurity above which a cluster is flagged; by default the decision's")
    ] = None,
    unconditioned: Annotated[
        bool,
        typer.Option("--unconditioned", help="count all images in p, not only those decided as labelled"),
    ] = False,
    skip_single: Annotated[bool, typer.Option("--skip-single", help="skip classes with one cluster")] = False,
    dimensions: Annotated[
        str, typer.Option(help="to which features are reduced: auto, few, a number, or all, which leaves them alone")
    ] = "auto",
    one_look: Annotated[
        bool, typer.Option("--one-look", help="no second look, in few directions, at classes where nothing is flagged")
    ] = False,
    preset: Preset = "fast",
    epochs: Epochs = None,
    learning_rate: LearningRate = None,
    seed: Seed = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="images a forward pass")] = 128,
    overwrite: Overwrite = False,
    exit_zero: Annotated[bool, typer.Option("--exit-zero", help="end with 0 although something is flagged")] = False,
    split: Split = "train",
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    image_size: ImageSize = None,
    skip_broken: SkipBroken = False,
    engine: EngineKind = "local",
    workers: Workers = None,
    gpus: Gpus = 0.0,
) -> None:
    """Scan DATA for backdoor poisoning. Ends with 1 if something is flagged, 0 if nothing is.

    A scan that was interrupted goes on where it was when the command is given again.
    """
    from undoor import terminal
    from undoor.classifier import Classifier
    from undoor.defenses.training_set import ClusterImpurity
    from undoor.engine import Engine
    from undoor.filters import parse_filter
    from undoor.findings import refuse_findings
    from undoor.mixture import MixtureSettings
    from undoor.recipes import recipe
    from undoor.scanning import scan as run
    from undoor.scanning import write_findings
    from undoor.shards import kept_until_done
    from undoor.victims import fit_victim
    from undoor.weights import load_model, require_same_classes

    h = parse_filter(image_filter)
    chosen_engine = Engine(engine, workers, gpus)  # type: ignore[arg-type] # which it checks
    defense = ClusterImpurity(
        mixture=MixtureSettings(dimensions=_dimensions(dimensions)), second_look=not one_look,
        decision=decision,  # type: ignore[arg-type] # which it checks
        threshold=threshold, conditioned=not unconditioned, skip_single=skip_single, seed=seed, workers=chosen_engine,
    )  # fmt: skip
    options: dict[str, Any] = {
        "layer": layer,
        "mean": _numbers(mean, "--mean"),
        "std": _numbers(std, "--std"),
    }
    chosen = recipe(preset, epochs=epochs, learning_rate=learning_rate, seed=seed)
    refuse_findings(out, overwrite)
    given = None if model is None else load_model(model, network)
    if given is not None:
        classifier = Classifier(given[0], **options)
    dataset = _read(
        data, split=split, image_column=image_column, label_column=label_column,
        image_size=image_size, skip_broken=skip_broken,
    )  # fmt: skip
    if given is None:
        with terminal.training_bar() as on_step:
            victim = fit_victim(
                dataset, chosen, out / "victim.safetensors", network, overwrite=overwrite, on_step=on_step
            )
        classifier = Classifier(victim, **options)
    else:
        require_same_classes(given[1], dataset.class_names, model)
    with kept_until_done(out / "evidence.part") as folder:
        with terminal.counting_bar("evidence") as on_batch:
            findings = run(
                classifier, dataset, defense, image_filter=h, batch_size=batch_size,
                folder=folder, engine=chosen_engine, on_batch=on_batch,
            )  # fmt: skip
        write_findings(findings, dataset, h, out, overwrite=overwrite)
    terminal.print_findings(findings)
    terminal.out.print(f"report: {out / 'report.html'}", soft_wrap=True, markup=False)
    if findings.verdict == "poisoned" and not exit_zero:
        raise typer.Exit(1)


@app.command()
def clean(
    data: Data,
    findings: Annotated[Path, typer.Option(help="the folder that undoor scan wrote for DATA")],
    out: Out,
    split: Split = "train",
) -> None:
    """Write the part of DATA that was not flagged; DATA itself stays as it is."""
    from undoor.findings import read_ids
    from undoor.readers.subset import write_subset
    from undoor.terminal import out as console

    _refuse_existing(out)
    scanned, kept = read_ids(findings)
    write_subset(data, scanned, kept, out, split)
    console.print(f"kept {len(kept)} of {len(scanned)} images\nwritten to {out}", soft_wrap=True, markup=False)


@app.command()
def bench(
    suite: Annotated[str, typer.Argument(help="quick (embedded digits) or paper (CIFAR-10)", metavar="SUITE")],
    out: Annotated[Path, typer.Option(help="the folder for results, tables and figures; an earlier run is resumed")],
    data: Annotated[
        str | None, typer.Option(help="for paper: CIFAR-10, a folder with its training and test split")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="of the trainings; by default the suite's")] = None,
    epochs: Epochs = None,
    seeds: Annotated[str, typer.Option(help="N,N,N: every cell is repeated with each")] = "0",
    cells: Annotated[str, typer.Option(help="a pattern, such as 'multiple-source-*': only these cells")] = "*",
    retraining: Annotated[
        bool, typer.Option("--retraining/--no-retraining", help="train again without what each defence flagged")
    ] = True,
    time_budget: Annotated[
        str | None, typer.Option(help="such as 90s, 25m or 3h: stop in time; the same command goes on")
    ] = None,
    engine: EngineKind = "local",
    workers: Workers = None,
    gpus: Gpus = 0.0,
) -> None:
    """Measure attacks and defences on a grid of experiments; write tables and figures."""
    from undoor import terminal
    from undoor.engine import Engine
    from undoor.experiments.bench import Bench
    from undoor.experiments.results import write_report
    from undoor.experiments.store import Store
    from undoor.experiments.suites import suite as make

    budget = _seconds(time_budget)
    chosen_engine = Engine(engine, workers, gpus)  # type: ignore[arg-type] # which it checks
    chosen = make(suite, data=data, preset=preset, epochs=epochs, seeds=_whole_numbers(seeds), cells=cells)
    store = Store(out)
    with terminal.bench_board() as on_change:
        board = Bench(
            chosen, store, retraining=retraining, budget=budget, engine=chosen_engine, on_change=on_change
        ).run()
    write_report(store, suite, chosen.grid)
    terminal.print_board(board)
    terminal.out.print(f"tables: {out / 'README.md'}", soft_wrap=True, markup=False)


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    units = {"s": 1, "m": 60, "h": 3600}
    number, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1)
    try:
        seconds = float(number) * unit
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UndoorError(f"--time-budget is {text!r}; give a time such as 90s, 25m or 3h")
    return seconds


def _dimensions(text: str) -> Any:
    if text in ("auto", "few", "all"):
        return None if text == "all" else text
    if not text.isdecimal() or int(text) < 1:
        raise UndoorError(f"--dimensions is {text!r}; give auto, few, all or a whole number above 0")
    return int(text)


def _whole_numbers(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise UndoorError(f"--seeds is {text!r}; give whole numbers with commas between them")
    return list(dict.fromkeys(int(part) for part in parts))


def _refuse_existing(out: Path) -> None:
    if out.exists():
        raise UndoorError(f"{out} exists already; choose another --out")


def _numbers(text: str | None, option: str) -> list[float] | None:
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise UndoorError(f"{option} is {text!r}; give numbers with commas between them, one a channel") from None


def _position(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    row, _, column = text.partition(",")
    if not (row.strip().isdigit() and column.strip().isdigit()):
        raise UndoorError(f"--position is {text!r}; give ROW,COLUMN, counted from 0")
    return int(row), int(column)


def main() -> None:
    """Run the command line; an error the user can mend is one line and exit code 2."""
    former = warnings.showwarning

    def show(message: Any, category: Any, *rest: Any) -> None:
        if issubclass(category, UndoorNotice):
            print(f"note: {_one_line(message)}", file=sys.stderr)
        else:
            former(message, category, *rest)

    warnings.showwarning = show  # type: ignore[assignment] # only its first arguments matter
    try:
        app(prog_name="undoor")
    except UndoorError as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        print(
            f"error: {_one_line(error.strerror or error)}{where}; check the path and its permissions", file=sys.stderr
        )
        sys.exit(2)
    except Exception:
        traceback.print_exc()
        print("error: this is a fault of undoor; please report it with the lines above", file=sys.stderr)
        sys.exit(2)


def _one_line(message: object) -> str:
    return "".join(c if c.isprintable() else " " for c in str(message))


if __name__ == "__main__":
    main()

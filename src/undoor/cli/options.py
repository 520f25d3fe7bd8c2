"""Options that several commands share, and what their texts mean."""

from pathlib import Path
from typing import Annotated, Any

import typer

from undoor.errors import UndoorError

DATA = "a folder with a sub-folder per class, .parquet, .npz, CIFAR batches, hub:NAME, or digits"

Data = Annotated[str, typer.Argument(help=DATA, metavar="DATA")]
Out = Annotated[Path, typer.Option(help="the new folder")]
Seed = Annotated[int, typer.Option(min=0, help="of everything that is random")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace what an earlier run wrote there")]
Preset = Annotated[
    str, typer.Option(help="fast (a short schedule for a CPU), paper (200 epochs) or large-batch (for a GPU)")
]
Epochs = Annotated[
    int | None, typer.Option(min=1, help="instead of the preset's number, which is higher for small sets")
]
LearningRate = Annotated[float | None, typer.Option(help="instead of the preset's highest")]
Network = Annotated[str | None, typer.Option(help="resnet20, small-cnn or package.module:factory")]
Split = Annotated[str, typer.Option(help="the part of DATA to read, where it has several")]
ImageColumn = Annotated[str | None, typer.Option(help="of Parquet and hub data")]
LabelColumn = Annotated[str | None, typer.Option(help="of Parquet and hub data")]
ImageSize = Annotated[int | None, typer.Option(min=1, help="resize all images to this height and width")]
SkipBroken = Annotated[bool, typer.Option("--skip-broken", help="leave out images that cannot be decoded")]
Layer = Annotated[
    str | None, typer.Option(help="the layer whose input are the features; by default the last linear one")
]
Mean = Annotated[str | None, typer.Option(help="M,M,M, or one M for all channels: subtracted from images in [0, 1]")]
Std = Annotated[str | None, typer.Option(help="S,S,S, or one S for all channels: they are then divided by it")]
ExitZero = Annotated[bool, typer.Option("--exit-zero", help="end with 0 although something is flagged")]
EngineKind = Annotated[
    str, typer.Option("--engine", help="local, processes of this machine, or ray, the cluster of RAY_ADDRESS")
]
Workers = Annotated[int | None, typer.Option(min=1, help="tasks at once; by default one per core")]
Gpus = Annotated[float, typer.Option(min=0, help="share of a GPU for a task on ray, such as 0.25")]


def read_data(data: str, **options: Any) -> Any:
    """Read DATA as ``undoor.read`` does, and show how far it is."""
    from undoor.cli.terminal import counting_bar
    from undoor.data.readers import read

    with counting_bar("read") as on_image:
        return read(data, on_image=on_image, **options)


def refuse_existing(out: Path) -> None:
    """Raise if ``out`` exists."""
    if out.exists():
        raise UndoorError(f"{out} exists already; choose another --out")


def seconds(text: str | None) -> float | None:
    """Return the seconds of a text such as 90s, 25m or 3h."""
    if text is None:
        return None
    units = {"s": 1, "m": 60, "h": 3600}
    number, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1)
    try:
        value = float(number) * unit
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UndoorError(f"--time-budget is {text!r}; give a time such as 90s, 25m or 3h")
    return value


def dimensions_of(text: str) -> Any:
    """Return the features' dimensions as ``MixtureSettings`` takes them."""
    if text in ("auto", "few", "all"):
        return None if text == "all" else text
    if not text.isdecimal() or int(text) < 1:
        raise UndoorError(f"--dimensions is {text!r}; give auto, few, all or a whole number above 0")
    return int(text)


def whole_numbers(text: str) -> list[int]:
    """Return the different whole numbers of a text with commas."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise UndoorError(f"--seeds is {text!r}; give whole numbers with commas between them")
    return list(dict.fromkeys(int(part) for part in parts))


def numbers(text: str | None, option: str) -> list[float] | None:
    """Return the numbers of a text with commas."""
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise UndoorError(f"{option} is {text!r}; give numbers with commas between them, one a channel") from None


def position_of(text: str | None) -> tuple[int, int] | None:
    """Return row and column of a text such as 3,4."""
    if text is None:
        return None
    row, _, column = text.partition(",")
    if not (row.strip().isdigit() and column.strip().isdigit()):
        raise UndoorError(f"--position is {text!r}; give ROW,COLUMN, counted from 0")
    return int(row), int(column)

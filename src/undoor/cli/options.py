"""Options that several commands share.

A single option is an alias such as ``Seed``. Options that belong together are the fields of a class such as
``ReadingOptions``. A command takes one parameter of the class; ``undoor.cli.signature`` makes the options of it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from undoor.cli.values import numbers
from undoor.errors import UndoorError

if TYPE_CHECKING:
    from torch import nn

    from undoor.data.dataset import Dataset
    from undoor.engine import Engine
    from undoor.networks.classifier import Classifier
    from undoor.networks.recipes import Recipe

FORMATS = (
    "a folder with one sub-folder per class, a .parquet or .npz file, CIFAR batches, "
    "hub:NAME (Hugging Face) or digits (built in)"
)

Data = Annotated[str, Argument(help=f"The labelled images: {FORMATS}.", metavar="DATA")]
Model = Annotated[Path, Argument(help="Weights of the network.", metavar="MODEL")]
Seed = Annotated[int, Option(min=0, metavar="N", help="Seed of all random numbers.")]
Overwrite = Annotated[bool, Option("--overwrite", help="Replace the output of an earlier run.")]
ExitZero = Annotated[bool, Option("--exit-zero", help="Exit with 0 even if something is flagged.")]
BatchSize = Annotated[int, Option(min=1, metavar="N", help="Number of images in a forward pass.")]
AttackFile = Annotated[Path | None, Option(help="attack.json of undoor poison, to measure its success; needs --test.")]
Network = Annotated[
    str | None,
    Option(help="Architecture: resnet20, small-cnn or package.module:factory, a function that returns the network."),
]
Layer = Annotated[
    str | None, Option(help="The layer whose input is used as features. By default the last linear layer.")
]
Split = Annotated[str, Option(help="The split to read, if the data has several.")]


def refuse_existing(out: Path) -> None:
    """Raise if ``out`` exists."""
    if out.exists():
        raise UndoorError(f"{out} exists already; choose another --out")


@dataclass(frozen=True)
class ReadingOptions:
    """How the images are read."""

    split: Split = "train"
    image_column: Annotated[str | None, Option(help="Column of the images, in Parquet and hub data.")] = None
    label_column: Annotated[str | None, Option(help="Column of the labels, in Parquet and hub data.")] = None
    image_size: Annotated[
        int | None, Option(min=1, metavar="N", help="Resize all images to this height and width.")
    ] = None
    skip_broken: Annotated[bool, Option("--skip-broken", help="Leave out images that cannot be decoded.")] = False

    def read(self, data: str) -> "Dataset":
        """Return the images of ``data``, as ``undoor.read`` does, and show the progress."""
        from undoor.cli.terminal import counting_bar
        from undoor.data.readers import read

        with counting_bar("read") as on_image:
            return read(data, on_image=on_image, **vars(self))


TEST_SPLIT = ReadingOptions(split="test")
"""The default of commands that read images on which the network was not trained."""


@dataclass(frozen=True)
class ModelOptions:
    """How the network is loaded."""

    network: Network = None
    mean: Annotated[
        str | None,
        Option(metavar="M,M,M", help="Mean to subtract from pixel values in [0, 1]: a number, or one per channel."),
    ] = None
    std: Annotated[
        str | None, Option(metavar="S,S,S", help="Standard deviation to divide by: a number, or one per channel.")
    ] = None

    def __post_init__(self) -> None:
        self._normalisation()  # raises before anything is read or trained

    def load(self, path: Path, layer: str | None = None) -> "tuple[Classifier, tuple[str, ...] | None]":
        """Return the network in a file, and its class names if the file holds them."""
        from undoor.networks.weights import load_model

        model, class_names = load_model(path, self.network)
        return self.classifier(model, layer), class_names

    def classifier(self, model: "nn.Module", layer: str | None = None) -> "Classifier":
        """Return a network as a classifier that normalises its images."""
        from undoor.networks.classifier import Classifier

        return Classifier(model, layer=layer, **self._normalisation())

    def _normalisation(self) -> dict[str, Any]:
        return {"mean": numbers(self.mean, "--mean"), "std": numbers(self.std, "--std")}


@dataclass(frozen=True)
class TrainingOptions:
    """How the network is trained."""

    preset: Annotated[
        str,
        Option(help="Schedule: fast or cpu (for a CPU), paper or paper-bf16 (200 epochs), large-batch (for a GPU)."),
    ] = "fast"
    epochs: Annotated[
        int | None, Option(min=1, metavar="N", help="Number of epochs. By default the preset's, more for few images.")
    ] = None
    learning_rate: Annotated[float | None, Option(help="Highest learning rate. By default the preset's.")] = None
    seed: Seed = 0

    def recipe(self, images: int | None = None) -> "Recipe":
        """Return the recipe; unless --epochs is given, with enough epochs for a data set of ``images`` images."""
        from undoor.networks.recipes import long_enough, recipe

        chosen = recipe(self.preset, epochs=self.epochs, learning_rate=self.learning_rate, seed=self.seed)
        return chosen if images is None or self.epochs is not None else long_enough(chosen, images)


@dataclass(frozen=True)
class EngineOptions:
    """Where tasks are computed."""

    engine: Annotated[
        str, Option(help="Where tasks run: local (threads), processes (on this machine) or ray (on a cluster).")
    ] = "local"
    workers: Annotated[
        int | None, Option(min=1, metavar="N", help="Number of tasks at once. By default one per core.")
    ] = None
    gpus: Annotated[float, Option(min=0, help="Share of a GPU for a task on ray, such as 0.25.")] = 0.0

    def create(self) -> "Engine":
        """Return the engine."""
        from undoor.engine import Engine

        return Engine(self.engine, self.workers, self.gpus)  # type: ignore[arg-type] # Engine checks the name


@dataclass(frozen=True)
class OutputOptions:
    """What is printed."""

    quiet: Annotated[bool, Option("--quiet", "-q", help="Print only errors and notes.")] = False
    as_json: Annotated[bool, Option("--json", help="Print only the result, as JSON.")] = False

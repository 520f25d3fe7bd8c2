"""Victims in files: trained once, resumed when interrupted, found again when nothing changed."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import nn

from undoor.data.dataset import Dataset
from undoor.errors import UndoorError, UndoorNotice
from undoor.networks.architectures import NETWORKS, default_network
from undoor.networks.jobs import Job
from undoor.networks.recipes import Recipe
from undoor.networks.training import Step, Trained, succeeded, train_many
from undoor.networks.weights import Architecture, call_factory, load_model, read_architecture, save_model

LARGE = 64
"""Pixels of height or width beyond which the networks that come with undoor are slow to train."""


@dataclass(frozen=True, eq=False)
class Wanted:
    """A network that is wanted in a file.

    Args:
        dataset: the training set.
        recipe: how to train.
        path: the file, ``.safetensors``.
        network: a name from ``undoor.networks.architectures`` or ``package.module:factory``; by default what fits the
            images.

    """

    dataset: Dataset
    recipe: Recipe
    path: Path
    network: str | None = None

    @property
    def checkpoint(self) -> Path:
        """Where an interrupted training is kept."""
        return self.path.with_suffix(".checkpoint")

    def architecture(self) -> Architecture:
        """Return what the file will say of the network."""
        channels, height, width = self.dataset.images.shape[1:]
        name = self.network or default_network(height, width)
        described = {**asdict(self.recipe), "data": self.dataset.fingerprint()}
        return Architecture(name, (channels, height, width), self.dataset.class_names, described)


def fit_victim(
    dataset: Dataset,
    recipe: Recipe,
    path: Path,
    network: str | None = None,
    *,
    overwrite: bool = False,
    on_step: Callable[[Step], None] | None = None,
) -> nn.Module:
    """Return the network that ``recipe`` trains on ``dataset``, kept in ``path``; see ``fit_victims``.

    Raises:
        DivergedError: if the loss is no longer a number.

    """
    report = None if on_step is None else lambda _, step: on_step(step)
    return succeeded(fit_victims([Wanted(dataset, recipe, path, network)], overwrite=overwrite, on_step=report)[0])


def fit_victims(
    wanted: Sequence[Wanted],
    *,
    overwrite: bool = False,
    capture: bool = True,
    seconds: float | None = None,
    on_step: Callable[[int, Step], None] | None = None,
) -> list[Trained]:
    """Return networks that are kept in files; those that are missing are trained, on a GPU together.

    If a file already holds this very network, trained on this very data, it is loaded. Each network is written as
    soon as its training ends; a training that was interrupted goes on from the file beside it that ends in
    ``.checkpoint``. In the place of a network whose training diverged stands the error that says so.

    Args:
        wanted: the networks, the most important first.
        overwrite: replace another file at a path, or the checkpoint of another training.
        capture: as in ``train_many``, like the next.
        seconds: within which as many trainings as possible are to end.
        on_step: called after every training step, with the number of the training among those that are missing.

    """
    models: dict[int, Trained] = {}
    jobs: dict[int, Job] = {}
    architectures = []
    for number, one in enumerate(wanted):
        _require_trainable(one)
        architectures.append(architecture := one.architecture())
        if one.path.exists():
            if read_architecture(one.path) == architecture:
                models[number] = load_model(one.path, architecture.network)[0].eval()
                if one.checkpoint.exists():  # its training was killed after the network had been written
                    one.checkpoint.unlink(missing_ok=True)
                continue
            if not overwrite:
                raise UndoorError(f"{one.path} holds another network; choose another --out or add --overwrite")
        name = architecture.network
        module = name if name in NETWORKS else call_factory(name)
        jobs[number] = Job(one.dataset, one.recipe, module, one.checkpoint)
    missing = list(jobs)

    def keep(place: int, trained: Trained) -> None:
        number = missing[place]
        if isinstance(trained, nn.Module):
            save_model(trained, architectures[number], wanted[number].path)
        wanted[number].checkpoint.unlink(missing_ok=True)
        models[number] = trained

    train_many(list(jobs.values()), overwrite=overwrite, capture=capture, seconds=seconds, on_step=on_step, on_end=keep)
    return [models[number] for number in range(len(wanted))]


def _require_trainable(wanted: Wanted) -> None:
    if wanted.path.suffix != ".safetensors":
        raise UndoorError(f"{wanted.path} should end in .safetensors; choose such a name for --out")
    wanted.dataset.require_classes()
    height, width = wanted.dataset.images.shape[2:]
    if wanted.network is None and max(height, width) > LARGE:
        warnings.warn(
            f"training on images of {height}×{width} pixels takes long; add --image-size 32, "
            "or give a network of your own",
            UndoorNotice,
            stacklevel=4,
        )

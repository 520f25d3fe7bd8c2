"""Victims in files: trained once, resumed if interrupted, and loaded again if nothing has changed."""

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
"""Height or width in pixels beyond which the networks that come with undoor are slow to train."""


@dataclass(frozen=True, eq=False)
class Wanted:
    """A network that a file should hold.

    Args:
        dataset: the training set.
        recipe: how to train.
        path: the file, which ends in ``.safetensors``.
        network: a name from ``undoor.networks.architectures`` or ``package.module:factory``. By default the network
            depends on the size of the images.

    """

    dataset: Dataset
    recipe: Recipe
    path: Path
    network: str | None = None

    @property
    def checkpoint(self) -> Path:
        """The file from which an interrupted training resumes."""
        return self.path.with_suffix(".checkpoint")

    def architecture(self) -> Architecture:
        """Return the description of the network that is written with its weights."""
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
    """Return the network that ``recipe`` trains on ``dataset``, which is kept in ``path``; see ``fit_victims``.

    Raises:
        DivergedError: the loss is no longer a number.

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
    """Return networks that are kept in files. Missing networks are trained, on a GPU together.

    A file that holds this very network, trained on this very data, is loaded. Each new network is written as soon as
    its training ends. An interrupted training resumes from the file beside it that ends in ``.checkpoint``.

    Args:
        wanted: the networks, the most important first.
        overwrite: replace files of other networks and checkpoints of other trainings instead of raising an error.
        capture: as in ``train_many``.
        seconds: time within which as many trainings as possible should end, as in ``train_many``.
        on_step: called after training steps with the index of the training among those that are missing.

    Returns:
        The networks in the order of ``wanted``, or the error of a training that diverged.

    Raises:
        UndoorError: a file holds another network, a name does not end in ``.safetensors``, or a set cannot be learned.

    """
    outcomes: dict[int, Trained] = {}
    jobs: dict[int, Job] = {}
    architectures = []
    for index, victim in enumerate(wanted):
        _require_trainable(victim)
        architectures.append(architecture := victim.architecture())
        if victim.path.exists():
            if read_architecture(victim.path) == architecture:
                outcomes[index] = load_model(victim.path, architecture.network)[0].eval()
                if victim.checkpoint.exists():  # the process was killed after it had written the network
                    victim.checkpoint.unlink(missing_ok=True)
                continue
            if not overwrite:
                raise UndoorError(f"{victim.path} holds another network; choose another --out or add --overwrite")
        name = architecture.network
        network = name if name in NETWORKS else call_factory(name)
        jobs[index] = Job(victim.dataset, victim.recipe, network, victim.checkpoint)
    missing = list(jobs)

    def keep(job: int, trained: Trained) -> None:
        index = missing[job]
        if isinstance(trained, nn.Module):
            save_model(trained, architectures[index], wanted[index].path)
        wanted[index].checkpoint.unlink(missing_ok=True)
        outcomes[index] = trained

    train_many(list(jobs.values()), overwrite=overwrite, capture=capture, seconds=seconds, on_step=on_step, on_end=keep)
    return [outcomes[index] for index in range(len(wanted))]


def _require_trainable(victim: Wanted) -> None:
    if victim.path.suffix != ".safetensors":
        raise UndoorError(f"{victim.path} should end in .safetensors; choose such a name for --out")
    victim.dataset.require_classes()
    height, width = victim.dataset.images.shape[2:]
    if victim.network is None and max(height, width) > LARGE:
        warnings.warn(
            f"training on images of {height}×{width} pixels takes long; add --image-size 32, "
            "or give a network of your own",
            UndoorNotice,
            stacklevel=4,
        )

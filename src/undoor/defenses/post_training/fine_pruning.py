"""Fine-Pruning (Liu, Dolan-Gavitt, Garg, "Fine-Pruning: Defending Against Backdooring Attacks", RAID 2018).

A backdoor may use channels that clean images leave dormant. These are pruned, the most dormant first, until clean
accuracy would fall too far. The rest is fine-tuned on clean images, which removes backdoors that share channels with
the clean task. The defense needs some clean images, but neither the training set nor anything about the attack.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils import prune

from undoor.data.dataset import Dataset
from undoor.defenses.post_training.channels import (
    Channels,
    decisions_along,
    find_channels,
    mean_activations,
    parameters_of,
    silence,
)
from undoor.defenses.post_training.pruned import Pruned
from undoor.errors import UndoorError
from undoor.findings.metrics import accuracy
from undoor.findings.provenance import Provenance
from undoor.networks.classifier import Classifier
from undoor.networks.recipes import Recipe
from undoor.networks.training import Step, train

FEWEST_IMAGES = 3
"""Every class needs at least this many clean images: one is held out, and fine-tuning needs two."""


@dataclass(frozen=True)
class FinePruning:
    """The defense; ``FinePruning()(model, clean)`` returns a ``Pruned`` with the repaired network.

    Args:
        layer: the name of the ``nn.Conv2d`` whose channels are pruned; by default the last that runs.
        ranking: "dormant" prunes the channel with the lowest mean activation on clean images first; "random", the
            control, prunes them in a random order.
        tolerance: how far pruning may lower the accuracy on the clean images held out, as a share of them. The default
            is four percentage points, as in the paper.
        held_out: the share of the clean images of every class that accuracy is measured on. The channels are ranked and
            the network is fine-tuned on the rest.
        epochs: the epochs of fine-tuning.
        learning_rate: the highest learning rate of fine-tuning: it rises for a quarter of the steps and then falls to
            zero. A higher one removes more of the backdoor, and costs more accuracy.
        batch_size: the images in a batch of fine-tuning.
        augment: shift and flip the images of fine-tuning, as ``Recipe`` does. Without it a one-pixel backdoor can
            survive. Switch it off for classes that a flip changes.
        seed: for choosing the images held out, for their order in fine-tuning and for the random ranking.

    Example:
        >>> import numpy as np, torch, undoor
        >>> labels = np.arange(60) % 2
        >>> images = np.random.default_rng(0).integers(0, 99, (60, 1, 4, 4), dtype=np.uint8)
        >>> images[labels == 1] += 150  # class b is brighter
        >>> clean = undoor.Dataset(images, labels, ("a", "b"), np.arange(60).astype(str))
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(1, 6, 4), torch.nn.Flatten(), torch.nn.Linear(6, 2))
        >>> repaired = undoor.FinePruning(epochs=1)(network, clean)
        >>> repaired.channels.count, len(repaired.curve)
        (6, 7)
        >>> repaired.tuned.decide(images).shape
        (60,)

    """

    method_version: ClassVar[int] = 1

    layer: str | None = None
    ranking: Literal["dormant", "random"] = "dormant"
    tolerance: float = 0.04
    held_out: float = 0.3
    epochs: int = 20
    learning_rate: float = 0.05
    batch_size: int = 32
    augment: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.ranking not in ("dormant", "random"):
            raise UndoorError(f"there is no ranking {self.ranking!r}; choose dormant or random")
        if not 0 <= self.tolerance < 1:
            raise UndoorError(f"the tolerance is {self.tolerance}; give a share from 0 to below 1")
        if not 0 < self.held_out < 1:
            raise UndoorError(f"the share held out is {self.held_out}; give one between 0 and 1")
        if self.epochs < 1 or self.batch_size < 2:
            raise UndoorError(
                f"{self.epochs} epochs in batches of {self.batch_size} are no fine-tuning; "
                "give 1 epoch or more and batches of 2 or more"
            )
        if not 0 < self.learning_rate < float("inf"):
            raise UndoorError(f"the learning rate is {self.learning_rate}; give a number above 0")

    def __call__(
        self,
        model: nn.Module | Classifier,
        clean: Dataset,
        *,
        on_batch: Callable[[int, int], None] | None = None,
        on_step: Callable[[Step], None] | None = None,
    ) -> Pruned:
        """Prune and fine-tune a copy of the network; the given one stays as it is.

        Args:
            model: takes (N, C, H, W) images in [0, 1] and returns a logit for each class of ``clean``; or a
                ``Classifier`` around such a model, with its scaling. The copy runs on an accelerator if there is one.
            clean: at least three images of every class, which the network was not trained on.
            on_batch: called while the curve is measured, with the number of finished images and of all images.
            on_step: called after every step of fine-tuning, on a GPU after every hundredth.

        Raises:
            UndoorError: if the layer is no convolution that runs, or a class has too few clean images.

        """
        begun = time.perf_counter()
        tuning, held = _split(clean, self.held_out, self.seed)
        before = copy.deepcopy(model) if isinstance(model, Classifier) else Classifier(copy.deepcopy(model), layer="")
        channels = find_channels(before, clean.images[:1], self.layer)
        with before.watched() as forward:
            classes = forward(before.scale(clean.images[:1]))[1].shape[1]
        if classes != len(clean.class_names):
            raise UndoorError(
                f"the network tells {classes} classes apart, the clean images have {len(clean.class_names)}; "
                "give clean images of the classes that it was trained for"
            )
        activations = mean_activations(before, channels, tuning.images)
        order = np.argsort(activations, kind="stable")
        if self.ranking == "random":
            order = np.random.default_rng((self.seed, 1)).permutation(channels.count)
        ranked = time.perf_counter()

        decisions = decisions_along(before, channels, order, held.images, on_batch)
        accuracies = np.array([accuracy(decisions_at_step, held.labels) for decisions_at_step in decisions])
        count = channels_to_prune(accuracies, self.tolerance)
        pruned = copy.deepcopy(before)
        silence(pruned.model, channels, order[:count])
        measured = time.perf_counter()

        tuned = copy.deepcopy(pruned)
        self._tune(tuned, channels, order[:count], tuning, on_step)
        ended = time.perf_counter()
        steps = np.arange(channels.count + 1)
        curve = pd.DataFrame(
            {
                "pruned": steps,
                "share": steps / channels.count,
                "channel": [-1, *order],
                "activation": [np.nan, *activations[order]],
                "accuracy": accuracies,
            }
        )
        return Pruned(
            provenance=Provenance(
                defense="fine_pruning",
                method_version=self.method_version,
                settings={name: value for name, value in asdict(self).items() if name != "seed"},
                seed=self.seed,
                seconds={"ranking": ranked - begun, "curve": measured - ranked, "tuning": ended - measured},
            ),
            channels=channels, order=order, count=count, curve=curve, before=before, pruned=pruned, tuned=tuned,
            accuracies={
                "before": float(accuracies[0]),
                "pruned": float(accuracies[count]),
                "tuned": accuracy(tuned.decide(held.images), held.labels),
            },
            images_tuning=len(tuning), images_held_out=len(held),
        )  # fmt: skip

    def _tune(
        self,
        classifier: Classifier,
        channels: Channels,
        pruned: NDArray[np.int64],
        tuning: Dataset,
        on_step: Callable[[Step], None] | None,
    ) -> None:
        """Fine-tune the network in place; its pruned channels stay at zero."""
        recipe = Recipe(
            "fine-tuning", self.epochs, self.batch_size, "sgd", self.learning_rate, "one-cycle", 5e-4,
            self.augment, "channel", "bf16", self.seed,
        )  # fmt: skip
        model: nn.Module = classifier.model
        parameters = list(parameters_of(model, channels))
        # A mask that is part of the network keeps them there, whatever momentum and weight decay do.
        for module, name in parameters:
            mask = torch.ones_like(getattr(module, name))
            mask[torch.as_tensor(pruned)] = 0
            prune.custom_from_mask(module, name, mask)  # type: ignore[no-untyped-call]
        with torch.random.fork_rng():  # for dropout
            torch.manual_seed(self.seed)
            train(tuning, recipe, classifier.whole(), device=str(classifier.device), on_step=on_step)
        for module, name in parameters:
            prune.remove(module, name)  # type: ignore[no-untyped-call]
        model.to(classifier.device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def channels_to_prune(accuracies: NDArray[np.float64], tolerance: float) -> int:
    """Return how many channels to prune: as many as there are before accuracy, (C + 1,), first falls too far.

    ``tolerance`` is how far it may fall below the first accuracy.
    """
    # Accuracies that should be equal may differ in the last bit.
    fallen = np.flatnonzero(accuracies < accuracies[0] - tolerance - 1e-9)
    return int(fallen[0]) - 1 if len(fallen) else len(accuracies) - 1


def _split(clean: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """Return the clean images for tuning and those held out, which are the same share of every class."""
    if len(clean.class_names) < 2:
        raise UndoorError("the clean images are of one class; give images of every class that the network tells apart")
    generator = np.random.default_rng((seed, 0))
    held = np.zeros(len(clean), dtype=bool)
    for label, name in enumerate(clean.class_names):
        rows = np.flatnonzero(clean.labels == label)
        if len(rows) < FEWEST_IMAGES:
            raise UndoorError(
                f"class {name} has {len(rows) or 'no'} clean images; give {FEWEST_IMAGES} or more of every class "
                "that the network tells apart"
            )
        count = min(max(round(share * len(rows)), 1), len(rows) - 2)
        held[generator.permutation(rows)[:count]] = True
    return clean.take(~held), clean.take(held)

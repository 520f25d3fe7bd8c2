"""How victims are trained: settings, and presets of them."""

from dataclasses import dataclass, replace
from typing import Literal

from undoor.errors import UndoorError


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Args:
        name: name of the preset.
        epochs: number of passes over the training set.
        batch_size: number of images in a step.
        optimizer: "adam", or "sgd" with a Nesterov momentum of 0.9.
        learning_rate: the largest learning rate of the schedule.
        schedule: "one-cycle" rises linearly for a quarter of the steps and then falls linearly to zero. "steps"
            multiplies the learning rate by 0.1, 0.01, 0.001 and 0.0005 after 40, 60, 80 and 90 % of the epochs.
        weight_decay: factor of the weight decay, which applies to all parameters.
        augment: whether every image is shifted by up to a tenth of its size, and half of the images are flipped.
        normalisation: "pixel" subtracts the mean of each pixel; "channel" subtracts the mean of each channel and
            divides by its standard deviation.
        precision: precision of the forward pass. "bf16" applies only where the processor has instructions for it.
        seed: determines the initial weights, the order of the images and the augmentation.

    """

    name: str
    epochs: int
    batch_size: int
    optimizer: Literal["adam", "sgd"]
    learning_rate: float
    schedule: Literal["one-cycle", "steps"]
    weight_decay: float
    augment: bool
    normalisation: Literal["pixel", "channel"]
    precision: Literal["float32", "bf16"]
    seed: int = 0

    def rate(self, progress: float) -> float:
        """Return the learning rate at ``progress`` in [0, 1), the share of the steps that are done."""
        if self.schedule == "one-cycle":
            return self.learning_rate * min(progress / 0.25, (1 - progress) / 0.75)
        passed = sum(progress >= mark for mark in (0.4, 0.6, 0.8, 0.9))
        return self.learning_rate * (1.0, 0.1, 0.01, 0.001, 0.0005)[passed]


PRESETS = {
    "paper": Recipe("paper", 200, 32, "adam", 1e-3, "steps", 1e-4, True, "pixel", "float32"),
    "paper-bf16": Recipe("paper-bf16", 200, 32, "adam", 1e-3, "steps", 1e-4, True, "pixel", "bf16"),
    "large-batch": Recipe("large-batch", 80, 512, "sgd", 0.4, "one-cycle", 5e-4, True, "pixel", "bf16"),
    "cpu": Recipe("cpu", 24, 128, "sgd", 0.2, "one-cycle", 5e-4, False, "channel", "bf16"),
    "fast": Recipe("fast", 14, 128, "sgd", 0.2, "one-cycle", 5e-4, False, "channel", "bf16"),
}
"""The presets by their names.

``paper``: the 200 epochs of the MLSP 2019 experiments. Optimiser and augmentation are inferred.

``paper-bf16``: the same with a forward pass in bf16, which is faster on a GPU. It has its own name because it is not
the paper's precision.

``large-batch``: fewer and larger steps, for a GPU. It may replace ``paper`` in a result only after its clean accuracy
and its attack success rate have been compared with those of ``paper`` on the same data. This is not done yet.

``cpu``: the schedule of the paper's tables on a CPU, where it takes about half an hour for a network on two cores.

``fast``: a shorter schedule. Neither ``cpu`` nor ``fast`` augments: in so few epochs a network does not learn a
one-pixel trigger that every augmentation moves to another position.
"""


FEWEST_STEPS = 500
"""Least number of steps of a training. A small set has few steps in an epoch, too few to learn a planted trigger."""

MOST_EPOCHS = 100
"""Largest number of epochs that ``long_enough`` chooses."""


def long_enough(chosen: Recipe, images: int) -> Recipe:
    """Return the recipe with enough epochs for ``FEWEST_STEPS`` on this number of images, but not with fewer epochs."""
    steps = max(1, images // chosen.batch_size)
    return replace(chosen, epochs=max(chosen.epochs, min(MOST_EPOCHS, -(-FEWEST_STEPS // steps))))


def recipe(
    preset: str = "fast", *, epochs: int | None = None, learning_rate: float | None = None, seed: int = 0
) -> Recipe:
    """Return a preset, with another number of epochs or another largest learning rate if one is given.

    Args:
        preset: a key of ``PRESETS``.
        epochs: number of passes over the training set.
        learning_rate: the largest learning rate of the schedule.
        seed: determines the initial weights, the order of the images and the augmentation.

    Raises:
        UndoorError: there is no such preset, or a number is out of its range.

    Examples:
        >>> import undoor
        >>> chosen = undoor.recipe("paper", epochs=20, seed=1)
        >>> chosen.optimizer, chosen.epochs, chosen.batch_size
        ('adam', 20, 32)

    """
    if preset not in PRESETS:
        raise UndoorError(f"there is no preset {preset!r}; choose {' or '.join(PRESETS)}")
    if epochs is not None and epochs < 1:
        raise UndoorError(f"{epochs} epochs are no training; give 1 or more")
    if learning_rate is not None and not 0 < learning_rate < float("inf"):
        raise UndoorError(f"the learning rate is {learning_rate}; give a number above 0")
    chosen = PRESETS[preset]
    return replace(
        chosen,
        epochs=epochs or chosen.epochs,
        learning_rate=learning_rate or chosen.learning_rate,
        seed=seed,
    )

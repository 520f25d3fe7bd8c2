"""How victims are trained: presets, and what they set."""

from dataclasses import dataclass, replace
from typing import Literal

from undoor.errors import UndoorError


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Args:
        name: of the preset.
        epochs: passes over the training set.
        batch_size: images a step.
        optimizer: "adam", or "sgd" with Nesterov momentum 0.9.
        learning_rate: the highest.
        schedule: "one-cycle" rises linearly for a quarter of the steps and falls linearly to zero;
            "steps" multiplies by 0.1, 0.01, 0.001, 0.0005 after 40, 60, 80 and 90 % of the epochs.
        weight_decay: of all parameters.
        augment: shift every image by up to a tenth of its size and flip half of them.
        normalisation: subtract the mean "pixel" by pixel, or the mean of each "channel" and divide by its
            standard deviation.
        precision: of the forward pass; "bf16" only where the processor computes in it.
        seed: of the initial weights, the order of the images and the augmentation.

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
        """Return the learning rate at ``progress`` in [0, 1)."""
        if self.schedule == "one-cycle":
            return self.learning_rate * min(progress / 0.25, (1 - progress) / 0.75)
        passed = sum(progress >= mark for mark in (0.4, 0.6, 0.8, 0.9))
        return self.learning_rate * (1.0, 0.1, 0.01, 0.001, 0.0005)[passed]


PRESETS = {
    "paper": Recipe("paper", 200, 32, "adam", 1e-3, "steps", 1e-4, True, "pixel", "float32"),
    "paper-bf16": Recipe("paper-bf16", 200, 32, "adam", 1e-3, "steps", 1e-4, True, "pixel", "bf16"),
    "large-batch": Recipe("large-batch", 80, 512, "sgd", 0.4, "one-cycle", 5e-4, True, "pixel", "bf16"),
    "cpu": Recipe("cpu", 30, 128, "sgd", 0.2, "one-cycle", 5e-4, False, "channel", "bf16"),
    "fast": Recipe("fast", 14, 128, "sgd", 0.2, "one-cycle", 5e-4, False, "channel", "bf16"),
}
"""``paper``: the 200 epochs of the MLSP 2019 experiments (optimiser and augmentation inferred).

``paper-bf16``: the same with a forward pass in bf16, which a GPU computes faster. It has a name of its own because
it is not the paper's precision.

``large-batch``: fewer and larger steps, for a GPU. It stands in for ``paper`` in a result only once its clean
accuracy and its attack success rate were compared with those of ``paper`` on the same data, which is not done yet.

``cpu``: the schedule with which the tables of the paper are made on a CPU: about half an hour a network on two cores.

``fast``: a shorter one. Neither of the two augments: a network that trains for so few epochs does not learn a
one-pixel trigger that every augmentation moves to another place.
"""


STEPS = 500
"""Of a training, at least: a small set makes few a pass, and what is planted in it is then not learned."""

LONGEST = 100
"""Epochs, at most, for the sake of ``STEPS``."""


def long_enough(chosen: Recipe, images: int) -> Recipe:
    """Return the recipe with so many epochs that a training on so many images takes ``STEPS``; no fewer than it has."""
    steps = max(1, images // chosen.batch_size)
    return replace(chosen, epochs=max(chosen.epochs, min(LONGEST, -(-STEPS // steps))))


def recipe(
    preset: str = "fast", *, epochs: int | None = None, learning_rate: float | None = None, seed: int = 0
) -> Recipe:
    """Return a preset, with another number of epochs or another highest learning rate if one is given."""
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

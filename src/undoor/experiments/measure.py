"""How good a network is, and how well an attack on it works."""

from collections.abc import Callable
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from torch import nn

from undoor.attacks import Attack, triggered
from undoor.data.dataset import Dataset
from undoor.findings.metrics import accuracy, attack_success_rate
from undoor.networks.classifier import BATCH_SIZE, Classifier


class Success(TypedDict):
    """Share of clean test images decided as labelled, and share of triggered ones decided as the target class."""

    clean_accuracy: float
    attack_success_rate: float | None


def measure(
    model: nn.Module | Classifier,
    test: Dataset,
    attack: Attack | None = None,
    on_image: Callable[[int, int], None] | None = None,
) -> Success:
    """Return the clean accuracy on test images and the attack success rate on those of the source classes.

    Without an attack the attack success rate is None. ``on_image`` is called with the number of images that are
    decided and the number of all.
    """
    classifier = model if isinstance(model, Classifier) else Classifier(model)
    sets = [test.images] if attack is None else [test.images, triggered(test, attack).images]
    total, done = sum(map(len, sets)), 0

    def decide(images: NDArray[np.uint8]) -> NDArray[np.int64]:
        nonlocal done
        parts = []
        for start in range(0, len(images), 8 * BATCH_SIZE):  # Several batches take a large network a few seconds.
            parts.append(classifier.decide(images[start : start + 8 * BATCH_SIZE]))
            done += len(parts[-1])
            if on_image is not None:
                on_image(done, total)
        return np.concatenate(parts)

    decisions = [decide(images) for images in sets]
    success: Success = {"clean_accuracy": accuracy(decisions[0], test.labels), "attack_success_rate": None}
    if attack is not None:
        success["attack_success_rate"] = attack_success_rate(decisions[1], test.class_names.index(attack.target))
    return success

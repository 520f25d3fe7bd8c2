"""How good a network is, and how well an attack on it works."""

from typing import TypedDict

from torch import nn

from undoor.attacks import Attack, triggered
from undoor.classifier import Classifier
from undoor.dataset import Dataset
from undoor.metrics import accuracy, attack_success_rate


class Success(TypedDict):
    """Shares of test images: clean ones classified as labelled, triggered ones classified as the target."""

    clean_accuracy: float
    attack_success_rate: float | None


def measure(model: nn.Module | Classifier, test: Dataset, attack: Attack | None = None) -> Success:
    """Return clean accuracy on ``test`` and, given an attack, its success on the source classes' images."""
    classifier = model if isinstance(model, Classifier) else Classifier(model)
    success: Success = {
        "clean_accuracy": accuracy(classifier.decide(test.images), test.labels),
        "attack_success_rate": None,
    }
    if attack is not None:
        decisions = classifier.decide(triggered(test, attack).images)
        success["attack_success_rate"] = attack_success_rate(decisions, test.class_names.index(attack.target))
    return success

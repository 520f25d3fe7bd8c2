"""Victims whose network is made by hand, as contenders are given them."""

import numpy as np

from conftest import make_dataset
from undoor.attacks import Attack, OnePixel
from undoor.data.dataset import Dataset, Truth, row_ids
from undoor.experiments.contenders import Case


class Bright:
    """A network that decides class 2 if pixel (0, 0) is bright, and else reads the label from pixel (1, 1)."""

    def decide(self, images):
        return np.where(images[:, 0, 0, 0] == 255, 2, images[:, 0, 1, 1] // 50)


def bright_case():
    """Return a case with an attack that succeeds on every image, and 20 images a class in each half of the test set."""
    dataset = make_dataset(n_per_class=40)
    images = np.zeros_like(dataset.images)
    images[:, :, 1, 1] = 50 * dataset.labels[:, None]
    test = Dataset(images, dataset.labels, dataset.class_names, dataset.ids)
    attack = Attack(OnePixel(0, 0, 1.0), ("class0", "class1"), "class2", 10)
    return Case(0, test, test, attack, Bright, evidence=None, decisions_without=None)


def case_with_truth(poisoned, target="class2"):
    """Return a case of 60 training images in three classes, with the given truth, (60,) bool; CI has flagged five."""
    labels = np.repeat(np.arange(3), 20)
    names = ("class0", "class1", "class2")
    data = Dataset(np.zeros((60, 1, 8, 8), np.uint8), labels, names, row_ids(60), Truth(poisoned, labels))
    attack = Attack(OnePixel(0, 0, 0.5), tuple(name for name in names if name != target), target, 10)
    return Case(0, data, data, attack, None, None, lambda kept: labels, flagged={"CI": 5})

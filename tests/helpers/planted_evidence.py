"""Makes evidence in which the truth is known."""

from dataclasses import dataclass

import numpy as np

from undoor.data.dataset import row_ids
from undoor.evidence import Evidence, Outputs
from undoor.mixtures.sweep import MixtureSettings

QUICKLY: dict = {"mixture": MixtureSettings(restarts=1), "workers": 1}
"""Settings of Cluster Impurity that are fast, and sufficient for clusters as far apart as those of ``plant``."""


@dataclass(frozen=True)
class Planted:
    """Evidence with a poisoned cluster, and the truth.

    Args:
        evidence: its class names are class0, class1, …
        poisoned: (N,) bool.
        target: the target class.

    """

    evidence: Evidence
    poisoned: np.ndarray
    target: int


def plant(seed: int = 0, classes: int = 4, clean: int = 150, poison: int = 60, dimensions: int = 4) -> Planted:
    """Return Gaussian features of clean classes with a poisoned cluster in class 1.

    The filter changes 95 % of the poisoned decisions, to class 0, and 3 % of the clean decisions.
    """
    generator = np.random.default_rng(seed)
    centres = 6 * np.eye(classes, dimensions)
    poison_centre = centres[1] + 5 * np.ones(dimensions)
    labels = np.repeat(np.arange(classes), clean)
    features = centres[labels] + generator.normal(size=(len(labels), dimensions))
    features = np.concatenate([features, poison_centre + generator.normal(size=(poison, dimensions))])
    labels = np.concatenate([labels, np.full(poison, 1)])
    poisoned = np.arange(len(labels)) >= classes * clean

    after = labels.copy()
    changed = generator.random(len(labels)) < np.where(poisoned, 0.95, 0.03)
    after[changed & poisoned] = 0
    after[changed & ~poisoned] = (labels[changed & ~poisoned] + 1) % classes
    order = generator.permutation(len(labels))
    evidence = Evidence(
        Outputs(features[order].astype(np.float32), one_hot(labels[order], classes)),
        {"planted": Outputs(features[order].astype(np.float32), one_hot(after[order], classes))},
        labels[order].astype(np.int64),
        row_ids(len(labels)),
        tuple(f"class{k}" for k in range(classes)),
    )
    return Planted(evidence, poisoned[order], 1)


def one_hot(decisions: np.ndarray, classes: int) -> np.ndarray:
    """Return logits (N, classes) float32 with the given decisions."""
    return (10 * np.eye(classes)[decisions]).astype(np.float32)


def permuted(evidence: Evidence, order: np.ndarray) -> Evidence:
    """Return the evidence with its samples in another order."""

    def reordered(outputs: Outputs) -> Outputs:
        return Outputs(outputs.features[order], outputs.logits[order])

    return Evidence(
        reordered(evidence.plain),
        {name: reordered(outputs) for name, outputs in evidence.filtered.items()},
        evidence.labels[order],
        evidence.ids[order],
        evidence.class_names,
    )

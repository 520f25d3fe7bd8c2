"""Defences that act on the training set: pure functions ``defence(evidence) -> Findings``."""

from typing import Protocol

from undoor.defenses.training_set.activation_clustering import ActivationClustering
from undoor.defenses.training_set.cluster_impurity import ClusterImpurity
from undoor.defenses.training_set.controls import PerfectRemoval, RandomRemoval
from undoor.defenses.training_set.pattern_cleansing import PatternCleansing
from undoor.defenses.training_set.spectral_signatures import SpectralSignatures
from undoor.evidence import Evidence
from undoor.findings.findings import Findings

__all__ = [
    "ActivationClustering",
    "ClusterImpurity",
    "PatternCleansing",
    "PerfectRemoval",
    "RandomRemoval",
    "SpectralSignatures",
    "TrainingSetDefense",
]


class TrainingSetDefense(Protocol):
    """A training-set defence; it sees no truth, no target class and no poisoning rate."""

    def __call__(self, evidence: Evidence, /) -> Findings:
        """Return what the defence finds in the evidence."""
        ...

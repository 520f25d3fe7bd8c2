"""Defenses that act on the training set: pure functions ``defense(evidence) -> Findings``.

``PatternCleansing`` is in ``undoor.defenses.training_set.pattern_cleansing``. It is not imported here because it brings
in the defenses that act after training.
"""

from typing import ClassVar, Protocol

from undoor.defenses.training_set.activation_clustering import ActivationClustering
from undoor.defenses.training_set.cluster_impurity import ClusterImpurity
from undoor.defenses.training_set.controls import PerfectRemoval, RandomRemoval
from undoor.defenses.training_set.spectral_signatures import SpectralSignatures
from undoor.evidence import Evidence
from undoor.findings.findings import Findings

__all__ = [
    "ActivationClustering",
    "ClusterImpurity",
    "PerfectRemoval",
    "RandomRemoval",
    "SpectralSignatures",
    "TrainingSetDefense",
]


class TrainingSetDefense(Protocol):
    """A training-set defense. It sees neither the truth nor the target class nor the poisoning rate.

    ``method_version`` is raised by hand whenever the method computes something else; stored results of an older version
    are then computed again.
    """

    method_version: ClassVar[int]

    def __call__(self, evidence: Evidence, /) -> Findings:
        """Return what the defense finds in the evidence."""
        ...

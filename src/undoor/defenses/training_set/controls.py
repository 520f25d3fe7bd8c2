"""Controls: the removal of random images, and the removal of exactly the poisoned images.

They are no defenses, but every table shows them beside the defenses.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from undoor.defenses.training_set.per_class import sample_table
from undoor.errors import UndoorError
from undoor.evidence import Evidence
from undoor.findings.findings import Findings
from undoor.findings.provenance import Provenance


@dataclass(frozen=True)
class RandomRemoval:
    """Flag samples that are drawn at random from all classes; a defense must do better.

    The draw depends on the ids of the samples, not on their order.

    Args:
        count: how many samples are flagged.
        seed: of the draw.

    Raises:
        UndoorError: there are fewer than ``count`` samples.

    """

    method_version: ClassVar[int] = 1

    count: int
    seed: int = 0

    def __call__(self, evidence: Evidence, /) -> Findings:
        """Flag the samples that are drawn."""
        n = len(evidence.labels)
        if not 0 <= self.count <= n:
            raise UndoorError(f"{self.count} of {n} samples cannot be drawn; give a count from 0 to {n}")
        score = np.zeros(n)
        score[np.argsort(evidence.ids, kind="stable")] = 1 + np.random.default_rng(self.seed).permutation(n)
        return Findings(
            provenance=Provenance(
                defense="random_removal",
                method_version=self.method_version,
                settings={"count": self.count},
                seed=self.seed,
            ),
            samples=sample_table(evidence, score, score > n - self.count),
            class_names=evidence.class_names,
            threshold=float(n - self.count),
        )


@dataclass(frozen=True, eq=False)
class PerfectRemoval:
    """Flag exactly the poisoned samples, the best that any defense can do. It needs the truth.

    Args:
        poisoned: (N,) bool.

    Raises:
        UndoorError: there are more or fewer than N samples.

    """

    method_version: ClassVar[int] = 1

    poisoned: NDArray[np.bool_] = field(repr=False)

    def __call__(self, evidence: Evidence, /) -> Findings:
        """Flag the poisoned samples."""
        n = len(evidence.labels)
        if self.poisoned.shape != (n,):
            raise UndoorError(f"the truth has shape {self.poisoned.shape}, but there are {n} samples; give ({n},)")
        return Findings(
            provenance=Provenance(defense="perfect_removal", method_version=self.method_version, settings={}),
            samples=sample_table(evidence, self.poisoned.astype(np.float64), self.poisoned.astype(bool)),
            class_names=evidence.class_names,
            threshold=0.5,
        )

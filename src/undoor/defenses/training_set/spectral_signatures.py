"""Spectral Signatures (Tran, Li, Madry, "Spectral Signatures in Backdoor Attacks", NeurIPS 2018).

The poisoned images of a class shift its features along one direction, which the top right singular vector
of the centred features follows: what lies far out along it is removed.
"""

import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from undoor.defenses.training_set.per_class import principal_axes, rows_by_class, sample_table
from undoor.engine import map_items
from undoor.errors import UndoorError
from undoor.evidence import Evidence
from undoor.findings.findings import Findings
from undoor.findings.provenance import Provenance

POSTER_SHARE = 0.5
"""What Xiang, Miller, Kesidis (MLSP 2019) remove of a class when they compare."""

PERCENTILE_85_SHARE = 0.15
"""Removes what scores above the 85th percentile of its class."""


def authors_share(poisoned_share: float) -> float:
    """Return 1.5 · ε, at most 1: what Tran, Li and Madry remove of a class whose poisoned share is ε.

    The defender knows neither ε nor the class. This is an oracle: use it with ``classes``.
    """
    return min(1.0, 1.5 * poisoned_share)


def spectral_scores(features: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return ((z − mean) · v)² for (n, t) features z of one class (Algorithm 1), in squared feature units.

    v is the top right singular vector of the centred features; constant features score 0.
    """
    centred, _, axes = principal_axes(features)
    scores: NDArray[np.float64] = np.square(centred @ axes[:, :1]).sum(axis=1)
    return scores


def relative_to_cut(scores: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """Return the (n,) scores of one class as multiples of its cut: those above 1 are the top ``share``.

    The cut is the highest score that stays. What has the same score stays too, so that ties do not depend
    on the order of the samples; if the cut is 0, everything above it goes.
    """
    kept = len(scores) - int(round(share * len(scores), 6))
    cut = np.sort(scores)[kept - 1] if kept else 0.0
    # The smallest number that counts as a score keeps the ratio finite when the cut is 0.
    relative = scores / max(cut, 1e-12 * scores.max(), np.finfo(np.float64).tiny)
    # Equal features can differ in the last bits of their score, and would then depend on their place.
    return np.where(np.abs(relative - 1) < 1e-9, 1.0, relative)


@dataclass(frozen=True)
class SpectralSignatures:
    """The defence; ``SpectralSignatures()(evidence)`` returns its findings.

    The score of a sample is a multiple of the cut of its class, so that the threshold is 1 in every class.
    The same share of every treated class is flagged, clean or not: the verdict says nothing.

    Args:
        share: of each class that is removed: ``POSTER_SHARE``, ``PERCENTILE_85_SHARE`` or ``authors_share(ε)``.
        classes: names of the classes to treat; None treats all, as a defender must who does not know the
            target. Samples of other classes score 0.

    """

    method_version: ClassVar[int] = 1

    share: float = POSTER_SHARE
    classes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UndoorError(f"the share to remove of a class is {self.share}; give a number above 0, at most 1")

    def __call__(self, evidence: Evidence, /) -> Findings:
        """Score every sample within its class and flag the top share."""
        begun = time.perf_counter()
        members = rows_by_class(evidence, self.classes)
        features = (evidence.plain.features[rows] for rows in members.values())
        # In this process: a class takes milliseconds, less than it would take to send it to another one.
        scored = map_items(partial(_score, share=self.share), features, workers=1)
        score = np.zeros(len(evidence.labels))
        for rows, scores in zip(members.values(), scored, strict=True):
            score[rows] = scores
        return Findings(
            provenance=Provenance(
                defense="spectral_signatures",
                method_version=self.method_version,
                settings=asdict(self),
                seconds={"scores": time.perf_counter() - begun},
            ),
            samples=sample_table(evidence, score, score > 1),
            class_names=evidence.class_names,
            threshold=1.0,
        )


def _score(features: NDArray[np.float32], share: float) -> NDArray[np.float64]:
    return relative_to_cut(spectral_scores(features), share)

"""Spectral Signatures (Tran, Li, Madry, "Spectral Signatures in Backdoor Attacks", NeurIPS 2018).

The poisoned images of a class shift its features along one direction. The top right singular vector of the centred
features follows this direction, and the samples farthest out along it are removed.
"""

import time
from dataclasses import asdict, dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from undoor.defenses.training_set.per_class import principal_axes, rows_by_class, sample_table
from undoor.engine import one_thread
from undoor.errors import UndoorError
from undoor.evidence import Evidence
from undoor.findings.findings import Findings
from undoor.findings.provenance import Provenance

POSTER_SHARE = 0.5
"""The share of a class that Xiang, Miller, Kesidis (MLSP 2019) remove in their comparison."""

PERCENTILE_85_SHARE = 0.15
"""The share that removes all scores above the 85th percentile of a class."""


def authors_share(poisoned_share: float) -> float:
    """Return 1.5 · ε, at most 1: the share that Tran, Li and Madry remove of a class with the poisoned share ε.

    A defender knows neither ε nor the class, so this is an oracle: use it with ``classes``.
    """
    return min(1.0, 1.5 * poisoned_share)


def spectral_scores(features: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return ((z − mean) · v)², (n,), for the (n, t) features z of one class (Algorithm 1), in squared feature units.

    v is the top right singular vector of the centred features. Constant features score 0.
    """
    centred, _, axes = principal_axes(features)
    scores: NDArray[np.float64] = np.square(centred @ axes[:, :1]).sum(axis=1)
    return scores


def relative_to_cut(scores: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """Return the (n,) scores of one class as multiples of its cut. The top ``share`` of them is above 1.

    The cut is the highest score that is kept. Samples with the same score are kept too, so that the order of the
    samples does not decide between them. If the cut is 0, every higher score is removed.
    """
    kept = len(scores) - int(round(share * len(scores), 6))
    cut = np.sort(scores)[kept - 1] if kept else 0.0
    # If the cut is 0, a score that is tiny but not negligible replaces it, so that the ratio is finite.
    relative = scores / max(cut, 1e-12 * scores.max(), np.finfo(np.float64).tiny)
    # The scores of equal features can differ in their last bits, depending on the order of the samples.
    return np.where(np.abs(relative - 1) < 1e-9, 1.0, relative)


@dataclass(frozen=True)
class SpectralSignatures:
    """Flag the samples of every class that lie farthest out along the top singular vector of its features.

    The score of a sample is a multiple of the cut of its class, so that the threshold is 1 in every class. The same
    share of every treated class is flagged, whether it is poisoned or not: the verdict means nothing.

    Args:
        share: the share of each class that is flagged: ``POSTER_SHARE``, ``PERCENTILE_85_SHARE`` or
            ``authors_share(ε)``.
        classes: the names of the classes that are treated. None treats all, as a defender must who does not know the
            target class. Samples of other classes score 0.

    Raises:
        UndoorError: the share is out of range, or no class has a given name.

    >>> import numpy as np
    >>> import undoor
    >>> features = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
    >>> features[90:] += 20  # the poisoned images
    >>> plain = undoor.Outputs(features, np.ones((100, 1), np.float32))
    >>> evidence = undoor.Evidence(plain, {}, np.zeros(100, np.int64), np.arange(100).astype(str), ("bird",))
    >>> findings = undoor.SpectralSignatures(share=0.15)(evidence)
    >>> int(findings.flagged.sum()), bool(findings.flagged[90:].all())
    (15, True)

    """

    method_version: ClassVar[int] = 1

    share: float = POSTER_SHARE
    classes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UndoorError(f"the share to remove of a class is {self.share}; give a number above 0, at most 1")

    def __call__(self, evidence: Evidence, /) -> Findings:
        """Score every sample within its class and flag the top share."""
        started = time.perf_counter()
        score = np.zeros(len(evidence.labels))
        # The number of threads would change the last bits of the scores. One class takes only milliseconds.
        with one_thread():
            for rows in rows_by_class(evidence, self.classes).values():
                score[rows] = relative_to_cut(spectral_scores(evidence.plain.features[rows]), self.share)
        return Findings(
            provenance=Provenance(
                defense="spectral_signatures",
                method_version=self.method_version,
                settings=asdict(self),
                seconds={"scores": time.perf_counter() - started},
            ),
            samples=sample_table(evidence, score, score > 1),
            class_names=evidence.class_names,
            threshold=1.0,
        )

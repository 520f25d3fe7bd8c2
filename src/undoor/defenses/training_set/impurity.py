"""What a filter does to the decisions in a cluster, and statistics of it.

``impurity`` is that of Xiang, Miller, Kesidis (MLSP 2019). ``certain_share`` and ``confident_changes`` are ours.
"""

from dataclasses import dataclass
from math import log1p
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from undoor.defenses.training_set.per_class import rows_by_class
from undoor.evidence import Evidence, Outputs

CONFIDENCE = 0.99
"""The level of the two-sided interval whose lower end keeps small clusters from being flagged by chance."""


def impurity(kept: float, examined: float) -> float:
    """Return S = KL([1, 0] ‖ [p, 1 − p]) = −log p with p = kept / examined, in nats: the impurity of a cluster.

    If no decision is kept, half a decision is counted, so that S = log(2 · examined) is finite and grows with the
    evidence. A cluster without a decision to examine has S = 0.

    >>> round(impurity(kept=50, examined=100), 3)
    0.693

    """
    if examined == 0:
        return 0.0
    return float(np.log(examined / max(kept, 0.5)))


def certain_share(changed: int, examined: int) -> float:
    """Return the lower end of the 99 % interval of the share changed / examined (Clopper, Pearson, Biometrika 1934).

    It is 0 if nothing changed, and always below 1.
    """
    if changed == 0:
        return 0.0
    return float(betaincinv(changed, examined - changed + 1, (1 - CONFIDENCE) / 2))


def certain_impurity(changed: int, examined: int) -> float:
    """Return −log(1 − ``certain_share``), in nats: the impurity of which the counts leave no doubt."""
    return -log1p(-certain_share(changed, examined))


def confident_changes(
    before: NDArray[np.int64], after: NDArray[np.floating[Any]], labels: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Return which images, (N,) bool, the filter moves to another class with the usual confidence of that class.

    With the margin m(x) = highest − second highest logit of h(x), and k = f(h(x)) ≠ label:

        m(x) ≥ median{ m(x') : label(x') = f(x') = f(h(x')) = k }.

    A poisoned image without its trigger is an ordinary image of its source class, and half of those reach the median. A
    clean image that the filter spoils ends in doubt. A positive factor of all logits (a temperature, over-confidence)
    does not change the result. If the filter keeps no image in a class, no change into that class counts.

    Args:
        before: (N,) the decisions f(x) on the images.
        after: (N, K) the logits of the filtered images h(x).
        labels: (N,).

    """
    highest = np.sort(after.astype(np.float64), axis=1)[:, -2:]
    margins = highest[:, 1] - highest[:, 0]
    decisions = np.argmax(after, axis=1)
    kept = (before == labels) & (decisions == labels)
    kept_margins = [margins[kept & (labels == k)] for k in range(after.shape[1])]
    usual = np.array([np.median(in_class) if len(in_class) else np.inf for in_class in kept_margins])
    confident: NDArray[np.bool_] = (decisions != labels) & (margins >= usual[decisions])
    return confident


@dataclass(frozen=True, eq=False)
class ClassView:
    """The n images that are labelled as one class ω, and what the filter does to the decisions on them.

    Args:
        label: ω.
        class_names: the names of all classes.
        rows: (n,) int64, the rows of the images in the evidence.
        examined: (n,) bool, which decisions are examined.
        changed: (n,) bool, which decisions count as changed by the filter.
        after: (n,) int64, the decisions f(h(x)) on the filtered images.

    """

    label: int
    class_names: tuple[str, ...]
    rows: NDArray[np.int64]
    examined: NDArray[np.bool_]
    changed: NDArray[np.bool_]
    after: NDArray[np.int64]


def class_views(evidence: Evidence, filtered: Outputs, *, confident: bool, conditioned: bool) -> list[ClassView]:
    """Return a view of every class that has images, given the outputs on the filtered images.

    Decisions count as changed if f(h(x)) ≠ ω, or, with ``confident``, only for ``confident_changes``. All decisions are
    examined, or, with ``conditioned``, only those with f(x) = ω.
    """
    before, after, labels = evidence.plain.decisions, filtered.decisions, evidence.labels
    changed = confident_changes(before, filtered.logits, labels) if confident else after != labels
    examined = before == labels if conditioned else np.ones(len(labels), dtype=np.bool_)
    return [
        ClassView(label, evidence.class_names, rows, examined[rows], changed[rows], after[rows])
        for label, rows in rows_by_class(evidence).items()
    ]


def effect(view: ClassView, members: NDArray[np.bool_]) -> tuple[int, NDArray[np.int64]]:
    """Return how many decisions are examined in a cluster, (n,) bool, and to which classes the changed ones went."""
    examined = members & view.examined
    return int(examined.sum()), view.after[examined & view.changed]

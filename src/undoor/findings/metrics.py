"""How well a defense or an attack works: pure functions of decisions and truth."""

from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score


class DetectionCounts(TypedDict):
    """How well flags agree with the truth. A rate whose denominator is zero is None.

    The area under the ROC curve is None unless there are both poisoned and clean images.
    """

    tp: int
    fp: int
    fn: int
    tn: int
    tpr: float | None
    fpr_target_class: float | None
    fpr_all_classes: float | None
    precision: float | None
    auroc: float | None


def detection(
    flagged: NDArray[np.bool_],
    score: NDArray[np.floating],
    labels: NDArray[np.int64],
    poisoned: NDArray[np.bool_],
) -> DetectionCounts:
    """Count hits and false alarms.

    Two denominators of the false-positive rate are in use, and with ten classes they differ tenfold:
    ``fpr_target_class`` divides the flagged clean images of the classes that contain poisoned images by all clean
    images of these classes; ``fpr_all_classes`` divides all flagged clean images by all clean images.

    Args:
        flagged: (N,) bool, what the defense flagged.
        score: (N,), high = suspicious.
        labels: (N,) int64.
        poisoned: (N,) bool, the truth.

    """
    tp = int((flagged & poisoned).sum())
    fp = int((flagged & ~poisoned).sum())
    fn = int((~flagged & poisoned).sum())
    tn = int((~flagged & ~poisoned).sum())
    clean_of_target = np.isin(labels, np.unique(labels[poisoned])) & ~poisoned
    return {
        "tp": tp,
        "fp": fp,
        "fn": fn,
        "tn": tn,
        "tpr": _ratio(tp, tp + fn),
        "fpr_target_class": _ratio(int((flagged & clean_of_target).sum()), int(clean_of_target.sum())),
        "fpr_all_classes": _ratio(fp, fp + tn),
        "precision": _ratio(tp, tp + fp),
        "auroc": float(roc_auc_score(poisoned, score)) if tp + fn and fp + tn else None,
    }


def accuracy(decisions: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    """Return the share of decisions that equal the label; both are (N,)."""
    return float((decisions == labels).mean())


def attack_success_rate(decisions_on_triggered: NDArray[np.int64], target: int) -> float:
    """Return the share of triggered test images of the source classes that are classified as the target class."""
    return float((decisions_on_triggered == target).mean())


def _ratio(numerator: int, denominator: int) -> float | None:
    return numerator / denominator if denominator else None

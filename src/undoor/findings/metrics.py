"""How well it worked: pure functions of decisions and truth."""

from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score


class DetectionCounts(TypedDict):
    """Detection against the truth. A rate whose denominator is zero, and AUROC without both kinds, is None."""

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
    """Count hits and false alarms; all arguments are (N,).

    Two denominators of the false-positive rate are in use, and they differ tenfold on ten classes:
    ``fpr_target_class`` divides the clean flagged images of the classes that hold poison by the clean
    images of those classes, ``fpr_all_classes`` all clean flagged images by all clean images.
    """
    tp = int((flagged & poisoned).sum())
    fp = int((flagged & ~poisoned).sum())
    fn = int((~flagged & poisoned).sum())
    tn = int((~flagged & ~poisoned).sum())
    target = np.isin(labels, np.unique(labels[poisoned])) & ~poisoned
    return {
        "tp": tp,
        "fp": fp,
        "fn": fn,
        "tn": tn,
        "tpr": _ratio(tp, tp + fn),
        "fpr_target_class": _ratio(int((flagged & target).sum()), int(target.sum())),
        "fpr_all_classes": _ratio(fp, fp + tn),
        "precision": _ratio(tp, tp + fp),
        "auroc": float(roc_auc_score(poisoned, score)) if tp + fn and fp + tn else None,
    }


def accuracy(decisions: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    """Return the share of decisions that equal the label."""
    return float((decisions == labels).mean())


def attack_success_rate(decisions_on_triggered: NDArray[np.int64], target: int) -> float:
    """Return the share of triggered test images of the source classes that are classified as the target."""
    return float((decisions_on_triggered == target).mean())


def _ratio(numerator: int, denominator: int) -> float | None:
    return numerator / denominator if denominator else None

"""Findings as plain values, small enough to be kept for every cell and defence."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score, roc_curve

from undoor.experiments.store import Result, pack
from undoor.findings import Findings

ROC_POINTS = 200


def condensed(found: Findings, poisoned: NDArray[np.bool_]) -> Result:
    """Return findings as plain values: counts, clusters with their poisons, the ROC curve, and the mask."""
    samples = found.samples
    held = samples.assign(poisoned=poisoned).groupby(["label", "cluster"])["poisoned"].sum()
    clusters = [
        {**row, "poisoned": int(held.get((row["class"], row["cluster"]), 0))}
        for row in found.clusters.to_dict("records")
    ]
    score, target = samples["score"].to_numpy(), samples["label"].isin(samples["label"][poisoned])
    return {
        "defense": found.defense,
        "settings": dict(found.settings),
        "threshold": found.threshold,
        "flagged": int(found.flagged.sum()),
        "samples": len(samples),
        "classes_flagged": list(found.classes_flagged),
        "truth": found.truth,
        "auroc_target_class": float(roc_auc_score(poisoned[target], score[target])) if poisoned.any() else None,
        "clusters": [{name: _item(value) for name, value in row.items()} for row in clusters],
        "roc": _roc(score, poisoned),
        "mask": pack(found.flagged),
        "seconds": round(sum(found.seconds.values()), 3),
    }


def _item(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _roc(score: NDArray[np.floating], poisoned: NDArray[np.bool_]) -> list[list[float]]:
    """Return at most about ``ROC_POINTS`` points (FPR of all classes, TPR); none without both kinds."""
    if poisoned.all() or not poisoned.any():
        return []
    false, true, _ = roc_curve(poisoned, score)
    points = np.unique(np.linspace(0, len(false) - 1, ROC_POINTS).astype(int))
    return [[round(float(false[k]), 6), round(float(true[k]), 6)] for k in points]

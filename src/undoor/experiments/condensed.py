"""Findings as plain values, small enough to be kept for every cell and defence."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score, roc_curve

from undoor.experiments.store import Result, pack
from undoor.findings.findings import Findings

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
        "defense": found.provenance.defense,
        "settings": dict(found.provenance.settings),
        "threshold": found.threshold,
        "flagged": int(found.flagged.sum()),
        "samples": len(samples),
        "classes_flagged": list(found.classes_flagged),
        "truth": found.truth,
        "auroc_target_class": float(roc_auc_score(poisoned[target], score[target])) if poisoned.any() else None,
        "clusters": [{name: _item(value) for name, value in row.items()} for row in clusters],
        "missed": missed(found, poisoned),
        "roc": _roc(score, poisoned),
        "mask": pack(found.flagged),
        "seconds": round(sum(found.provenance.seconds.values()), 3),
    }


MIXED = 0.1
"""The share of poisons from which on an unflagged cluster counts as mixed."""


def missed(found: Findings, poisoned: NDArray[np.bool_]) -> dict[str, int]:
    """Return what the poisoned images are that were not flagged, as counts that add up.

    ``not_learned``: the network does not decide them as they are labelled. The others lie in a cluster that was not
    flagged: in ``poisoned_clusters`` more than half of the images are poisoned, in ``mixed_clusters`` at least a tenth,
    in ``clean_clusters`` fewer. ``no_cluster``: the method puts them in none.
    """
    samples = found.samples
    left = samples[poisoned & ~found.flagged]
    learned = left[left["predicted"] == left["label"]]
    share = samples.assign(poisoned=poisoned).groupby(["label", "cluster"])["poisoned"].mean()
    share_of_own = share.reindex(pd.MultiIndex.from_frame(learned[["label", "cluster"]])).to_numpy()
    known = pd.MultiIndex.from_frame(found.clusters[["class", "cluster"]])
    clustered = pd.MultiIndex.from_frame(learned[["label", "cluster"]]).isin(known)
    return {
        "not_learned": len(left) - len(learned),
        "poisoned_clusters": int((clustered & (share_of_own > 0.5)).sum()),
        "mixed_clusters": int((clustered & (share_of_own >= MIXED) & (share_of_own <= 0.5)).sum()),
        "clean_clusters": int((clustered & (share_of_own < MIXED)).sum()),
        "no_cluster": int((~clustered).sum()),
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

"""What a contender found, as plain values that are small enough to be kept for every contender of every cell."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score, roc_curve

from undoor.findings.findings import Findings
from undoor.findings.metrics import DetectionCounts

OUTCOME_VERSION = 1
"""Version of what is kept. Raise it when anything in this module, or how a contender is run, yields other values."""

ROC_POINTS = 200
"""About how many points of a ROC curve are kept."""

MIXED = 0.1
"""An unflagged cluster counts as mixed if at least this share of its images, and at most half of them, is poisoned."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a contender found on a victim. A part that the contender does not yield is None.

    Args:
        defense: name of the method.
        settings: settings of the method, as it reports them.
        seconds: how long it took; None if whoever runs it measures that.
        detected: whether it says that there is a backdoor.
        classes_flagged: names of the classes that it takes for the target class.
        samples: number of the images that it judged: training images, or queries in use.
        flagged: number of these images that it flagged.
        threshold: threshold of its score.
        truth: its hits and false alarms among these images.
        auroc_target_class: area under the ROC curve among the images that are labelled as the target class.
        roc: points (false-positive rate among all clean images, true-positive rate) of the ROC curve.
        mask: the flagged training images, as ``mask_to_text`` writes them.
        clusters: the clusters, each with its number of poisoned images.
        missed: why poisoned images were not flagged, as counts; see ``missed_poisons``.
        inspection: sources, p-values and norms that reverse engineering found.
        repair: pruned channels, and clean accuracy and attack success rate after pruning and of the repaired network.

    """

    defense: str
    settings: Mapping[str, Any]
    seconds: float | None = None
    detected: bool | None = None
    classes_flagged: Sequence[str] | None = None
    samples: int | None = None
    flagged: int | None = None
    threshold: float | None = None
    truth: DetectionCounts | None = None
    auroc_target_class: float | None = None
    roc: Sequence[Sequence[float]] | None = None
    mask: str | None = None
    clusters: Sequence[Mapping[str, Any]] | None = None
    missed: Mapping[str, int] | None = None
    inspection: Mapping[str, Any] | None = None
    repair: Mapping[str, Any] | None = None


def outcome_of(findings: Findings, poisoned: NDArray[np.bool_]) -> Outcome:
    """Return what a defense before training found, counted against the truth, (N,) bool."""
    samples = findings.samples
    poisons = samples.assign(poisoned=poisoned).groupby(["label", "cluster"])["poisoned"].sum()
    clusters = [
        {**row, "poisoned": int(poisons.get((row["class"], row["cluster"]), 0))}
        for row in findings.clusters.to_dict("records")
    ]
    score, target = samples["score"].to_numpy(), samples["label"].isin(samples["label"][poisoned])
    return Outcome(
        defense=findings.provenance.defense,
        settings=findings.provenance.settings,
        seconds=round(sum(findings.provenance.seconds.values()), 3),
        detected=bool(findings.flagged.any()),
        classes_flagged=findings.classes_flagged,
        samples=len(samples),
        flagged=int(findings.flagged.sum()),
        threshold=findings.threshold,
        truth=findings.against(poisoned).truth,
        auroc_target_class=float(roc_auc_score(poisoned[target], score[target])) if poisoned.any() else None,
        roc=_roc(score, poisoned),
        mask=mask_to_text(findings.flagged),
        clusters=[{str(name): _item(value) for name, value in row.items()} for row in clusters],
        missed=missed_poisons(findings, poisoned),
    )


def missed_poisons(findings: Findings, poisoned: NDArray[np.bool_]) -> dict[str, int]:
    """Return counts that sum to the number of poisoned images that were not flagged.

    ``not_learned``: the network does not decide them as they are labelled. All others lie in an unflagged cluster, in
    which more than half of the images (``poisoned_clusters``), at least a tenth (``mixed_clusters``) or fewer
    (``clean_clusters``) are poisoned, or the method puts them in no cluster (``no_cluster``).
    """
    samples = findings.samples
    unflagged = samples[poisoned & ~findings.flagged]
    learned = unflagged[unflagged["predicted"] == unflagged["label"]]
    cluster_of_learned = pd.MultiIndex.from_frame(learned[["label", "cluster"]])
    share = samples.assign(poisoned=poisoned).groupby(["label", "cluster"])["poisoned"].mean()
    poisoned_share = share.reindex(cluster_of_learned).to_numpy()
    clustered = cluster_of_learned.isin(pd.MultiIndex.from_frame(findings.clusters[["class", "cluster"]]))
    return {
        "not_learned": len(unflagged) - len(learned),
        "poisoned_clusters": int((clustered & (poisoned_share > 0.5)).sum()),
        "mixed_clusters": int((clustered & (poisoned_share >= MIXED) & (poisoned_share <= 0.5)).sum()),
        "clean_clusters": int((clustered & (poisoned_share < MIXED)).sum()),
        "no_cluster": int((~clustered).sum()),
    }


def mask_to_text(mask: NDArray[np.bool_]) -> str:
    """Return a mask as hexadecimal text, with eight samples a byte."""
    return np.packbits(mask).tobytes().hex()


def mask_from_text(text: str, n: int) -> NDArray[np.bool_]:
    """Return the mask of ``n`` samples that ``mask_to_text`` wrote."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=n)
    return bits.astype(np.bool_)


def _item(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _roc(score: NDArray[np.floating], poisoned: NDArray[np.bool_]) -> list[list[float]]:
    """Return about ``ROC_POINTS`` points of the ROC curve; none if all images are clean or all are poisoned."""
    if poisoned.all() or not poisoned.any():
        return []
    false, true, _ = roc_curve(poisoned, score)
    points = np.unique(np.linspace(0, len(false) - 1, ROC_POINTS).astype(int))
    return [[round(float(false[k]), 6), round(float(true[k]), 6)] for k in points]

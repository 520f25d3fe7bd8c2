"""Cluster Impurity (Xiang, Miller, Kesidis, IEEE MLSP 2019).

The penultimate features of the images labelled ω form clusters. Filter every image: a cluster of clean
images keeps its decisions, a cluster of poisoned ones loses its trigger and falls back to the source class.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from undoor.engine import map_items
from undoor.errors import UndoorError
from undoor.evidence import Evidence, Outputs
from undoor.findings import CLUSTER_COLUMNS, Findings
from undoor.mixture import Clustering, MixtureSettings, cluster

AUTHORS_THRESHOLD = 0.5
HIGHEST_THRESHOLD = 1.0
"""In nats: a cluster that keeps less than 1/e of its decisions is always flagged."""


def impurity(kept: float, examined: float) -> float:
    """Return S = KL([1, 0] ‖ [p, 1 − p]) = −log p, p = kept / examined, in nats.

    If no decision is kept, half a decision is counted, so that S stays finite and grows with the evidence:
    S = log(2 · examined). A cluster without a decision to examine has S = 0.
    """
    if examined == 0:
        return 0.0
    return float(np.log(examined / max(kept, 0.5)))


def calibrated_threshold(impurities: NDArray[np.float64]) -> float:
    """Return a threshold from the (C,) impurities of all clusters of all classes.

    Most clusters are clean. In log S, the threshold lies three robust standard deviations (1.4826 × the
    median absolute deviation) above the median, but not below the authors' 0.5 nor above
    ``HIGHEST_THRESHOLD``. Impurities under 0.05 count as 0.05: below that, differences say nothing.
    """
    logs = np.log(np.maximum(impurities, 0.05))
    middle = np.median(logs)
    spread = 1.4826 * np.median(np.abs(logs - middle))
    return float(np.clip(np.exp(middle + 3 * spread), AUTHORS_THRESHOLD, HIGHEST_THRESHOLD))


@dataclass(frozen=True)
class ClusterImpurity:
    """The defence; ``ClusterImpurity()(evidence)`` returns its findings.

    Args:
        threshold: a cluster whose impurity exceeds it is poisoned; None calibrates it on the clusters
            themselves (``calibrated_threshold``), 0.5 is the authors'.
        conditioned: count only images with f(x) = ω in p = P(f(h(x)) = ω | f(x) = ω), as the paper does;
            False counts every image, as the authors' code does.
        skip_single: leave classes whose mixture has one component alone, as the authors' code does.
        filter_name: which filter's outputs of the evidence to use; by default its first.
        mixture: how the mixtures are fitted.
        seed: of the mixtures.
        workers: local processes that fit the mixtures of different classes; None takes one per core.

    """

    threshold: float | None = None
    conditioned: bool = True
    skip_single: bool = False
    filter_name: str | None = None
    mixture: MixtureSettings = field(default_factory=MixtureSettings)
    seed: int = 0
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None and not self.threshold > 0:
            raise UndoorError(f"the threshold is {self.threshold}; give a number above 0")

    def __call__(self, evidence: Evidence, /) -> Findings:
        """Cluster every class, measure every cluster, flag the images of those above the threshold."""
        begun = time.perf_counter()
        filter_name, filtered = self._filtered(evidence)
        members = [np.flatnonzero(evidence.labels == k) for k in range(len(evidence.class_names))]
        clusterings = self._cluster(evidence.plain.features, members)
        clustered = time.perf_counter()

        assignments = np.zeros(len(evidence.labels), dtype=np.int64)
        rows: list[dict[str, Any]] = []
        for label, (mine, clustering) in enumerate(zip(members, clusterings, strict=True)):
            if clustering is None:
                continue
            assignments[mine] = clustering.assignments
            rows += [
                self._measure(evidence, filtered, label, number, mine[clustering.assignments == number])
                for number in range(clustering.components)
            ]
        clusters = pd.DataFrame(rows, columns=list(CLUSTER_COLUMNS[:-1]))
        single = clusters.groupby("class")["class"].transform("size") == 1
        candidate = ~single if self.skip_single else np.ones(len(clusters), dtype=bool)
        threshold = self.threshold or calibrated_threshold(clusters["impurity"].to_numpy())
        clusters["flagged"] = (clusters["impurity"] > threshold) & candidate

        measured = clusters.set_index(["class", "cluster"])
        of_sample = measured.loc[list(zip(evidence.labels, assignments, strict=True))]
        samples = pd.DataFrame(
            {
                "id": evidence.ids,
                "label": evidence.labels,
                "predicted": evidence.plain.decisions,
                "cluster": assignments,
                "score": of_sample["impurity"].to_numpy(),
                "flagged": of_sample["flagged"].to_numpy(),
            }
        )
        settings = {name: value for name, value in asdict(self).items() if name not in ("seed", "workers")}
        return Findings(
            "cluster_impurity",
            samples,
            clusters,
            evidence.class_names,
            threshold,
            {**settings, "filter_name": filter_name},
            self.seed,
            {"mixtures": clustered - begun, "impurity": time.perf_counter() - clustered},
        )

    def _filtered(self, evidence: Evidence) -> tuple[str, Outputs]:
        name = self.filter_name or next(iter(evidence.filtered), "")
        if name not in evidence.filtered:
            raise UndoorError(
                f"the evidence holds no outputs for the filter {name!r}; "
                f"it has {', '.join(evidence.filtered) or 'none'}"
            )
        return name, evidence.filtered[name]

    def _cluster(
        self, features: NDArray[np.float32], members: Sequence[NDArray[np.int64]]
    ) -> Sequence[Clustering | None]:
        present = [mine for mine in members if len(mine)]
        fit = partial(cluster, settings=self.mixture, seed=self.seed)
        fitted = iter(map_items(fit, [features[mine] for mine in present], self.workers))
        return [next(fitted) if len(mine) else None for mine in members]

    def _measure(
        self, evidence: Evidence, filtered: Outputs, label: int, number: int, rows: NDArray[np.int64]
    ) -> dict[str, Any]:
        examined = rows[evidence.plain.decisions[rows] == label] if self.conditioned else rows
        after = filtered.decisions[examined]
        destinations = np.bincount(after[after != label], minlength=len(evidence.class_names))
        changed = int(destinations.sum())
        return {
            "class": label,
            "class_name": evidence.class_names[label],
            "cluster": number,
            "size": len(rows),
            "examined": len(examined),
            "changed": changed / len(examined) if len(examined) else 0.0,
            "impurity": impurity(len(examined) - changed, len(examined)),
            "destinations": destinations.tolist(),
        }

"""Activation Clustering (Chen et al., "Detecting Backdoor Attacks on Deep Neural Networks by Activation Clustering").

The penultimate features of each class are reduced to a few dimensions and split in two by k-means; a rule
says whether the smaller part is poisoned.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.metrics.pairwise import euclidean_distances

from undoor.defenses.training_set.per_class import principal_axes, rows_by_class, sample_table
from undoor.engine import Workers, map_items
from undoor.errors import UndoorError
from undoor.evidence import Evidence
from undoor.findings.findings import Findings
from undoor.findings.provenance import Provenance
from undoor.findings.tables import CLUSTER_COLUMNS

Rule = Literal["smaller", "relative-size", "silhouette", "exre"]
Retrain = Callable[[NDArray[np.bool_]], NDArray[np.int64]]

THRESHOLDS: Mapping[Rule, float] = {"smaller": 0.5, "relative-size": 0.35, "silhouette": 0.10, "exre": 1.0}
"""The value of each rule that Chen et al. give; for "smaller" what makes a cluster the smaller one."""

SILHOUETTE_SAMPLE = 500
"""Samples a class whose silhouettes are averaged."""

TINY = np.finfo(np.float64).tiny


class Split(NamedTuple):
    """A class in two: for its (n,) rows whether they are in the smaller cluster, and the mean silhouette.

    Nothing is in the smaller cluster where there is none: constant features, one sample, or equal sizes.
    """

    smaller: NDArray[np.bool_]
    silhouette: float


def reduce_dimensions(features: NDArray[np.float32], dimensions: int, whiten: bool) -> NDArray[np.float64]:
    """Return (n, t) features in their first principal components, (n, d) with d ≤ ``dimensions`` and ≤ the rank.

    Whitened components have variance 1. FastICA rotates these, which changes no distance: k-means, which
    sees distances only, finds the same clusters without the rotation, and nothing has to converge.
    """
    centred, variances, axes = principal_axes(features)
    scale = np.sqrt(variances[:dimensions]) if whiten else 1.0
    reduced: NDArray[np.float64] = centred @ axes[:, :dimensions] / scale
    return reduced


def split(
    features: NDArray[np.float32], dimensions: int, whiten: bool, restarts: int, silhouettes: bool, seed: int
) -> Split:
    """Reduce the (n, t) features of one class and split them by k-means; the order of the rows does not matter."""
    n = len(features)
    # k-means draws its starts by row number: a canonical order makes them a function of the content.
    content = np.ascontiguousarray(features)
    order = np.argsort(content.view(np.dtype((np.void, content[0].nbytes))).ravel(), kind="stable")
    reduced = reduce_dimensions(features[order], dimensions, whiten)
    if reduced.shape[1] == 0:
        return Split(np.zeros(n, dtype=bool), 0.0)
    assigned = KMeans(2, n_init=restarts, random_state=seed).fit_predict(reduced)
    sizes = np.bincount(assigned, minlength=2)
    smaller = np.zeros(n, dtype=bool)
    if sizes[0] != sizes[1]:
        smaller[order] = assigned == np.argmin(sizes)
    return Split(smaller, mean_silhouette(reduced, assigned, seed) if silhouettes else 0.0)


def mean_silhouette(rows: NDArray[np.float64], assigned: NDArray[np.int32], seed: int) -> float:
    """Return the mean silhouette of two clusters of (n, d) rows, estimated on ``SILHOUETTE_SAMPLE`` of them.

    Each cluster gives its part of the sample, and at least one row: a plain draw can miss a small cluster. Their
    silhouettes are exact, as each is compared with all rows: (b − a) / max(a, b), with the mean distance a to the
    rows of its own cluster and b to those of the other; 0 for a cluster of one row.
    """
    n = len(rows)
    if n < 3:
        return 0.0
    generator = np.random.default_rng(seed)
    sizes = np.bincount(assigned, minlength=2)
    total = 0.0
    for number in range(2):
        mine = np.flatnonzero(assigned == number)
        drawn = generator.choice(mine, int(np.ceil(len(mine) * min(1.0, SILHOUETTE_SAMPLE / n))), replace=False)
        sums = euclidean_distances(rows[drawn], rows) @ np.eye(2)[assigned]
        own, other = sums[:, number] / max(sizes[number] - 1, 1), sums[:, 1 - number] / sizes[1 - number]
        if len(mine) > 1:
            total += len(mine) * float(np.mean((other - own) / np.maximum(np.maximum(own, other), TINY)))
    return total / n


def exclusionary_reclassification(
    retrain: Retrain, rows: NDArray[np.int64], label: int, n: int, classes: int
) -> dict[str, Any]:
    """Retrain without the ``rows`` of a cluster of class ``label`` (of n samples) and see what becomes of them.

    Returns the cluster's ``examined``, ``changed``, ``destinations`` and, as ``impurity``, log(p / l).
    """
    kept = np.ones(n, dtype=bool)
    kept[rows] = False
    decisions = retrain(kept)
    if decisions.shape != (n,):
        raise UndoorError(f"retrain returned decisions of shape {decisions.shape}; return ({n},), one a sample")
    destinations = np.bincount(decisions[rows], minlength=classes)
    own = int(destinations[label])
    destinations[label] = 0
    return {
        "examined": len(rows),
        "changed": 1 - own / len(rows),
        "destinations": destinations.tolist(),
        "impurity": float(np.log(max(int(destinations.max()), 0.5) / max(own, 0.5))),
    }


@dataclass(frozen=True)
class ActivationClustering:
    """The defence; ``ActivationClustering()(evidence)`` returns its findings.

    Only the smaller cluster of a class is ever flagged. The value that is compared with the threshold stands
    in the column ``impurity`` of its row and is the score of its samples; a larger cluster has 0 there.

    ================  ===============================================  =====================
    rule              value                                            flagged where above
    ================  ===============================================  =====================
    "smaller"         1 − (share of the class), always flagged         0.5
    "relative-size"   1 − (share of the class)                         1 − threshold
    "silhouette"      mean silhouette of the class                     threshold
    "exre"            log(p / l), in nats                              −log(threshold)
    ================  ===============================================  =====================

    ExRe (exclusionary reclassification) retrains without the cluster: l of its images are classified as
    their label, p as the other class that most of them go to. Where one is 0, half an image is counted.

    Args:
        rule: which clusters are poisoned.
        threshold: of the rule, as the paper counts it (``THRESHOLDS`` by default): the share below which a
            cluster is flagged, the silhouette above which, or the l / p below which it is.
        dimensions: the features are reduced to.
        whiten: scale them to variance 1, as FastICA does (the paper's choice); False is plain PCA.
        restarts: of k-means, of which the tightest is kept.
        classes: names of the classes to treat; None treats all, as a defender must who does not know the
            target. Samples of other classes score 0.
        retrain: for ExRe: trains on the kept rows, (N,) bool, and returns its decisions on all, (N,) int64.
        seed: of k-means and of the silhouettes' sample.
        workers: an engine, or threads, for the classes; None takes a thread per core.

    """

    method_version: ClassVar[int] = 1

    rule: Rule = "smaller"
    threshold: float | None = None
    dimensions: int = 10
    whiten: bool = True
    restarts: int = 3
    classes: tuple[str, ...] | None = None
    retrain: Retrain | None = field(default=None, repr=False, compare=False)
    seed: int = 0
    workers: Workers = 1

    def __post_init__(self) -> None:
        if self.rule not in THRESHOLDS:
            raise UndoorError(f"no rule is called {self.rule!r}; take {', '.join(THRESHOLDS)}")
        if self.rule == "exre" and self.retrain is None:
            raise UndoorError("the rule exre trains anew without each cluster; give retrain=, a function that does")
        if self.rule == "smaller" and self.threshold is not None:
            raise UndoorError("the rule smaller has no threshold; leave it out, or take relative-size")
        if self.threshold is not None and not self.threshold > 0:
            raise UndoorError(f"the threshold is {self.threshold}; give a number above 0")
        if self.dimensions < 1:
            raise UndoorError(f"the features cannot be reduced to {self.dimensions} dimensions; give 1 or more")

    def __call__(self, evidence: Evidence, /) -> Findings:
        """Split every class, apply the rule, flag the images of the poisoned clusters."""
        begun = time.perf_counter()
        members = rows_by_class(evidence, self.classes)
        work = partial(
            split,
            dimensions=self.dimensions,
            whiten=self.whiten,
            restarts=self.restarts,
            silhouettes=self.rule == "silhouette",
            seed=self.seed,
        )
        features = [evidence.plain.features[rows] for rows in members.values()]
        splits = map_items(work, features, self.workers)
        clustered = time.perf_counter()

        given = THRESHOLDS[self.rule] if self.threshold is None else self.threshold
        threshold = {"relative-size": 1 - given, "exre": float(np.log(1 / given))}.get(self.rule, given)
        n = len(evidence.labels)
        cluster, score, flagged = np.zeros(n, dtype=np.int64), np.zeros(n), np.zeros(n, dtype=bool)
        table: list[dict[str, Any]] = []
        for (label, rows), parted in zip(members.items(), splits, strict=True):
            cluster[rows] = parted.smaller
            larger, smaller = rows[~parted.smaller], rows[parted.smaller]
            table.append(_row(evidence, label, 0, larger))
            if len(smaller):
                row = _row(evidence, label, 1, smaller)
                row |= self._examine(evidence, label, smaller, len(rows), parted.silhouette)
                row["flagged"] = row["impurity"] > threshold
                table.append(row)
                score[smaller], flagged[smaller] = row["impurity"], row["flagged"]
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("retrain", "seed", "workers")}
        return Findings(
            provenance=Provenance(
                defense="activation_clustering",
                method_version=self.method_version,
                settings={**settings, "threshold": given},
                seed=self.seed,
                seconds={"clusters": clustered - begun, "rule": time.perf_counter() - clustered},
            ),
            samples=sample_table(evidence, score, flagged, cluster),
            clusters=pd.DataFrame(table, columns=list(CLUSTER_COLUMNS)),
            class_names=evidence.class_names,
            threshold=threshold,
        )

    def _examine(
        self, evidence: Evidence, label: int, rows: NDArray[np.int64], of_class: int, silhouette: float
    ) -> dict[str, Any]:
        """Return the columns of the smaller cluster that the rule fills."""
        if self.rule == "exre" and self.retrain is not None:
            return exclusionary_reclassification(
                self.retrain, rows, label, len(evidence.labels), len(evidence.class_names)
            )
        return {"impurity": silhouette if self.rule == "silhouette" else 1 - len(rows) / of_class}


AUTHORS_2020 = ActivationClustering("silhouette", threshold=0.4055, dimensions=2)
"""The variant that Cluster Impurity's authors compared with in 2020: PCA to two whitened dimensions."""


def _row(evidence: Evidence, label: int, number: int, rows: NDArray[np.int64]) -> dict[str, Any]:
    """Return the row of a cluster in which no decision was examined and nothing is flagged."""
    return {
        "class": label,
        "class_name": evidence.class_names[label],
        "cluster": number,
        "look": 1,
        "size": len(rows),
        "examined": 0,
        "changed": 0.0,
        "impurity": 0.0,
        "destinations": [0] * len(evidence.class_names),
        "flagged": False,
    }

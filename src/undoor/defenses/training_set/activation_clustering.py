"""Activation Clustering (Chen et al., "Detecting Backdoor Attacks on Deep Neural Networks by Activation Clustering").

The penultimate features of each class are reduced to a few dimensions and split in two by k-means. A rule decides
whether the smaller part is poisoned.
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

from undoor.defenses.training_set.per_class import cluster_row, principal_axes, rows_by_class, sample_table
from undoor.engine import Workers, map_items
from undoor.errors import UndoorError
from undoor.evidence import Evidence
from undoor.findings.findings import Findings
from undoor.findings.provenance import Provenance
from undoor.findings.tables import CLUSTER_COLUMNS
from undoor.mixtures.partitions import canonical_order

Rule = Literal["smaller", "relative-size", "silhouette", "exre"]
Retrain = Callable[[NDArray[np.bool_]], NDArray[np.int64]]

THRESHOLDS: Mapping[Rule, float] = {"smaller": 0.5, "relative-size": 0.35, "silhouette": 0.10, "exre": 1.0}
"""The threshold of each rule as Chen et al. give it. A cluster is the smaller one below a share of 0.5."""

SILHOUETTE_SAMPLE = 500
"""The silhouettes of this many samples per class are averaged."""

TINY = np.finfo(np.float64).tiny


class Split(NamedTuple):
    """A class in two: whether each of its (n,) rows is in the smaller cluster, and the mean silhouette.

    No row is in the smaller cluster if there is none: for constant features, a single sample, or equal sizes.
    """

    smaller: NDArray[np.bool_]
    silhouette: float


def reduce_dimensions(features: NDArray[np.float32], dimensions: int, whiten: bool) -> NDArray[np.float64]:
    """Return (n, t) features in their first principal components, (n, d); d is at most ``dimensions`` and the rank.

    Whitened components have variance 1. FastICA only rotates them, which changes no distance. k-means sees distances
    only, so that it finds the same clusters without the rotation, and nothing has to converge.
    """
    centred, variances, axes = principal_axes(features)
    scale = np.sqrt(variances[:dimensions]) if whiten else 1.0
    reduced: NDArray[np.float64] = centred @ axes[:, :dimensions] / scale
    return reduced


def split(
    features: NDArray[np.float32], dimensions: int, whiten: bool, restarts: int, silhouettes: bool, seed: int
) -> Split:
    """Reduce the (n, t) features of one class and split them by k-means. The order of the rows does not matter."""
    n = len(features)
    order = canonical_order(features)
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
    """Return the mean silhouette of two clusters of (n, d) rows, estimated from ``SILHOUETTE_SAMPLE`` rows.

    Each cluster contributes its share of the sample, and at least one row: a plain draw can miss a small cluster. The
    silhouettes of the drawn rows are exact, because each is compared with all rows: (b − a) / max(a, b), with the mean
    distance a to the rows of its own cluster and b to those of the other; 0 for a cluster of one row.
    """
    n = len(rows)
    if n < 3:
        return 0.0
    generator = np.random.default_rng(seed)
    sizes = np.bincount(assigned, minlength=2)
    total = 0.0
    for cluster in range(2):
        members = np.flatnonzero(assigned == cluster)
        drawn = generator.choice(members, int(np.ceil(len(members) * min(1.0, SILHOUETTE_SAMPLE / n))), replace=False)
        sums = euclidean_distances(rows[drawn], rows) @ np.eye(2)[assigned]
        a, b = sums[:, cluster] / max(sizes[cluster] - 1, 1), sums[:, 1 - cluster] / sizes[1 - cluster]
        if len(members) > 1:
            total += len(members) * float(np.mean((b - a) / np.maximum(np.maximum(a, b), TINY)))
    return total / n


def exclusionary_reclassification(
    retrain: Retrain, rows: NDArray[np.int64], label: int, n: int
) -> tuple[float, NDArray[np.int64]]:
    """Retrain without the ``rows`` of a cluster of class ``label``, out of n samples.

    Returns log(p / l), see ``ActivationClustering``, and the decisions on the cluster that are not ``label``.
    """
    kept = np.ones(n, dtype=bool)
    kept[rows] = False
    decisions = retrain(kept)
    if decisions.shape != (n,):
        raise UndoorError(f"retrain returned decisions of shape {decisions.shape}; return ({n},), one a sample")
    changed = decisions[rows][decisions[rows] != label]
    most = int(np.bincount(changed, minlength=1).max())
    return float(np.log(max(most, 0.5) / max(len(rows) - len(changed), 0.5))), changed


@dataclass(frozen=True)
class ActivationClustering:
    """Split every class in two and flag the smaller cluster if a rule says that it is poisoned.

    The larger cluster is never flagged. The value that is compared with the threshold is the score of the samples of
    the smaller cluster, and it is in the column ``impurity`` of the table of clusters; the larger cluster has 0.

    ================  ===============================================  =====================
    rule              value                                            flagged if above
    ================  ===============================================  =====================
    "smaller"         1 − (share of the class), always flagged         0.5
    "relative-size"   1 − (share of the class)                         1 − threshold
    "silhouette"      mean silhouette of the class                     threshold
    "exre"            log(p / l), in nats                              −log(threshold)
    ================  ===============================================  =====================

    ExRe (exclusionary reclassification) retrains without the cluster. l is the number of its images that are then
    classified as their label, p the number that go to the most frequent other class. A number of 0 counts as one half.

    Args:
        rule: which clusters are poisoned.
        threshold: of the rule, in the terms of the paper; None takes ``THRESHOLDS[rule]``. A cluster is flagged if its
            share is below it ("relative-size"), if the silhouette is above it, or if l / p is below it ("exre").
        dimensions: the number of dimensions to which the features are reduced.
        whiten: scale these to variance 1, as FastICA does (the paper's choice). False is plain PCA.
        restarts: of k-means. The tightest clustering is kept.
        classes: the names of the classes that are treated. None treats all, as a defender must who does not know the
            target class. Samples of other classes score 0.
        retrain: for ExRe, a function that trains on the kept rows, (N,) bool, and returns its decisions on all rows,
            (N,) int64.
        seed: of k-means and of the sample of silhouettes.
        workers: an engine, or a number of threads, for the classes. None takes one thread per core.

    Raises:
        UndoorError: a setting is out of range, or no class has a given name.

    >>> import numpy as np
    >>> import undoor
    >>> labels = np.repeat([0, 1], [100, 140])
    >>> centres = np.repeat([[0, 0], [9, 0], [9, 9]], [100, 100, 40], axis=0)  # the last 40 images are poisoned
    >>> features = (centres + np.random.default_rng(0).normal(size=(240, 2))).astype(np.float32)
    >>> plain = undoor.Outputs(features, np.eye(2, dtype=np.float32)[labels])
    >>> evidence = undoor.Evidence(plain, {}, labels, np.arange(240).astype(str), ("plane", "bird"))
    >>> findings = undoor.ActivationClustering("relative-size", whiten=False)(evidence)
    >>> findings.classes_flagged, int(findings.flagged.sum())
    (('bird',), 40)

    """

    method_version: ClassVar[int] = 2

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
        """Split every class, apply the rule, and flag the images of the poisoned clusters."""
        started = time.perf_counter()
        rows_of = rows_by_class(evidence, self.classes)
        split_class = partial(
            split,
            dimensions=self.dimensions,
            whiten=self.whiten,
            restarts=self.restarts,
            silhouettes=self.rule == "silhouette",
            seed=self.seed,
        )
        splits = map_items(split_class, [evidence.plain.features[rows] for rows in rows_of.values()], self.workers)
        clustered = time.perf_counter()

        in_paper = THRESHOLDS[self.rule] if self.threshold is None else self.threshold
        threshold = {"relative-size": 1 - in_paper, "exre": float(np.log(1 / in_paper))}.get(self.rule, in_paper)
        n = len(evidence.labels)
        cluster_of, score, flagged = np.zeros(n, dtype=np.int64), np.zeros(n), np.zeros(n, dtype=bool)
        clusters: list[dict[str, Any]] = []
        for (label, rows), (in_smaller, silhouette) in zip(rows_of.items(), splits, strict=True):
            smaller = rows[in_smaller]
            cluster_of[smaller] = 1
            clusters.append(cluster_row(evidence.class_names, label, 0, len(rows) - len(smaller)))
            if len(smaller):
                row = self._examine(evidence, label, smaller, len(rows), silhouette)
                row["flagged"] = row["impurity"] > threshold
                clusters.append(row)
                score[smaller], flagged[smaller] = row["impurity"], row["flagged"]
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("retrain", "seed", "workers")}
        return Findings(
            provenance=Provenance(
                defense="activation_clustering",
                method_version=self.method_version,
                settings={**settings, "threshold": in_paper},
                seed=self.seed,
                seconds={"clusters": clustered - started, "rule": time.perf_counter() - clustered},
            ),
            samples=sample_table(evidence, score, flagged, cluster_of),
            clusters=pd.DataFrame(clusters, columns=list(CLUSTER_COLUMNS)),
            class_names=evidence.class_names,
            threshold=threshold,
        )

    def _examine(
        self, evidence: Evidence, label: int, rows: NDArray[np.int64], class_size: int, silhouette: float
    ) -> dict[str, Any]:
        """Return the row of the smaller cluster in the table of clusters, with the value of the rule."""
        value = silhouette if self.rule == "silhouette" else 1 - len(rows) / class_size
        examined, changed = 0, np.zeros(0, dtype=np.int64)
        if self.rule == "exre" and self.retrain is not None:
            examined = len(rows)
            value, changed = exclusionary_reclassification(self.retrain, rows, label, len(evidence.labels))
        return cluster_row(evidence.class_names, label, 1, len(rows), examined, changed) | {"impurity": value}


AUTHORS_2020 = ActivationClustering("silhouette", threshold=0.4055, dimensions=2)
"""The variant with which the authors of Cluster Impurity compared in 2020: PCA to two whitened dimensions."""

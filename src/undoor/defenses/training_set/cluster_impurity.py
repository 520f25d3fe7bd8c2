"""Cluster Impurity (Xiang, Miller, Kesidis, IEEE MLSP 2019).

The penultimate features of the images labelled ω form clusters. A filter is applied to every image. A cluster of clean
images keeps its decisions; a cluster of poisoned images loses its trigger and falls back to the source class.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain, count
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd

from undoor.defenses.training_set.impurity import (
    ClassView,
    certain_impurity,
    certain_share,
    class_views,
    confident_changes,
    effect,
    impurity,
)
from undoor.defenses.training_set.per_class import cluster_row, rows_by_class, sample_table
from undoor.engine import Workers, map_items
from undoor.errors import UndoorError
from undoor.evidence import Evidence, Outputs
from undoor.findings.findings import Findings
from undoor.findings.provenance import Provenance
from undoor.findings.tables import CLUSTER_COLUMNS, curve_table
from undoor.mixtures.sweep import Clustering, MixtureSettings, cluster, cluster_classes

__all__ = ["EXECUTION", "THRESHOLDS", "ClusterImpurity", "certain_share", "confident_changes", "impurity"]

Decision = Literal["confident", "plain"]

THRESHOLDS: dict[Decision, float] = {"confident": 0.15, "plain": 0.5}
"""In nats. 0.5 is the threshold of the authors' code. 0.15 is exceeded when more than 1 − e^−0.15, a seventh, of the
decisions in a cluster change with confidence. As half of all images reach the median margin, that is the case when the
filter gives more than about a quarter of the images back to another class."""

EXECUTION = ("workers", "device", "on_mixture")
"""The fields of the defense that say how it is computed. They do not change its findings."""


@dataclass(frozen=True, eq=False)
class Look:
    """What one look at a class shows: its clusters, with a row of the table of clusters for each of them."""

    view: ClassView
    number: int
    clustering: Clustering
    clusters: list[dict[str, Any]]

    @property
    def flagged(self) -> bool:
        """Whether any cluster is flagged."""
        return any(row["flagged"] for row in self.clusters)


@dataclass(frozen=True)
class ClusterImpurity:
    """Flag the clusters of a class whose decisions change when the images are filtered.

    Let q be the share of the images in a cluster, among those that are decided as labelled, whose decision changes.

    With the decision "plain", the paper's, the impurity is S = −log(1 − q), and a cluster with S > 0.5 is flagged. How
    many decisions a clean cluster keeps depends on the network, the filter and the class: clean sets with S > 0.5
    occur.

    With the decision "confident", the default, q counts only ``confident_changes`` and is taken at the lower end of its
    99 % interval, S = −log(1 − ``certain_share``). A cluster with S > 0.15 is flagged. This needs no knowledge of the
    attack and does not depend on the scale of the logits.

    A poisoned cluster must be large to pay for a covariance of all features; BIC does not see smaller clusters. A class
    in which nothing is flagged is therefore looked at a second time, in the few directions that separate its parts best
    (``undoor.mixtures.reduction``). All features come first because they separate large clusters better.

    Args:
        decision: "confident" or "plain".
        threshold: a cluster is poisoned if its impurity exceeds this many nats. None takes ``THRESHOLDS[decision]``.
        conditioned: examine only images with f(x) = ω, p = P(f(h(x)) = ω | f(x) = ω), as the paper does. False examines
            every image, as the authors' code does.
        skip_single: never flag a class whose mixture has one component, as the authors' code does.
        second_look: whether classes in which nothing is flagged are looked at again, in few directions.
        filter_name: the filter whose outputs in the evidence are used. None takes the first.
        mixture: how the mixtures are fitted.
        seed: of the mixtures.
        workers: an engine, or a number of threads, for the classes. None takes one thread per core.
        device: on "cuda", the mixtures of all classes are fitted at once.
        on_mixture: called with the numbers of mixtures that are done and of all mixtures.

    Raises:
        UndoorError: a setting is out of range, or the evidence holds no outputs for the filter.

    >>> import numpy as np
    >>> import undoor
    >>> labels = np.repeat([0, 1], [100, 140])  # and the last 40 images are poisoned
    >>> centres = np.repeat([[0, 0], [9, 0], [9, 9]], [100, 100, 40], axis=0)
    >>> features = (centres + np.random.default_rng(0).normal(size=(240, 2))).astype(np.float32)
    >>> plain, filtered = (
    ...     undoor.Outputs(features, np.eye(2, dtype=np.float32)[decisions])
    ...     for decisions in (labels, np.repeat([0, 1, 0], [100, 100, 40]))
    ... )
    >>> ids = np.arange(240).astype(str)
    >>> evidence = undoor.Evidence(plain, {"average:2": filtered}, labels, ids, ("plane", "bird"))
    >>> findings = undoor.ClusterImpurity()(evidence)
    >>> findings.verdict, findings.classes_flagged, int(findings.flagged.sum())
    ('poisoned', ('bird',), 40)

    """

    method_version: ClassVar[int] = 1

    decision: Decision = "confident"
    threshold: float | None = None
    conditioned: bool = True
    skip_single: bool = False
    second_look: bool = True
    filter_name: str | None = None
    mixture: MixtureSettings = field(default_factory=MixtureSettings)
    seed: int = 0
    workers: Workers = None
    device: str = "cpu"
    on_mixture: Callable[[int, int], None] | None = None

    @classmethod
    def poster(cls, **options: Any) -> Self:
        """Return the defense as the paper prints it: plain decisions, threshold 0.5, one look at all features."""
        return cls(
            **{"decision": "plain", "second_look": False, "mixture": MixtureSettings(dimensions=None), **options}
        )

    @classmethod
    def authors_code(cls, **options: Any) -> Self:
        """Return the defense as the authors' code computes it: ``poster`` on all images, single clusters skipped."""
        return cls.poster(**{"conditioned": False, "skip_single": True, **options})

    def __post_init__(self) -> None:
        if self.decision not in THRESHOLDS:
            raise UndoorError(f"there is no decision {self.decision!r}; choose {' or '.join(THRESHOLDS)}")
        if self.threshold is not None and not self.threshold > 0:
            raise UndoorError(f"the threshold is {self.threshold}; give a number above 0")

    def __call__(self, evidence: Evidence, /) -> Findings:
        """Cluster every class, see what the filter does to each cluster, and flag the images of impure clusters."""
        started = time.perf_counter()
        filter_name, filtered = self._filtered(evidence)
        mixtures = self._mixtures(evidence)
        clusterings = self._clusterings(evidence, mixtures)
        clustered = time.perf_counter()
        views = class_views(evidence, filtered, confident=self.decision == "confident", conditioned=self.conditioned)
        looks_by_class = [self._look_at(*of_class) for of_class in zip(views, *clusterings, strict=True)]
        # The second look counts only where it flags something.
        decisive = [looks[-1] if looks[-1].flagged else looks[0] for looks in looks_by_class]
        settings = asdict(
            replace(self, filter_name=filter_name, workers=None, on_mixture=None)
        )  # the last two cannot be copied
        return Findings(
            provenance=Provenance(
                defense="cluster_impurity",
                method_version=self.method_version,
                settings={name: value for name, value in settings.items() if name not in ("seed", *EXECUTION)},
                seed=self.seed,
                seconds={"mixtures": clustered - started, "impurity": time.perf_counter() - clustered},
            ),
            samples=_samples(evidence, decisive),
            clusters=pd.DataFrame([row for look in decisive for row in look.clusters], columns=list(CLUSTER_COLUMNS)),
            class_names=evidence.class_names,
            threshold=self._threshold,
            curves=_curves(looks_by_class, mixtures, evidence.plain.features.shape[1]),
        )

    @property
    def _threshold(self) -> float:
        return self.threshold or THRESHOLDS[self.decision]

    def _filtered(self, evidence: Evidence) -> tuple[str, Outputs]:
        """Return the name of the filter and the outputs on the filtered images."""
        name = self.filter_name or next(iter(evidence.filtered), "")
        if name not in evidence.filtered:
            raise UndoorError(
                f"the evidence holds no outputs for the filter {name!r}; "
                f"it has {', '.join(evidence.filtered) or 'none'}"
            )
        return name, evidence.filtered[name]

    def _mixtures(self, evidence: Evidence) -> list[MixtureSettings]:
        """Return how the mixtures of each look are fitted. There is a second look if it can see something else."""
        few, t = replace(self.mixture, dimensions="few"), evidence.plain.features.shape[1]
        sizes = np.bincount(evidence.labels).tolist()
        if self.second_look and any(few.dimensions_of(n, t) < self.mixture.dimensions_of(n, t) for n in sizes if n):
            return [self.mixture, few]
        return [self.mixture]

    def _clusterings(self, evidence: Evidence, mixtures: Sequence[MixtureSettings]) -> list[list[Clustering]]:
        """Return the clusterings of all classes for every look. They depend on the features alone."""
        rows_of = rows_by_class(evidence).values()
        done, total, report = count(1), len(mixtures) * len(rows_of), self.on_mixture or (lambda *_: None)
        report(0, total)
        clusterings = []
        for mixture in mixtures:
            # One class after another: the features of all classes may not fit into memory at once.
            features = (evidence.plain.features[rows] for rows in rows_of)
            if self.device == "cpu":
                fit = partial(cluster, settings=mixture, seed=self.seed)
                clusterings.append(map_items(fit, features, self.workers, lambda: report(next(done), total)))
            else:
                clusterings.append(cluster_classes(list(features), mixture, self.seed, self.device, self.workers))
        return clusterings

    def _look_at(self, view: ClassView, all_features: Clustering, *few_directions: Clustering) -> list[Look]:
        """Look at a class with all features and, if nothing is flagged, once more in few directions."""
        first = self._look(view, 1, all_features)
        return [first] if first.flagged else [first, *(self._look(view, 2, clusters) for clusters in few_directions)]

    def _look(self, view: ClassView, number: int, clustering: Clustering) -> Look:
        """Measure the impurity of every cluster of a class and decide whether it is flagged."""
        skipped = self.skip_single and clustering.components == 1
        rows = []
        for component in range(clustering.components):
            members = clustering.assignments == component
            examined, destinations = effect(view, members)
            s = self._impurity(len(destinations), examined)
            row = cluster_row(view.class_names, view.label, component, int(members.sum()), examined, destinations)
            rows.append({**row, "look": number, "impurity": s, "flagged": s > self._threshold and not skipped})
        return Look(view, number, clustering, rows)

    def _impurity(self, changed: int, examined: int) -> float:
        if self.decision == "confident":
            return certain_impurity(changed, examined)
        return impurity(examined - changed, examined)


def _samples(evidence: Evidence, looks: Sequence[Look]) -> pd.DataFrame:
    """Return the table of samples: every sample has the impurity and the flag of its cluster."""
    n = len(evidence.labels)
    cluster_of, score, flagged = np.zeros(n, dtype=np.int64), np.zeros(n), np.zeros(n, dtype=np.bool_)
    for look in looks:
        rows, components = look.view.rows, look.clustering.assignments
        cluster_of[rows] = components
        score[rows] = np.array([row["impurity"] for row in look.clusters])[components]
        flagged[rows] = np.array([row["flagged"] for row in look.clusters])[components]
    return sample_table(evidence, score, flagged, cluster_of)


def _curves(looks_by_class: Sequence[Sequence[Look]], mixtures: Sequence[MixtureSettings], t: int) -> pd.DataFrame:
    """Return the table of criteria, for every look at every class."""
    rows = []
    for look in chain.from_iterable(looks_by_class):
        dimensions = mixtures[look.number - 1].dimensions_of(len(look.view.rows), t)
        rows += [(look.view.label, look.number, dimensions, *point) for point in enumerate(look.clustering.criteria, 1)]
    return curve_table(rows)

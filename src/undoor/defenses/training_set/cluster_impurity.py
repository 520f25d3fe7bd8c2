"""Cluster Impurity (Xiang, Miller, Kesidis, IEEE MLSP 2019).

The penultimate features of the images labelled ω form clusters. Filter every image: a cluster of clean
images keeps its decisions, a cluster of poisoned ones loses its trigger and falls back to the source class.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import count
from math import log1p
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import betaincinv

from undoor.engine import Workers, map_items
from undoor.errors import UndoorError
from undoor.evidence import Evidence, Outputs
from undoor.findings.findings import Findings
from undoor.findings.provenance import Provenance
from undoor.findings.tables import CLUSTER_COLUMNS, curve_table
from undoor.mixtures.sweep import Clustering, MixtureSettings, cluster, cluster_classes

Decision = Literal["confident", "plain"]
Clusterings = Sequence[Clustering | None]
Find = Callable[[MixtureSettings], Clusterings]

THRESHOLDS: dict[Decision, float] = {"confident": 0.15, "plain": 0.5}
"""In nats. 0.5 is the authors'. 0.15 is passed when more than 1 − e^−0.15, a seventh, of a cluster's decisions change
with confidence: as half of all images reach the median, when more than a quarter of its images are given back."""

EXECUTION = ("workers", "device", "on_mixture")
"""Fields of the defence that say how it is computed; what is found does not depend on them."""

CONFIDENCE = 0.99
"""Of the two-sided interval whose lower end keeps small clusters from being flagged by chance."""


def impurity(kept: float, examined: float) -> float:
    """Return S = KL([1, 0] ‖ [p, 1 − p]) = −log p, p = kept / examined, in nats.

    If no decision is kept, half a decision is counted, so that S stays finite and grows with the evidence:
    S = log(2 · examined). A cluster without a decision to examine has S = 0.
    """
    if examined == 0:
        return 0.0
    return float(np.log(examined / max(kept, 0.5)))


def certain_share(changed: int, examined: int) -> float:
    """Return the lower end of the 99 % interval (Clopper, Pearson, Biometrika 1934) of the share changed / examined.

    It is 0 if nothing changed, and always below 1.
    """
    if changed == 0:
        return 0.0
    return float(betaincinv(changed, examined - changed + 1, (1 - CONFIDENCE) / 2))


def confident_changes(
    before: NDArray[np.int64], after: NDArray[np.floating[Any]], labels: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Return (N,) bool: which images the filter gives to another class with that class's usual confidence.

    With the margin m(x) = highest − second highest logit of h(x), and k = f(h(x)) ≠ label:

        m(x) ≥ median{ m(x') : label(x') = f(x') = f(h(x')) = k }.

    A poisoned image without its trigger is an ordinary image of its source class, and half of those reach the
    median; a clean image that the filter spoils ends in doubt. Any positive factor of the logits (a temperature,
    over-confidence) leaves the result as it is. No change into a class counts of which the filter keeps no image.

    Args:
        before: (N,) f(x), the decisions on the images.
        after: (N, K) the logits of h(x), the filtered images.
        labels: (N,).

    """
    highest = np.sort(after.astype(np.float64), axis=1)[:, -2:]
    margins = highest[:, 1] - highest[:, 0]
    decisions = np.argmax(after, axis=1)
    kept = (before == labels) & (decisions == labels)
    usual = np.array(
        [np.median(margins[mine]) if (mine := kept & (labels == k)).any() else np.inf for k in range(after.shape[1])]
    )
    confident: NDArray[np.bool_] = (decisions != labels) & (margins >= usual[decisions])
    return confident


@dataclass(frozen=True)
class ClusterImpurity:
    """The defence; ``ClusterImpurity()(evidence)`` returns its findings.

    Of the images of a cluster that are decided as labelled, a share q changes its decision under the filter.

    "plain", the paper's decision: S = −log(1 − q), flagged above 0.5. Which share of its decisions a clean cluster
    keeps depends on the network, the filter and the class; clean sets with S > 0.5 occur.

    "confident", the default: q counts only ``confident_changes`` and is taken at the lower end of its 99 % interval,
    S = −log(1 − ``certain_share``), flagged above 0.15. It knows nothing of the attack and does not depend on the
    scale of the logits.

    A poisoned cluster must be large to pay for a covariance of all features; BIC is blind for smaller ones. A class in
    which nothing is flagged is therefore looked at a second time, in the few directions that separate its parts best
    (``undoor.mixtures.reduction``), and what is flagged there is. Large clusters are told apart better with all
    features.

    Args:
        decision: "confident" or "plain".
        threshold: a cluster whose impurity exceeds it is poisoned; None takes the decision's own.
        conditioned: examine only images with f(x) = ω, p = P(f(h(x)) = ω | f(x) = ω), as the paper does;
            False examines every image, as the authors' code does.
        skip_single: leave classes whose mixture has one component alone, as the authors' code does.
        second_look: whether classes in which nothing is flagged are looked at again, in few directions.
        filter_name: which filter's outputs of the evidence to use; by default its first.
        mixture: how the mixtures are fitted.
        seed: of the mixtures.
        workers: an engine, or threads, that fit the mixtures of different classes; None takes a thread per core.
        device: on "cuda" the mixtures of all classes are fitted at once; by default the processor's cores share them.
        on_mixture: told how many of how many mixtures are fitted.

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
        """Return the defence as the paper's authors print it: plain S, threshold 0.5, one look at all features."""
        given = {"decision": "plain", "second_look": False, "mixture": MixtureSettings(dimensions=None)}
        return cls(**{**given, **options})

    @classmethod
    def authors_code(cls, **options: Any) -> Self:
        """Return the defence as the authors' code computes it: ``poster``, of all images, single clusters skipped."""
        return cls.poster(**{"conditioned": False, "skip_single": True, **options})

    def __post_init__(self) -> None:
        if self.decision not in THRESHOLDS:
            raise UndoorError(f"there is no decision {self.decision!r}; choose {' or '.join(THRESHOLDS)}")
        if self.threshold is not None and not self.threshold > 0:
            raise UndoorError(f"the threshold is {self.threshold}; give a number above 0")

    def __call__(self, evidence: Evidence, /, find: Find | None = None) -> Findings:
        """Cluster every class, measure every cluster, flag the images of those above the threshold.

        ``find``: returns what ``cluster`` does with other settings of the mixture. The mixtures cost nearly all of the
        time; whoever has them of this evidence gives them.
        """
        begun = time.perf_counter()
        filter_name, filtered = self._filtered(evidence)
        mixtures = self._mixtures(evidence)
        find = find or self._finder(evidence, len(mixtures))
        looks = [(mixture, find(mixture)) for mixture in mixtures]
        clustered = time.perf_counter()
        changed = self._changed(evidence, filtered)

        assignments = np.zeros(len(evidence.labels), dtype=np.int64)
        table: list[dict[str, Any]] = []
        curves: list[tuple[int, int, int, int, float]] = []
        for label, mine in enumerate(_members(evidence)):
            rows: list[dict[str, Any]] = []
            for look, (mixture, clusterings) in enumerate(looks, 1):
                clustering = clusterings[label]
                if clustering is None or any(row["flagged"] for row in rows):
                    break
                d = mixture.dimensions_of(len(mine), evidence.plain.features.shape[1])
                curves += [(label, look, d, k, criterion) for k, criterion in enumerate(clustering.criteria, 1)]
                seen = self._look(evidence, filtered, changed, label, mine, clustering)
                seen = [{**row, "look": look} for row in seen]
                if not rows or any(row["flagged"] for row in seen):
                    rows, assignments[mine] = seen, clustering.assignments
            table += rows
        clusters = pd.DataFrame(table, columns=list(CLUSTER_COLUMNS))
        threshold = self.threshold or THRESHOLDS[self.decision]

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
        kept = asdict(replace(self, workers=None, on_mixture=None))  # neither is to be copied
        settings = {name: value for name, value in kept.items() if name not in ("seed", *EXECUTION)}
        return Findings(
            provenance=Provenance(
                defense="cluster_impurity",
                method_version=self.method_version,
                settings={**settings, "filter_name": filter_name},
                seed=self.seed,
                seconds={"mixtures": clustered - begun, "impurity": time.perf_counter() - clustered},
            ),
            samples=samples,
            clusters=clusters,
            class_names=evidence.class_names,
            threshold=threshold,
            curves=curve_table(curves),
        )

    def _mixtures(self, evidence: Evidence) -> list[MixtureSettings]:
        """Return how the mixtures of each look are fitted; a second look is taken where it can see something else."""
        few, t = replace(self.mixture, dimensions="few"), evidence.plain.features.shape[1]
        sizes = np.bincount(evidence.labels).tolist()
        if self.second_look and any(few.dimensions_of(n, t) < self.mixture.dimensions_of(n, t) for n in sizes if n):
            return [self.mixture, few]
        return [self.mixture]

    def _finder(self, evidence: Evidence, looks: int) -> Find:
        """Return what fits the mixtures of a look and tells how many of all are done."""
        total, done, tell = looks * len(np.unique(evidence.labels)), count(1), self.on_mixture
        if tell is None:
            return partial(self.cluster, evidence)
        tell(0, total)
        return partial(self.cluster, evidence, on_class=lambda: tell(next(done), total))

    def _filtered(self, evidence: Evidence) -> tuple[str, Outputs]:
        name = self.filter_name or next(iter(evidence.filtered), "")
        if name not in evidence.filtered:
            raise UndoorError(
                f"the evidence holds no outputs for the filter {name!r}; "
                f"it has {', '.join(evidence.filtered) or 'none'}"
            )
        return name, evidence.filtered[name]

    def cluster(
        self, evidence: Evidence, mixture: MixtureSettings, on_class: Callable[[], None] = lambda: None
    ) -> Clusterings:
        """Return the mixture of every class, None for a class without images; the filter plays no part in it.

        ``on_class`` is called after every class, where they are fitted one by one.
        """
        members = _members(evidence)
        # One class after another: the features of all may not fit into memory at once.
        present = (evidence.plain.features[mine] for mine in members if len(mine))
        if self.device == "cpu":
            fit = partial(cluster, settings=mixture, seed=self.seed)
            fitted = iter(map_items(fit, present, self.workers, on_class))
        else:
            fitted = iter(cluster_classes(list(present), mixture, self.seed, self.device, self.workers))
        return [next(fitted) if len(mine) else None for mine in members]

    def _look(
        self,
        evidence: Evidence,
        filtered: Outputs,
        changed: NDArray[np.bool_],
        label: int,
        mine: NDArray[np.int64],
        clustering: Clustering,
    ) -> list[dict[str, Any]]:
        """Return the rows of the clusters of a class, whose images are ``mine``."""
        threshold = self.threshold or THRESHOLDS[self.decision]
        skipped = self.skip_single and clustering.components == 1
        rows = []
        for number in range(clustering.components):
            row = self._measure(evidence, filtered, changed, label, number, mine[clustering.assignments == number])
            rows.append({**row, "flagged": row["impurity"] > threshold and not skipped})
        return rows

    def _changed(self, evidence: Evidence, filtered: Outputs) -> NDArray[np.bool_]:
        if self.decision == "confident":
            return confident_changes(evidence.plain.decisions, filtered.logits, evidence.labels)
        plain: NDArray[np.bool_] = filtered.decisions != evidence.labels
        return plain

    def _impurity(self, changed: int, examined: int) -> float:
        if self.decision == "confident":
            return -log1p(-certain_share(changed, examined))
        return impurity(examined - changed, examined)

    def _measure(
        self,
        evidence: Evidence,
        filtered: Outputs,
        changed: NDArray[np.bool_],
        label: int,
        number: int,
        rows: NDArray[np.int64],
    ) -> dict[str, Any]:
        examined = rows[evidence.plain.decisions[rows] == label] if self.conditioned else rows
        n, away = len(examined), examined[changed[examined]]
        return {
            "class": label,
            "class_name": evidence.class_names[label],
            "cluster": number,
            "size": len(rows),
            "examined": n,
            "changed": len(away) / n if n else 0.0,
            "impurity": self._impurity(len(away), n),
            "destinations": np.bincount(filtered.decisions[away], minlength=len(evidence.class_names)).tolist(),
        }


def _members(evidence: Evidence) -> list[NDArray[np.int64]]:
    return [np.flatnonzero(evidence.labels == k) for k in range(len(evidence.class_names))]

"""The contenders that act on a training set, before a network is trained for use."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from undoor.defenses.post_training import ReverseEngineering
from undoor.defenses.training_set.activation_clustering import AUTHORS_2020, ActivationClustering
from undoor.defenses.training_set.cluster_impurity import ClusterImpurity
from undoor.defenses.training_set.controls import PerfectRemoval, RandomRemoval
from undoor.defenses.training_set.pattern_cleansing import PatternCleansing
from undoor.defenses.training_set.spectral_signatures import PERCENTILE_85_SHARE, SpectralSignatures, authors_share
from undoor.experiments.contenders import Case, Contender, seeded
from undoor.experiments.outcome import Outcome, outcome_of
from undoor.filters import Average, Filter, Median, Noise, Quantise

CI, RANDOM = "CI", "random removal"

NEEDS = "the training set, a network trained on it"


def flag(method: Any, case: Case, image_filter: Filter) -> Outcome:
    """Run a training-set defense on the evidence with an image filter."""
    return outcome_of(method(case.evidence(image_filter)), case.poisoned)


def on_training_set(
    name: str,
    method: type[Any],
    build: Callable[[Case], Any] | None = None,
    *,
    needs: str = NEEDS,
    image_filter: Filter = Average(),  # noqa: B008 - frozen
    **roles: Any,
) -> Contender:
    """Return a contender before training.

    Without ``build`` the method has its default settings. ``roles`` are further arguments of ``Contender``.
    """
    run = partial(flag, image_filter=image_filter)
    build = build or seeded(method)
    return Contender(name, "before training", needs, method, build, run, image_filter=image_filter, **roles)


_ci = partial(on_training_set, method=ClusterImpurity)
_ss = partial(on_training_set, method=SpectralSignatures)
_ac = partial(on_training_set, method=ActivationClustering)

CONTENDERS: tuple[Contender, ...] = (
    _ci(CI, retrain=True),
    _ci("CI, one look", build=seeded(ClusterImpurity, second_look=False)),
    _ci("CI, poster", build=seeded(ClusterImpurity.poster)),
    _ci("CI, authors' code", build=seeded(ClusterImpurity.authors_code)),
    _ss("SS", build=lambda _: SpectralSignatures(), retrain=True),
    _ss("SS, 85th percentile", build=lambda _: SpectralSignatures(PERCENTILE_85_SHARE)),
    _ac("AC", build=seeded(ActivationClustering, rule="relative-size"), retrain=True),
    _ac("AC, smaller cluster", build=seeded(ActivationClustering, rule="smaller")),
    _ac("AC, silhouette", build=seeded(ActivationClustering, rule="silhouette")),
    _ac("AC, PCA", build=seeded(ActivationClustering, rule="relative-size", whiten=False)),
    _ac("AC, 2020 variant", build=lambda case: replace(AUTHORS_2020, seed=case.seed)),
    on_training_set(
        RANDOM,
        RandomRemoval,
        lambda case: RandomRemoval(case.flagged.get(CI, 0), case.seed),
        needs="nothing",
        retrain=True,
        control_of=CI,
    ),
    on_training_set(
        "perfect removal",
        PerfectRemoval,
        lambda case: PerfectRemoval(case.poisoned),
        needs="the truth",
        oracle=True,
        retrain=True,
        control_of=CI,
    ),
    _ss("SS, target class", build=lambda case: SpectralSignatures(classes=case.classes), oracle=True),
    _ss(
        "SS, 1.5 ε of target class",
        build=lambda case: SpectralSignatures(authors_share(case.poisoned_share), case.classes),
        oracle=True,
    ),
    _ac(
        "AC, smaller cluster of target class",
        build=lambda case: ActivationClustering("smaller", classes=case.classes, seed=case.seed),
        oracle=True,
    ),
)
"""The contenders of every cell. Only the oracles know something about the attack; the published figures of SS and AC
rest on such knowledge. Random removal flags as many images as CI, and has to be run after it."""

FILTERS: dict[str, Filter] = {
    "2×2 average, zero padding": Average(2, "zero"),
    "3×3 average": Average(3),
    "3×3 median": Median(3),
    "noise": Noise(),
    "quantisation": Quantise(),
}

ABLATIONS: tuple[Contender, ...] = (
    _ci("CI, K = 1 skipped", build=seeded(ClusterImpurity, skip_single=True)),
    _ci("CI, not conditioned", build=seeded(ClusterImpurity, conditioned=False)),
    *(_ci(f"CI, {name}", image_filter=image_filter) for name, image_filter in FILTERS.items()),
)
"""Variants of CI that the paper leaves open. They are run in the cells with ablations."""

EXRE = _ac(
    "AC, ExRe",
    build=lambda case: ActivationClustering(rule="exre", retrain=case.decisions_without, seed=case.seed),
)
"""Activation Clustering that trains one more network for every class. It is run where a training takes seconds."""

RE = on_training_set(
    "RE",
    PatternCleansing,
    lambda case: PatternCleansing(
        case.network, case.training_set.images, ReverseEngineering(seed=case.seed), on_pair=case.check
    ),
    needs=f"{NEEDS} and its gradients",
    retrain=True,
)
"""Reverse engineering on a training set. It takes minutes, and is run in the cells that are examined."""

"""The contenders that are given the trained network and clean images: after training, and in use."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from undoor.attacks import triggered
from undoor.data.dataset import Dataset
from undoor.defenses.post_training import FinePruning, RandomDirection, ReverseEngineering
from undoor.defenses.test_time import Ada, max_softmax
from undoor.defenses.test_time.ada import conformal_quantile
from undoor.experiments.contenders import Case, Contender, seeded
from undoor.experiments.measure import measure
from undoor.experiments.outcome import Outcome
from undoor.findings.metrics import detection

PRUNING_IMAGES = 100
"""Clean images a class for Fine-Pruning: a fiftieth of CIFAR-10's training set."""

REFUSED = 0.05
"""Share of the clean queries that may be refused in use."""


@dataclass(frozen=True)
class MaxSoftmax:
    """The control of a guard: it refuses the queries that the network is least sure of.

    Args:
        false_positive_rate: share of the clean queries that may be refused.

    """

    method_version: ClassVar[int] = 1
    """Raise it when ``max_softmax`` or the choice of the threshold computes something else."""

    false_positive_rate: float = REFUSED


def inspect(method: ReverseEngineering, case: Case) -> Outcome:
    """Look for a backdoor in the victim by reverse engineering."""
    inspection = method(case.network(), case.clean, on_pair=case.check)
    names = case.clean.class_names
    norms = inspection.pairs.pivot_table(index="source", columns="target", values="norm")
    return Outcome(
        defense=inspection.provenance.defense,
        settings=inspection.provenance.settings,
        detected=inspection.target is not None,
        classes_flagged=[] if inspection.target is None else [inspection.target],
        inspection={
            "sources": list(inspection.sources),
            "p": {rule: inference.p for rule, inference in inspection.inferences.items()},
            "nominal_p": {rule: inference.nominal for rule, inference in inspection.inferences.items()},
            "norms": [
                [None if np.isnan(norm) else round(norm, 4) for norm in row]
                for row in norms.reindex(index=names, columns=names).to_numpy()
            ],
        },
    )


def prune(method: FinePruning, case: Case) -> Outcome:
    """Repair the victim by Fine-Pruning and measure what became of it."""
    clean = first_of_every_class(case.clean, PRUNING_IMAGES)
    pruned = method(case.network(), clean, on_batch=case.check, on_step=case.check)
    along_curve = None
    if case.attack is not None:
        images = first_of_every_class(triggered(case.judged, case.attack), PRUNING_IMAGES).images
        along_curve = (pruned.decisions_along(images) == _target(case)).mean(axis=1).round(4).tolist()
    repair: dict[str, Any] = {"pruned_channels": pruned.count, "channels": pruned.channels.count}
    for name, network in (("pruned", pruned.pruned), ("repaired", pruned.tuned)):
        success = measure(network, case.judged, case.attack)
        repair |= {f"{name}_{measure_name}": value for measure_name, value in success.items()}
    repair["curve_clean_accuracy"] = pruned.curve["accuracy"].round(4).tolist()
    repair["curve_attack_success_rate"] = along_curve
    return Outcome(defense=pruned.provenance.defense, settings=pruned.provenance.settings, repair=repair)


def guard(method: Ada, case: Case) -> Outcome:
    """Fit a guard on clean images and let it check queries."""
    fitted = method.fit(case.network(), case.clean, on_batch=case.check, on_layer=case.check)
    refused = refusals(case, lambda images: fitted.check(images).statistic, fitted.threshold)
    return Outcome(defense=fitted.provenance.defense, settings=fitted.provenance.settings, **refused)


def refuse_doubtful(method: MaxSoftmax, case: Case) -> Outcome:
    """Refuse the queries that the network is least sure of."""
    score = partial(max_softmax, case.network())
    refused = refusals(case, score, conformal_quantile(score(case.clean.images), method.false_positive_rate))
    return Outcome(defense="max_softmax", settings=asdict(method), **refused)


def refusals(case: Case, score: Callable[[NDArray[np.uint8]], NDArray[np.float64]], threshold: float) -> dict[str, Any]:
    """Refuse clean and triggered queries whose score exceeds the threshold; return these parts of ``Outcome``.

    A triggered query counts only if the attack succeeds with it. The class of a query is the network's decision.
    """
    clean, decide = case.judged.images, case.network().decide
    scores, decisions = [score(clean)], [decide(clean)]
    if case.attack is not None:
        images = triggered(case.judged, case.attack).images
        successful = images[decide(images) == _target(case)]
        if len(successful):
            scores.append(score(successful))
            decisions.append(np.full(len(successful), _target(case)))
    values = np.concatenate(scores)
    poisoned = np.arange(len(values)) >= len(clean)
    truth = detection(values > threshold, values, np.concatenate(decisions), poisoned)
    return {"samples": len(values), "flagged": truth["tp"] + truth["fp"], "threshold": threshold, "truth": truth}


def first_of_every_class(dataset: Dataset, count: int) -> Dataset:
    """Return the first ``count`` images of every class, in the order of the data set."""
    rank = np.empty(len(dataset), np.int64)
    for label in np.unique(dataset.labels):
        rows = np.flatnonzero(dataset.labels == label)
        rank[rows] = np.arange(len(rows))
    return dataset.take(rank < count)


def _target(case: Case) -> int:
    return case.test.class_names.index(case.classes[0])


def _after(
    name: str, method: type[Any], run: Callable[[Any, Case], Outcome], control_of: str | None = None, **settings: Any
) -> Contender:
    images = PRUNING_IMAGES if method is FinePruning else ReverseEngineering().images
    needs = f"the network, clean images ({images} a class)"
    return Contender(name, "after training", needs, method, seeded(method, **settings), run, control_of=control_of)


def _in_use(
    name: str,
    method: type[Any],
    build: Callable[[Case], Any],
    run: Callable[[Any, Case], Outcome],
    control_of: str | None = None,
) -> Contender:
    needs = "the network, clean images (half of the test set)"
    return Contender(name, "in use", needs, method, build, run, control_of=control_of)


ON_NETWORK: tuple[Contender, ...] = (
    _after("reverse engineering", ReverseEngineering, inspect),
    _after("random direction", ReverseEngineering, inspect, "reverse engineering", search=RandomDirection()),
    _after("Fine-Pruning", FinePruning, prune),
    _after("random pruning", FinePruning, prune, "Fine-Pruning", ranking="random"),
    _in_use("ADA, density", Ada, seeded(Ada, statistic="density", false_positive_rate=REFUSED), guard),
    _in_use("ADA, KL", Ada, seeded(Ada, statistic="kl", false_positive_rate=REFUSED), guard),
    _in_use("maximum softmax", MaxSoftmax, lambda _: MaxSoftmax(), refuse_doubtful, "ADA, density"),
)
"""The contenders after training and in use, each followed by its control."""

"""Defences that act after training or in use, each beside its control, on the victims of a store.

The test images are halved: the defender holds one half, clean; the other half and its triggered copies tell how well
he did. No defence is told anything of the attack.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

import undoor.defenses.post_training.channels
import undoor.defenses.post_training.fine_pruning
import undoor.defenses.post_training.gamma_null
import undoor.defenses.post_training.perturbations
import undoor.defenses.post_training.reverse_engineering
import undoor.defenses.test_time.ada
import undoor.defenses.test_time.controls
import undoor.defenses.test_time.guard
import undoor.defenses.test_time.null
import undoor.mixtures.em
import undoor.mixtures.sweep
from undoor.attacks import Attack, triggered
from undoor.data.dataset import Dataset
from undoor.defenses.post_training import FinePruning, RandomDirection, ReverseEngineering
from undoor.defenses.test_time import Ada, max_softmax
from undoor.defenses.test_time.ada import conformal_quantile
from undoor.defenses.test_time.guard import Kind
from undoor.experiments.measure import measure
from undoor.networks.classifier import Classifier

AFTER_TRAINING, IN_USE = "after training", "in use"

PRUNING_IMAGES = 100
"""Clean images a class for Fine-Pruning: a fiftieth of CIFAR-10's training set."""

REFUSED = 0.05
"""Share of clean queries that a guard may refuse."""


@dataclass(frozen=True, eq=False)
class Case:
    """What a defence is given, and what the experimenter knows beside.

    Args:
        network: the victim.
        clean: images that the defender holds.
        judged: other clean images, to measure with.
        attack: what was planted; None in a clean victim.
        seed: of the cell.
        check: called by what takes minutes whenever it tells how far it is; it ends it by an exception.

    """

    network: Classifier
    clean: Dataset
    judged: Dataset
    attack: Attack | None
    seed: int
    check: Callable[..., None] = lambda *_: None

    @classmethod
    def halved(
        cls,
        network: Classifier,
        test: Dataset,
        attack: Attack | None,
        seed: int,
        check: Callable[..., None] = lambda *_: None,
    ) -> "Case":
        """Return the case in which the defender holds every second test image.

        The embedded digits repeat their originals in the same order, an even number of them: the halves share none.
        """
        rows = np.arange(len(test))
        return cls(network, test.take(rows[::2]), test.take(rows[1::2]), attack, seed, check)


@dataclass(frozen=True)
class Examination:
    """A defence, or a control, as one row of the table of moments.

    Args:
        name: of the row.
        moment: at which the defender acts.
        needs: what he must have.
        examine: returns what was found and how good that is, as plain values. Of these the table knows: ``detected``
            (bool), ``target_right`` (bool or None), ``tpr``, ``fpr``, ``auroc``, ``repaired_attack_success_rate``,
            ``repaired_clean_accuracy``.
        code: the modules that the result depends on.
        control_of: the name of the defence whose control it is.

    """

    name: str
    moment: str
    needs: str
    examine: Callable[[Case], Mapping[str, Any]]
    code: tuple[ModuleType, ...]
    control_of: str | None = None


def inspect(case: Case, control: bool = False) -> dict[str, Any]:
    """Reverse-engineer perturbations; the control tries random directions."""
    method = ReverseEngineering(seed=case.seed)
    if control:
        method = ReverseEngineering(search=RandomDirection(), seed=case.seed)
    found = method(case.network, case.clean, on_pair=case.check)
    detected = found.verdict == "backdoored"
    norms = found.pairs.pivot_table(index="source", columns="target", values="norm").reindex(
        index=case.clean.class_names, columns=case.clean.class_names
    )
    return {
        "detected": detected,
        "target_right": None if case.attack is None or not detected else found.target == case.attack.target,
        "target": found.target,
        "sources": list(found.sources),
        "p": {rule: inference.p for rule, inference in found.inferences.items()},
        "nominal_p": {rule: inference.nominal for rule, inference in found.inferences.items()},
        "norms": [[None if np.isnan(value) else round(value, 4) for value in row] for row in norms.to_numpy()],
        "settings": dict(found.provenance.settings),
    }


def prune(case: Case, control: bool = False) -> dict[str, Any]:
    """Prune and fine-tune; the control prunes channels in random order."""
    pruned = FinePruning(ranking="random" if control else "dormant", seed=case.seed)(
        case.network, _few(case.clean, PRUNING_IMAGES), on_batch=case.check, on_step=case.check
    )
    only_pruned = measure(pruned.pruned, case.judged, case.attack)
    tuned = measure(pruned.tuned, case.judged, case.attack)
    along = None
    if case.attack is not None:
        target = case.judged.class_names.index(case.attack.target)
        decisions = pruned.decisions_along(_few(triggered(case.judged, case.attack), PRUNING_IMAGES).images)
        along = [round(float(rate), 4) for rate in (decisions == target).mean(axis=1)]
    return {
        "pruned_channels": pruned.count,
        "channels": pruned.channels.count,
        "pruned_attack_success_rate": only_pruned["attack_success_rate"],
        "pruned_clean_accuracy": only_pruned["clean_accuracy"],
        "repaired_attack_success_rate": tuned["attack_success_rate"],
        "repaired_clean_accuracy": tuned["clean_accuracy"],
        "curve_clean_accuracy": [round(value, 4) for value in pruned.curve["accuracy"]],
        "curve_attack_success_rate": along,
        "settings": pruned.summary()["settings"],
    }


def guard(case: Case, statistic: Kind) -> dict[str, Any]:
    """Fit ADA with one of its statistics and let it check queries."""
    method = Ada(statistic=statistic, false_positive_rate=REFUSED, seed=case.seed)
    fitted = method.fit(case.network, case.clean, on_batch=case.check, on_layer=case.check)
    rates = _refusals(case, lambda images: fitted.check(images).statistic, fitted.threshold)
    return {**rates, "layers": list(fitted.layers), "settings": dict(fitted.provenance.settings)}


def softmax_guard(case: Case) -> dict[str, Any]:
    """Refuse queries of which the network is not sure: the control of a guard."""
    score = partial(max_softmax, case.network)
    return dict(_refusals(case, score, conformal_quantile(score(case.clean.images), REFUSED)))


def _refusals(
    case: Case, score: Callable[[NDArray[np.uint8]], NDArray[np.float64]], threshold: float
) -> dict[str, Any]:
    """Count what is refused of clean and of triggered queries; those that the attack succeeds with are its hits."""
    clean = score(case.judged.images)
    rates: dict[str, Any] = {
        "threshold": threshold,
        "fpr": float((clean > threshold).mean()),
        "tpr": None,
        "auroc": None,
    }
    if case.attack is not None:
        images = triggered(case.judged, case.attack).images
        target = case.judged.class_names.index(case.attack.target)
        hits = score(images[case.network.decide(images) == target])
        if len(hits):
            truth = np.arange(len(hits) + len(clean)) < len(hits)
            rates["tpr"] = float((hits > threshold).mean())
            rates["auroc"] = float(roc_auc_score(truth, np.concatenate([hits, clean])))
    return rates


def _few(dataset: Dataset, a_class: int) -> Dataset:
    """Return the first images of every class."""
    rank = np.empty(len(dataset), np.int64)
    for label in np.unique(dataset.labels):
        rows = np.flatnonzero(dataset.labels == label)
        rank[rows] = np.arange(len(rows))
    return dataset.take(rank < a_class)


def timed(examination: Examination, case: Case) -> dict[str, Any]:
    """Return what an examination finds, with its seconds."""
    begun = time.perf_counter()
    found = examination.examine(case)
    return {**found, "seconds": round(time.perf_counter() - begun, 2)}


_PERTURBING = (
    undoor.defenses.post_training.reverse_engineering,
    undoor.defenses.post_training.perturbations,
    undoor.defenses.post_training.gamma_null,
)
_PRUNING = (undoor.defenses.post_training.fine_pruning, undoor.defenses.post_training.channels)
_GUARDING = (
    undoor.defenses.test_time.ada,
    undoor.defenses.test_time.guard,
    undoor.defenses.test_time.null,
    undoor.mixtures.sweep,
    undoor.mixtures.em,
)
_NETWORK_AND = "the network, clean images"

EXAMINATIONS = (
    Examination(
        "reverse engineering",
        AFTER_TRAINING,
        f"{_NETWORK_AND} ({ReverseEngineering().images} a class)",
        inspect,
        _PERTURBING,
    ),
    Examination(
        "random direction",
        AFTER_TRAINING,
        "the same",
        partial(inspect, control=True),
        _PERTURBING,
        "reverse engineering",
    ),
    Examination("Fine-Pruning", AFTER_TRAINING, f"{_NETWORK_AND} ({PRUNING_IMAGES} a class)", prune, _PRUNING),
    Examination("random pruning", AFTER_TRAINING, "the same", partial(prune, control=True), _PRUNING, "Fine-Pruning"),
    Examination(
        "ADA, density", IN_USE, f"{_NETWORK_AND} (half the test set)", partial(guard, statistic="density"), _GUARDING
    ),
    Examination("ADA, KL", IN_USE, "the same", partial(guard, statistic="kl"), _GUARDING),
    Examination(
        "maximum softmax", IN_USE, "the same", softmax_guard, (undoor.defenses.test_time.controls,), "ADA, density"
    ),
)
"""In the order of the table."""

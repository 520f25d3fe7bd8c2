"""Results of experiments that are written by hand into a store."""

import base64
from dataclasses import asdict

import numpy as np

from undoor.experiments.cell_results import MEASUREMENT_VERSION, retrained_key
from undoor.experiments.cells import Cell
from undoor.experiments.contenders import EVIDENCE_VERSION, slug
from undoor.experiments.outcome import OUTCOME_VERSION, Outcome, mask_to_text
from undoor.experiments.store import Store
from undoor.experiments.suites import ALL_CONTENDERS
from undoor.safe.images import encode_png

RECIPE = {
    "name": "fast", "epochs": 6, "batch_size": 128, "optimizer": "sgd", "learning_rate": 0.2, "schedule": "one-cycle",
    "weight_decay": 0.0005, "augment": False, "normalisation": "channel", "precision": "bf16",
}  # fmt: skip
ORACLES = ("perfect removal", "SS, target class", "SS, 1.5 ε of target class", "AC, smaller cluster of target class")
CLEAN, POISONED = 1000, 100


METHOD_VERSIONS = {contender.name: contender.method.method_version for contender in ALL_CONTENDERS}


def described(cell, suite, data):
    clean = cell.scenario == "clean"
    trigger = {"row": 3, "column": 4, "size": cell.size}
    return {
        "cell": asdict(cell), "name": cell.name, "suite": suite, "data": data, "train_images": CLEAN,
        "test_images": 200,
        "attack": None if clean else {"count": POISONED, "sources": ["7"], "target": "0", "trigger": trigger},
        "recipe": {**RECIPE, "seed": cell.seed}, "network": "small-cnn", "hardware": "a machine",
        "versions": {"torch": "2.0", "undoor": "0.1"}, "platform": "Linux",
    }  # fmt: skip


def add_victim(store, cell, *, suite="paper", data="CIFAR-10", asr=0.95, accuracy=0.9, by_size=None):
    clean = cell.scenario == "clean"
    store.write(
        "victims",
        f"v-{cell.name}",
        {
            **described(cell, suite, data),
            "clean_accuracy": accuracy,
            "attack_success_rate": None if clean else asr,
            "attack_success_by_size": by_size or {},
            "pictures": [] if clean else [_picture(90), _picture(200)],
            "method_version": MEASUREMENT_VERSION,
            "seconds": 5.0,
        },
    )


def add_findings(store, cell, contender, tp=0, fp=0, *, suite="paper", data="CIFAR-10", after=None, impurity=3.0):
    """Add what a contender before training found.

    The last hundred images of the set are poisoned. The target class has a hundred clean images.
    """
    poisoned = 0 if cell.scenario == "clean" else POISONED
    flagged = np.zeros(CLEAN + poisoned, bool)
    flagged[CLEAN : CLEAN + tp] = True
    flagged[:fp] = True
    clusters = [{"class": 0, "class_name": "0", "cluster": 0, "size": 100, "poisoned": 0, "impurity": 0.02}]
    if poisoned:
        clusters.append({"class": 0, "class_name": "0", "cluster": 1, "size": 99, "poisoned": 97, "impurity": impurity})
    outcome = Outcome(
        defense="a_method", settings={}, seconds=1.0, samples=len(flagged), flagged=int(flagged.sum()),
        detected=bool(flagged.any()), classes_flagged=["0"] if flagged.any() else [], threshold=0.5,
        mask=mask_to_text(flagged), clusters=clusters if contender.startswith("CI") else [],
        roc=[[0.0, 0.0], [0.001, tp / poisoned], [0.1, 1.0], [1.0, 1.0]] if poisoned else [],
        auroc_target_class=0.98 if poisoned else None,
        missed={
            "not_learned": 1, "poisoned_clusters": 0, "mixed_clusters": poisoned - tp - 1, "clean_clusters": 0,
            "no_cluster": 0,
        },
        truth={
            "tp": tp, "fp": fp, "fn": poisoned - tp, "tn": CLEAN - fp, "tpr": tp / poisoned if poisoned else None,
            "fpr_target_class": min(fp, 100) / 100 if poisoned else None, "fpr_all_classes": fp / CLEAN,
            "precision": tp / (tp + fp) if tp + fp else None, "auroc": 0.99 if poisoned else None,
        },
    )  # fmt: skip
    control_of = "CI" if contender.endswith("removal") else None
    more = {"suite": suite, "data": data, "retrain": True, "control_of": control_of}
    result = _add(store, "findings", cell, contender, outcome, **more)
    if after is not None:
        measured = {"attack_success_rate": after, "clean_accuracy": 0.91, "method_version": MEASUREMENT_VERSION}
        retrained = {**described(cell, suite, data), **measured, "kept": 900, "seconds": 4.0}
        store.write("retrained", retrained_key(result), retrained)
    return result


def add_examination(store, cell, contender, moment, *, control_of=None, suite="paper", data="CIFAR-10", **parts):
    """Add what a contender of another moment found; ``parts`` are those of ``Outcome``."""
    outcome = Outcome(defense="another_method", settings={}, seconds=2.0, **parts)
    more = {"suite": suite, "data": data, "moment": moment, "control_of": control_of}
    return _add(store, "examinations", cell, contender, outcome, **more)


def _add(
    store, kind, cell, contender, outcome, *, suite, data, moment="before training", retrain=False, control_of=None
):
    on_evidence = kind == "findings"
    result = {
        **described(cell, suite, data), "victim": f"v-{cell.name}", "contender": contender, "moment": moment,
        "needs": "something", "oracle": contender in ORACLES, "retrain": retrain, "control_of": control_of,
        "filter": "average:2" if on_evidence else None, "method_version": METHOD_VERSIONS.get(contender, 1),
        "evidence_version": EVIDENCE_VERSION if on_evidence else None, "outcome_version": OUTCOME_VERSION,
        "depends": "a hash", **asdict(outcome),
    }  # fmt: skip
    return store.write(kind, f"v-{cell.name}-{slug(contender)}", result)


def rich_store(root, seeds=(0, 1, 2), sizes=(0.15, 0.25)):
    """Fill a store with a grid of cells. The attack of size 0.15 does not work."""
    store = Store(root)
    for seed in seeds:
        add_victim(store, Cell("clean", seed=seed))
        add_findings(store, Cell("clean", seed=seed), "CI")
        for scenario in ("single-source", "multiple-source"):
            for size in sizes:
                cell = Cell(scenario, size, seed)
                add_victim(store, cell, asr=0.5 if size == 0.15 else 0.95, by_size={"0.25": 0.9} if not seed else None)
                add_findings(store, cell, "CI", 90 + 4 * seed, seed, after=0.01)
                add_findings(store, cell, "CI, poster", 90, 0)
                add_findings(store, cell, "SS", 40, 450, after=0.6 + 0.1 * seed)
                add_findings(store, cell, "SS, target class", 45, 50, after=0.5)
                add_findings(store, cell, "AC, smaller cluster of target class", 70, 10)
                add_findings(store, cell, "random removal", 9, 81, after=0.94)
                add_findings(store, cell, "perfect removal", 100, 0, after=0.0)
    add_findings(store, Cell("multiple-source", 0.25, 0), "CI, not conditioned", 80, 3)
    return store


def _picture(brightness):
    image = np.full((1, 8, 8), 90, np.uint8)
    image[0, 3, 4] = brightness
    return base64.b64encode(encode_png(image)).decode()

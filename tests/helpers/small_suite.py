"""A suite of two cells on images that a small network learns in a second."""

from dataclasses import replace

from conftest import QUICKLY, make_dataset
from undoor.defenses.training_set.cluster_impurity import ClusterImpurity
from undoor.defenses.training_set.controls import PerfectRemoval, RandomRemoval
from undoor.experiments.before_training import CI, on_training_set
from undoor.experiments.cells import Cell, Setting
from undoor.experiments.suites import Suite
from undoor.filters import Median
from undoor.networks.recipes import PRESETS

CELLS = (Cell("multiple-source", 0.4, ablations=True), Cell("clean"))
QUICK_CI = on_training_set(CI, ClusterImpurity, lambda case: ClusterImpurity(seed=case.seed, **QUICKLY), retrain=True)
CONTENDERS = (
    QUICK_CI,
    on_training_set(
        "median", ClusterImpurity, lambda case: ClusterImpurity(seed=case.seed, **QUICKLY), image_filter=Median(3)
    ),
    on_training_set("random removal", RandomRemoval, lambda case: RandomRemoval(7, case.seed), retrain=True),
    on_training_set(
        "perfect removal", PerfectRemoval, lambda case: PerfectRemoval(case.poisoned), oracle=True, retrain=True
    ),
)


def make_suite(cells=CELLS, contenders=CONTENDERS, examined=(), **changes):
    setting = Setting(
        "small", "bars", make_dataset(), make_dataset(seed=1), "class0", "class2", 10,
        replace(PRESETS["fast"], epochs=3, batch_size=16), test_sizes=(0.2, 0.4),
    )  # fmt: skip
    return Suite(replace(setting, **changes), cells, contenders, (), examined)


def results_without_times(store):
    """Return every victim, finding and retraining in a store but the seconds that they took."""
    return {
        kind: {
            key: {name: value for name, value in result.items() if name != "seconds"}
            for key, result in store.all(kind).items()
        }
        for kind in ("victims", "findings", "retrained")
    }

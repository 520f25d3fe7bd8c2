from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest

import undoor
from conftest import QUICKLY, make_dataset
from undoor.defenses.training_set.cluster_impurity import ClusterImpurity
from undoor.defenses.training_set.controls import PerfectRemoval, RandomRemoval
from undoor.errors import UndoorError
from undoor.experiments import cells as cells_module
from undoor.experiments import suites
from undoor.experiments.cells import Cell, Experiment, Setting, retrained_key, slug
from undoor.experiments.contenders import Contender, Known, plain_settings
from undoor.experiments.report.readme import write_report
from undoor.experiments.runner import STAGES, Bench
from undoor.experiments.store import Store, unpack
from undoor.experiments.suites import CI, CONTENDERS, EXRE, Suite, suite
from undoor.filters import Average, Median
from undoor.findings import provenance
from undoor.networks.recipes import PRESETS

CELLS = (Cell("multiple-source", 0.4, ablations=True), Cell("clean"))
TRIED = (
    Contender(CI, lambda known: ClusterImpurity(seed=known.seed, **QUICKLY), retrain=True),
    Contender("median", lambda known: ClusterImpurity(seed=known.seed, **QUICKLY), image_filter=Median(3)),
    Contender("random removal", lambda known: RandomRemoval(7, known.seed), retrain=True),
    Contender("perfect removal", lambda known: PerfectRemoval(known.poisoned), True, True),
)


def make_suite(cells=CELLS, contenders=TRIED, examinations=(), **changes):
    setting = Setting(
        "small", "bars", make_dataset(), make_dataset(seed=1), "class0", "class2", 10,
        replace(PRESETS["fast"], epochs=3, batch_size=16), test_sizes=(0.2, 0.4),
    )  # fmt: skip
    return Suite(replace(setting, **changes), cells, contenders, (), (), examinations)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store"))
    return store, Bench(make_suite(), store).run()


def results(store):
    """Return everything in the store but the times."""
    return {
        stage: {key: {k: v for k, v in one.items() if k != "seconds"} for key, one in store.all(stage).items()}
        for stage in ("victims", "findings", "retrained")
    }


def only_load(jobs, **_):
    assert not jobs
    return []


def test_every_cell_and_contender_is_done(finished):
    store, board = finished
    assert board.finished
    assert {name: (p.victim, p.found, p.retrained) for name, p in board.cells.items()} == {
        "multiple-source-0.40-s0": (True, 4, 3),
        "clean-s0": (True, 3, 2),
    }
    assert len(store.all("victims")) == 2
    assert len(store.all("findings")) == 7
    perfect = next(f for f in store.all("findings").values() if f["contender"] == "perfect removal" and f["attack"])
    assert (perfect["truth"]["tp"], perfect["truth"]["fp"], perfect["oracle"]) == (10, 0, True)
    assert unpack(perfect["mask"], 70).tolist() == [False] * 60 + [True] * 10
    assert store.read("retrained", retrained_key(perfect))["kept"] == 60


def test_what_is_measured_of_a_victim(finished):
    victims = {one["name"]: one for one in finished[0].all("victims").values()}
    attacked, clean = victims["multiple-source-0.40-s0"], victims["clean-s0"]
    assert set(attacked["attack_success_by_size"]) == {"0.20", "0.40"}
    assert attacked["attack_success_by_size"]["0.40"] == attacked["attack_success_rate"]
    assert len(attacked["pictures"]) == 2
    assert clean["attack_success_rate"] is None
    assert clean["attack"] is None


def test_the_perfect_removal_needs_no_training_beside_the_clean_victim(finished, monkeypatch):
    store, _ = finished
    monkeypatch.setattr("undoor.networks.victims.train_many", only_load)
    perfect = next(f for f in store.all("findings").values() if f["contender"] == "perfect removal" and f["attack"])
    store.path("retrained", retrained_key(perfect)).unlink()
    assert Bench(make_suite(), store).run().finished
    clean = next(one for one in store.all("victims").values() if one["name"] == "clean-s0")
    again = store.read("retrained", retrained_key(perfect))
    assert again["clean_accuracy"] == clean["clean_accuracy"]
    assert again["attack_success_rate"] is not None


def test_nothing_is_computed_twice(finished, monkeypatch):
    store, _ = finished
    before = results(store)
    monkeypatch.setattr("undoor.networks.victims.train_many", only_load)
    monkeypatch.setattr(cells_module, "collect", None)
    assert Bench(make_suite(), store).run().finished
    assert results(store) == before


def test_changing_a_defence_keeps_the_victim(finished, monkeypatch):
    store, _ = finished
    monkeypatch.setattr("undoor.networks.victims.train_many", only_load)
    changed = Contender(CI, lambda known: ClusterImpurity(threshold=0.01, seed=known.seed, workers=1))
    before = results(store)
    assert Bench(make_suite(contenders=(changed,)), store).run().finished
    after = results(store)
    assert after["victims"] == before["victims"]
    assert {f["threshold"] for f in after["findings"].values() if f["contender"] == CI} == {0.01}
    assert len(after["findings"]) == len(before["findings"])
    assert Bench(make_suite(), store).run().finished  # and back


def test_where_nothing_is_flagged_the_victim_is_the_retrained_network(finished):
    store, _ = finished
    nothing = {"flagged": 0}
    experiment = Experiment(CELLS[1], make_suite().setting, store)
    assert experiment.retraining(nothing) == experiment.victim()
    assert experiment.wanted_retraining(nothing) is None


def test_a_run_out_of_time_goes_on_to_the_same_results(finished, tmp_path):
    store = Store(tmp_path)
    board = Bench(make_suite(), store, budget=0.0).run()
    assert not board.finished
    assert results(store) == {"victims": {}, "findings": {}, "retrained": {}}

    class KilledError(Exception):
        pass

    calls = np.random.default_rng(0).integers(3, 40, 12).tolist()
    for stop in calls:
        left = [stop]

        def count(_, __, left=left):
            left[0] -= 1
            if left[0] == 0:
                raise KilledError

        try:
            Bench(make_suite(), store, on_change=count).run()
        except KilledError:
            assert not list(tmp_path.rglob("*.part"))
    assert Bench(make_suite(), store).run().finished
    assert results(store) == results(finished[0])
    assert not list(tmp_path.rglob("*.checkpoint"))


def test_several_at_once_give_what_one_after_another_gives(finished, tmp_path):
    store = Store(tmp_path)
    assert Bench(make_suite(), store, together=3).run().finished
    assert results(store) == results(finished[0])


def test_stages_one_by_one_make_what_all_at_once_make(finished, tmp_path):
    store, made = Store(tmp_path), []
    for stage in STAGES:
        board = Bench(make_suite(), store, (stage,)).run()
        assert board.finished
        made.append({kind: len(content) for kind, content in results(store).items()})
    assert made == [
        {"victims": 2, "findings": 0, "retrained": 0},
        {"victims": 2, "findings": 7, "retrained": 0},
        {"victims": 2, "findings": 7, "retrained": 3},
        {"victims": 2, "findings": 7, "retrained": 3},
    ]
    assert results(store) == results(finished[0])


def test_a_stage_alone_makes_nothing_of_an_earlier_one(tmp_path, monkeypatch):
    monkeypatch.setattr("undoor.networks.victims.train_many", only_load)
    board = Bench(make_suite(), Store(tmp_path), ("findings", "retraining", "examinations")).run()
    assert not board.finished
    assert results(Store(tmp_path)) == {"victims": {}, "findings": {}, "retrained": {}}
    with pytest.raises(UndoorError, match="no stage 'training'; choose among victims, findings, retraining"):
        Bench(make_suite(), Store(tmp_path), ("training",))


def test_a_training_that_diverges_is_kept_and_ends_nothing_else(tmp_path, monkeypatch):
    suite = make_suite()
    diverging = replace(suite.setting.recipe, learning_rate=1e30)
    real = Experiment.wanted_victim

    def wanted_victim(self):
        wanted = real(self)
        return replace(wanted, recipe=replace(diverging, seed=0)) if self.cell.scenario == "clean" else wanted

    monkeypatch.setattr(Experiment, "wanted_victim", wanted_victim)
    store = Store(tmp_path)
    board = Bench(suite, store, together=2).run()
    assert board.finished
    assert [(name, p.victim, p.diverged, p.found) for name, p in board.cells.items()] == [
        ("multiple-source-0.40-s0", True, False, 4), ("clean-s0", False, True, 0)
    ]  # fmt: skip
    (kept,) = store.all("diverged").values()
    assert kept["name"] == "clean-s0"
    assert kept["problem"].startswith("training 2 of 2: the loss is nan after epoch")
    monkeypatch.setattr("undoor.networks.victims.train_many", only_load)
    assert Bench(suite, store).run().finished  # and it is not tried again
    write_report(store, "small", dpi=20)
    assert "A training of clean-s0 (preset fast) diverged: training 2 of 2: the loss is nan" in (
        tmp_path / "README.md"
    ).read_text(encoding="utf-8")


@dataclass(frozen=True)
class Slow:
    """A defence that takes a second of ``clock`` for each of a thousand pieces of work."""

    check: Callable[..., None] = field(metadata={"data": True})
    clock: list[float] = field(metadata={"data": True})

    def __call__(self, evidence):
        for _ in range(1000):
            self.clock[0] += 1
            self.check()
        return RandomRemoval(7)(evidence)


def test_the_budget_ends_a_defence_that_takes_minutes(tmp_path, monkeypatch):
    clock = [0.0]
    slow = Contender("slow", lambda known: Slow(known.check, clock))
    suite = make_suite(cells=CELLS[1:], contenders=(*TRIED[:1], slow))
    Bench(suite, Store(tmp_path), ("victims",)).run()
    monkeypatch.setattr("undoor.experiments.runner.time.monotonic", lambda: clock[0])
    board = Bench(suite, Store(tmp_path), ("findings",), budget=30.0).run()
    assert clock[0] == 31
    assert not board.finished
    assert [found["contender"] for found in Store(tmp_path).all("findings").values()] == [CI]
    assert Bench(suite, Store(tmp_path), ("findings",)).run().finished


def test_without_package_metadata_a_cell_runs_to_its_end(tmp_path, monkeypatch):
    # As where the sources lie on the path and nothing is installed.
    real = provenance.version

    def version(name):
        if name == "undoor":
            raise PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(provenance, "version", version)
    assert Bench(make_suite(cells=CELLS[1:]), Store(tmp_path)).run().finished
    assert {one["versions"]["undoor"] for one in Store(tmp_path).all("findings").values()} == {undoor.__version__}


def test_only_contenders_that_are_named_compete():
    some = suite("quick", contenders=("ci", "ss*", "re"))
    assert [c.name for c in some.contenders] == [
        CI, "SS", "SS, 85th percentile", "SS, target class", "SS, 1.5 ε of target class"
    ]  # fmt: skip
    assert [c.name for c in some.examined] == ["RE"]
    assert some.ablations == ()
    assert suite("quick").contenders == CONTENDERS


def test_the_estimate_is_of_the_trainings_left(tmp_path):
    seen = []
    Bench(make_suite(), Store(tmp_path), on_change=lambda board, _: seen.append(board.seconds_left)).run()
    assert seen[0] is None
    assert all(s >= 0 for s in seen if s is not None)
    assert any(s for s in seen if s is not None)


def test_one_pass_serves_all_filters(tmp_path, monkeypatch):
    passes = []
    real = cells_module.collect

    def collect(classifier, data, filters):
        passes.append(sorted(map(str, filters)))
        return real(classifier, data, filters)

    monkeypatch.setattr(cells_module, "collect", collect)
    Bench(make_suite(cells=CELLS[:1]), Store(tmp_path), ("victims", "findings")).run()
    assert passes == [sorted([str(Average()), str(Median(3))])]


def test_originals_may_be_replaced():
    kept, replaced = (
        Experiment(replace(CELLS[0], keep_originals=k), make_suite().setting, None) for k in (True, False)
    )
    assert len(kept.training_set) == 70
    assert len(replaced.training_set) == 60
    assert kept.victim_key != replaced.victim_key
    assert replaced.cell.name == "multiple-source-0.40-replaced-s0"


def known(poisoned, target="class2"):
    labels = np.repeat(np.arange(3), 20)
    return Known(0, poisoned, labels, target, lambda kept: labels, None, np.zeros((60, 1, 8, 8), np.uint8), {CI: 5})


@pytest.mark.parametrize(
    "contender", [c for c in (*CONTENDERS, *suites.ABLATIONS, suites.RE, EXRE) if not c.oracle], ids=lambda c: c.name
)
def test_only_oracle_settings_depend_on_the_truth(contender):
    first = known(np.arange(60) >= 50)
    second = known(np.arange(60) < 30, target="class0")
    one, other = (plain_settings(contender.build(k)) for k in (first, second))
    assert one == other


def test_oracle_settings_are_marked():
    marked = {c.name for c in CONTENDERS if c.oracle}
    first, second = known(np.arange(60) >= 50), known(np.arange(60) < 30, target="class0")
    differ = {c.name for c in CONTENDERS if plain_settings(c.build(first)) != plain_settings(c.build(second))}
    assert marked == differ


def test_names_are_distinct_and_fit_a_file():
    names = [slug(c.name) for c in (*CONTENDERS, *suites.ABLATIONS, suites.RE, EXRE)]
    assert len(set(names)) == len(names)
    assert all(name.isascii() and " " not in name for name in names)


def test_the_grid_is_the_papers():
    quick = suite("quick", seeds=(0, 1))
    assert len(quick.cells) == 2 * 16
    assert {c.size for c in quick.cells if c.scenario == "multiple-source"} == set(suites.MULTIPLE_SIZES)
    assert {c.size for c in quick.cells if c.scenario == "single-source"} == set(suites.SINGLE_SIZES)
    assert [c.name for c in suite("quick", cells="clean*").cells] == ["clean-s0"]


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("fast", {}, "no suite 'fast'; choose quick or paper"),
        ("paper", {}, "needs CIFAR-10; give --data"),
        ("quick", {"cells": "x*"}, "no cell is called 'x\\*'; the first are"),
        ("quick", {"preset": "slow"}, "no preset 'slow'"),
        ("quick", {"contenders": ("SS",)}, "no contender is called SS; there are ci, ci-one-look, "),
        (
            "quick",
            {"contenders": ("random-removal",)},
            "random-removal removes as many images as ci flags",
        ),
    ],
)
def test_what_a_suite_cannot_be(name, options, told):
    with pytest.raises(UndoorError, match=told):
        suite(name, **options)

"""A suite runs its cells through all stages, resumes, and keeps every result."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError
from typing import ClassVar

import numpy as np
import pytest

import undoor
from conftest import QUICKLY
from helpers.cases import case_with_truth
from helpers.small_suite import CELLS, QUICK_CI, make_suite, results_without_times
from undoor.defenses.training_set.cluster_impurity import ClusterImpurity
from undoor.defenses.training_set.controls import RandomRemoval
from undoor.errors import UndoorError
from undoor.experiments import before_training, experiment, suites
from undoor.experiments.before_training import CI, on_training_set
from undoor.experiments.cell_results import measured_retraining, measured_victim, retrained_key, wanted_retraining
from undoor.experiments.contenders import plain_settings
from undoor.experiments.experiment import Experiment
from undoor.experiments.outcome import mask_from_text
from undoor.experiments.report.readme import write_report
from undoor.experiments.runner import STAGES, Bench
from undoor.experiments.store import Store
from undoor.experiments.suites import ALL_CONTENDERS, suite
from undoor.filters import Average, Median
from undoor.findings import provenance
from undoor.mixtures.sweep import MixtureSettings


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store"))
    return store, Bench(make_suite(), store).run()


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
    assert mask_from_text(perfect["mask"], 70).tolist() == [False] * 60 + [True] * 10
    assert store.read("retrained", retrained_key(perfect))["kept"] == 60


def test_what_is_measured_of_a_victim(finished):
    victims = {victim["name"]: victim for victim in finished[0].all("victims").values()}
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
    clean = next(victim for victim in store.all("victims").values() if victim["name"] == "clean-s0")
    again = store.read("retrained", retrained_key(perfect))
    assert again["clean_accuracy"] == clean["clean_accuracy"]
    assert again["attack_success_rate"] is not None


def test_nothing_is_computed_twice(finished, monkeypatch):
    store, _ = finished
    before = results_without_times(store)
    monkeypatch.setattr("undoor.networks.victims.train_many", only_load)
    monkeypatch.setattr(experiment, "collect", None)
    assert Bench(make_suite(), store).run().finished
    assert results_without_times(store) == before


def test_changing_a_defense_keeps_the_victim(finished, monkeypatch):
    store, _ = finished
    monkeypatch.setattr("undoor.networks.victims.train_many", only_load)
    changed = on_training_set(CI, ClusterImpurity, lambda _: ClusterImpurity(threshold=0.01, workers=1))
    before = results_without_times(store)
    assert Bench(make_suite(contenders=(changed,)), store).run().finished
    after = results_without_times(store)
    assert after["victims"] == before["victims"]
    assert {f["threshold"] for f in after["findings"].values() if f["contender"] == CI} == {0.01}
    assert len(after["findings"]) == len(before["findings"])
    assert Bench(make_suite(), store).run().finished  # and back


def test_a_clone_repeats_detection_on_the_packed_networks_without_training(finished, tmp_path, monkeypatch):
    clone = tmp_path / "clone"
    shutil.copytree(finished[0].root, clone)
    write_report(Store(clone), "small", dpi=20)
    shutil.rmtree(clone / "work")
    monkeypatch.setattr("undoor.networks.victims.train_many", only_load)
    store = Store(clone)
    assert Bench(make_suite(), store).run().finished
    assert results_without_times(store) == results_without_times(finished[0])
    assert not list(clone.glob("work/*/*"))
    changed = on_training_set(CI, ClusterImpurity, lambda _: ClusterImpurity(threshold=0.01, workers=1))
    assert Bench(make_suite(contenders=(changed,)), store, ("victims", "findings")).run().finished
    again = [result for result in store.all("findings").values() if result["contender"] == CI]
    assert {result["threshold"] for result in again} == {0.01}


def test_networks_of_an_older_layout_are_measured_without_training(finished, tmp_path, monkeypatch):
    (tmp_path / "victims").mkdir()
    for path in finished[0].root.glob("work/victims/*.safetensors"):
        shutil.copy(path, tmp_path / "victims")
    monkeypatch.setattr("undoor.networks.victims.train_many", only_load)
    assert Bench(make_suite(), Store(tmp_path), ("victims",)).run().finished
    measured, before = (
        {key: victim["attack_success_rate"] for key, victim in store.all("victims").items()}
        for store in (Store(tmp_path), finished[0])
    )
    assert measured == before


def test_where_nothing_is_flagged_the_victim_is_the_retrained_network(finished):
    store, _ = finished
    nothing = {"flagged": 0}
    clean = Experiment(CELLS[1], make_suite().setting, store)
    assert measured_retraining(clean, nothing) == measured_victim(clean)
    assert wanted_retraining(clean, nothing) is None


def test_a_run_out_of_time_goes_on_to_the_same_results(finished, tmp_path):
    store = Store(tmp_path)
    board = Bench(make_suite(), store, budget=0.0).run()
    assert not board.finished
    assert results_without_times(store) == {"victims": {}, "findings": {}, "retrained": {}}

    class KilledError(Exception):
        pass

    for calls in np.random.default_rng(0).integers(3, 40, 12).tolist():
        remaining = iter(range(calls))

        def count(_, __, remaining=remaining):
            if next(remaining, None) is None:
                raise KilledError

        try:
            Bench(make_suite(), store, on_change=count).run()
        except KilledError:
            assert not list(tmp_path.rglob("*.part"))
    assert Bench(make_suite(), store).run().finished
    assert results_without_times(store) == results_without_times(finished[0])
    assert not list(tmp_path.rglob("*.checkpoint"))


def test_several_at_once_give_what_one_after_another_gives(finished, tmp_path):
    store = Store(tmp_path)
    assert Bench(make_suite(), store, together=3).run().finished
    assert results_without_times(store) == results_without_times(finished[0])


def test_stages_one_by_one_make_what_all_at_once_make(finished, tmp_path):
    store, counts = Store(tmp_path), []
    for stage in STAGES:
        board = Bench(make_suite(), store, (stage,)).run()
        assert board.finished
        counts.append({kind: len(content) for kind, content in results_without_times(store).items()})
    assert counts == [
        {"victims": 2, "findings": 0, "retrained": 0},
        {"victims": 2, "findings": 7, "retrained": 0},
        {"victims": 2, "findings": 7, "retrained": 3},
        {"victims": 2, "findings": 7, "retrained": 3},
    ]
    assert results_without_times(store) == results_without_times(finished[0])


def test_a_stage_alone_makes_nothing_of_an_earlier_one(tmp_path, monkeypatch):
    monkeypatch.setattr("undoor.networks.victims.train_many", only_load)
    board = Bench(make_suite(), Store(tmp_path), ("findings", "retraining", "examinations")).run()
    assert not board.finished
    assert results_without_times(Store(tmp_path)) == {"victims": {}, "findings": {}, "retrained": {}}
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
    (diverged,) = store.all("diverged").values()
    assert diverged["name"] == "clean-s0"
    assert diverged["problem"].startswith("training 2 of 2: the loss is nan after epoch")
    monkeypatch.setattr("undoor.networks.victims.train_many", only_load)
    assert Bench(suite, store).run().finished  # and it is not tried again
    write_report(store, "small", dpi=20)
    assert "A training of clean-s0 (preset fast) diverged: training 2 of 2: the loss is nan" in (
        tmp_path / "README.md"
    ).read_text(encoding="utf-8")


@dataclass(frozen=True)
class Slow:
    """A defense that takes a second of ``clock`` for each of a thousand pieces of work."""

    method_version: ClassVar[int] = 1

    check: Callable[..., None] = field(metadata={"data": True})
    clock: list[float] = field(metadata={"data": True})

    def __call__(self, evidence):
        for _ in range(1000):
            self.clock[0] += 1
            self.check()
        return RandomRemoval(7)(evidence)


def test_the_budget_ends_a_defense_that_takes_minutes(tmp_path, monkeypatch):
    clock = [0.0]
    slow = on_training_set("slow", Slow, lambda case: Slow(case.check, clock))
    suite = make_suite(cells=CELLS[1:], contenders=(QUICK_CI, slow))
    Bench(suite, Store(tmp_path), ("victims",)).run()
    monkeypatch.setattr("undoor.experiments.runner.time.monotonic", lambda: clock[0])
    board = Bench(suite, Store(tmp_path), ("findings",), budget=30.0).run()
    assert clock[0] == 31
    assert not board.finished
    assert [result["contender"] for result in Store(tmp_path).all("findings").values()] == [CI]
    assert Bench(suite, Store(tmp_path), ("findings",)).run().finished


def test_without_package_metadata_a_cell_runs_to_its_end(tmp_path, monkeypatch):
    # This is so if the sources are on the path and the package is not installed.
    real = provenance.version

    def version(name):
        if name == "undoor":
            raise PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(provenance, "version", version)
    assert Bench(make_suite(cells=CELLS[1:]), Store(tmp_path)).run().finished
    assert {result["versions"]["undoor"] for result in Store(tmp_path).all("findings").values()} == {undoor.__version__}


def test_only_contenders_that_are_named_are_run():
    chosen = suite("quick", contenders=("ci", "ss*", "re"))
    assert [contender.name for contender in chosen.contenders] == [
        CI, "SS", "SS, 85th percentile", "SS, target class", "SS, 1.5 ε of target class"
    ]  # fmt: skip
    assert [contender.name for contender in chosen.examined] == ["RE"]
    assert chosen.ablations == ()
    assert suite("quick").contenders == before_training.CONTENDERS
    assert [contender.slug for contender in suite("quick", contenders=("ada-*",)).examined] == ["ada-density", "ada-kl"]


def test_the_estimate_is_of_the_trainings_that_remain(tmp_path):
    seen = []
    board = Bench(make_suite(), Store(tmp_path), on_change=lambda board, _: seen.append(board.seconds_left)).run()
    assert seen[0] is None
    assert next(seconds for seconds in seen if seconds is not None) > 0
    assert board.seconds_left == 0


def test_one_pass_serves_all_filters(tmp_path, monkeypatch):
    passes = []
    real = experiment.collect

    def collect(classifier, data, filters):
        passes.append(sorted(map(str, filters)))
        return real(classifier, data, filters)

    monkeypatch.setattr(experiment, "collect", collect)
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


FIRST, SECOND = case_with_truth(np.arange(60) >= 50), case_with_truth(np.arange(60) < 30, target="class0")


@pytest.mark.parametrize("contender", ALL_CONTENDERS, ids=lambda contender: contender.slug)
def test_only_oracles_depend_on_the_truth(contender):
    first, second = (plain_settings(contender.build(case)) for case in (FIRST, SECOND))
    assert contender.oracle == (first != second)


@pytest.mark.parametrize("contender", ALL_CONTENDERS, ids=lambda contender: contender.slug)
def test_the_version_of_a_contender_is_that_of_the_method_it_builds(contender):
    assert type(contender.build(FIRST)) is contender.method
    assert contender.versions["method_version"] == contender.build(FIRST).method_version >= 1


def test_a_result_depends_on_name_version_settings_victim_and_filter(monkeypatch):
    named = QUICK_CI.depends(FIRST, "victim")
    others = [
        replace(QUICK_CI, name="other").depends(FIRST, "victim"),
        replace(QUICK_CI, build=lambda _: ClusterImpurity(threshold=0.2, **QUICKLY)).depends(FIRST, "victim"),
        replace(QUICK_CI, build=lambda _: ClusterImpurity(mixture=MixtureSettings())).depends(FIRST, "victim"),
        replace(QUICK_CI, image_filter=Median(3)).depends(FIRST, "victim"),
        QUICK_CI.depends(FIRST, "other victim"),
    ]
    same = replace(QUICK_CI, build=lambda _: ClusterImpurity(**{**QUICKLY, "workers": 2}))
    assert same.depends(FIRST, "victim") == named
    monkeypatch.setattr(ClusterImpurity, "method_version", ClusterImpurity.method_version + 1)
    others.append(QUICK_CI.depends(FIRST, "victim"))
    assert len({named, *others}) == 1 + len(others)


def test_names_are_distinct_and_fit_a_file():
    names = [contender.slug for contender in ALL_CONTENDERS]
    assert len(set(names)) == len(names)
    assert all(name.isascii() and " " not in name for name in names)


def test_a_control_names_its_defense():
    names = {contender.name for contender in ALL_CONTENDERS}
    controls = {contender.name: contender.control_of for contender in ALL_CONTENDERS if contender.control_of}
    assert set(controls.values()) <= names
    assert set(controls) == {
        "random removal", "perfect removal", "random direction", "random pruning", "maximum softmax"
    }  # fmt: skip


def test_the_key_of_a_victim_stays_what_it_was():
    # Networks that were trained long ago are found by this key.
    chosen = suite("quick", cells="single-source-0.25-s0")
    assert Experiment(chosen.cells[0], chosen.setting, None).victim_key == "44e638e5af49e9d0e261"


def test_the_grid_is_the_papers():
    quick = suite("quick", seeds=(0, 1))
    assert len(quick.cells) == 2 * 16
    assert {c.size for c in quick.cells if c.scenario == "multiple-source"} == set(suites.MULTIPLE_SIZES)
    assert {c.size for c in quick.cells if c.scenario == "single-source"} == set(suites.SINGLE_SIZES)
    assert [c.name for c in suite("quick", cells="clean*").cells] == ["clean-s0"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
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
def test_what_a_suite_cannot_be(name, options, message):
    with pytest.raises(UndoorError, match=message):
        suite(name, **options)

"""The contenders after training and in use: what they are given, what is counted, and what the tables say."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest

from conftest import make_dataset
from helpers.cases import bright_case
from helpers.made_results import add_examination, add_findings, add_victim
from helpers.small_suite import CELLS, make_suite
from undoor.attacks import OnePixel, triggered
from undoor.experiments.cell_results import contender_result
from undoor.experiments.cells import Cell
from undoor.experiments.contenders import Contender
from undoor.experiments.experiment import Experiment
from undoor.experiments.on_network import first_of_every_class, refusals
from undoor.experiments.outcome import Outcome
from undoor.experiments.report.moments import HEADER, inspections, moments
from undoor.experiments.report.readme import write_report
from undoor.experiments.report.results import read_results
from undoor.experiments.runner import Bench
from undoor.experiments.store import Store


def test_the_halves_of_the_test_set_share_no_image_and_have_every_class():
    case = bright_case()
    assert np.bincount(case.clean.labels).tolist() == np.bincount(case.judged.labels).tolist() == [20, 20, 20]
    assert not set(case.clean.ids) & set(case.judged.ids)


def brightness(images):
    return images[:, 0, 0, 0].astype(float)


def test_only_attacks_that_succeed_count_as_hits():
    case = bright_case()
    refused = refusals(case, brightness, 100.0)
    assert (refused["samples"], refused["flagged"], refused["threshold"]) == (100, 40, 100.0)
    truth = refused["truth"]
    assert (truth["tp"], truth["fp"], truth["tpr"], truth["fpr_all_classes"], truth["auroc"]) == (40, 0, 1.0, 0.0, 1.0)


@pytest.mark.parametrize("attack", [replace(bright_case().attack, trigger=OnePixel(0, 0, 0.5)), None])
def test_without_an_attack_that_succeeds_only_false_alarms_are_counted(attack):
    case = replace(bright_case(), attack=attack)
    if attack is not None:
        assert not (case.network().decide(triggered(case.judged, attack).images) == 2).any()
    refused = refusals(case, brightness, -1.0)
    truth = refused["truth"]
    assert (refused["samples"], truth["fpr_all_classes"], truth["tpr"], truth["auroc"]) == (60, 1.0, None, None)


def test_the_first_images_of_every_class_are_taken():
    dataset = make_dataset(n_per_class=9)
    taken = first_of_every_class(dataset, 4)
    assert np.bincount(taken.labels).tolist() == [4, 4, 4]
    assert taken.ids.tolist() == [dataset.ids[9 * label + rank] for label in range(3) for rank in range(4)]


@dataclass(frozen=True)
class Says:
    """A method that always says the same, and counts how often it was run."""

    method_version: ClassVar[int] = 1
    runs: ClassVar[list[str]] = []

    name: str

    def run(self, case):
        self.runs.append(self.name)
        return Outcome(defense=self.name, settings={}, detected=True, classes_flagged=["class2"])


def says(name):
    return Contender(name, "after training", "images", Says, lambda _: Says(name), Says.run)


CONTENDERS = (says("first"), says("second"))
TRIED = (CELLS[0], Cell("multiple-source", 0.3), CELLS[1])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store"))
    stages = ("victims", "findings", "examinations")
    board = Bench(make_suite(TRIED, (), CONTENDERS), store, stages).run()
    assert board.finished
    assert [progress.found for progress in board.cells.values()] == [2, 0, 2]
    return store


def test_slow_contenders_are_run_only_at_some_sizes_of_the_trigger(store):
    results = store.all("examinations").values()
    assert {result["name"] for result in results} == {"multiple-source-0.40-s0", "clean-s0"}
    assert {(result["moment"], result["method_version"], result["filter"]) for result in results} == {
        ("after training", 1, None)
    }
    assert not replace(TRIED[0], keep_originals=False).examined


def test_nothing_is_run_twice_unless_its_version_changed(store, monkeypatch):
    before = store.all("examinations")
    experiment = Experiment(TRIED[0], make_suite().setting, store)
    runs = len(Says.runs)
    assert contender_result(experiment, CONTENDERS[0], experiment.case()) in before.values()
    assert len(Says.runs) == runs
    monkeypatch.setattr(Says, "method_version", 2)
    again = contender_result(experiment, CONTENDERS[0], experiment.case())
    assert len(Says.runs) == runs + 1
    assert again["method_version"] == 2
    assert again["depends"] not in {result["depends"] for result in before.values()}


@pytest.fixture
def examined(tmp_path):
    """A store with an attacked and a clean victim, which contenders of all moments judged."""
    store, attacked, clean = Store(tmp_path), Cell("multiple-source", 0.4), Cell("clean")
    for cell in (attacked, clean):
        add_victim(store, cell)
        verdict = {"detected": True, "classes_flagged": ["0"]}
        inspection = {"sources": ["7"], "p": {"A": 0.5, "B": 0.01}, "nominal_p": {}, "norms": []}
        add_examination(store, cell, "reverse engineering", "after training", inspection=inspection, **verdict)
        repair = {"repaired_attack_success_rate": None if cell is clean else 0.2, "repaired_clean_accuracy": 0.8}
        add_examination(store, cell, "Fine-Pruning", "after training", repair=repair)
        truth = {"tpr": None if cell is clean else 0.7, "fpr_all_classes": 0.04, "auroc": None}
        control = {"truth": truth, "samples": 200, "control_of": "ADA, density"}
        add_examination(store, cell, "maximum softmax", "in use", **control)
    add_findings(store, attacked, "CI", tp=90, fp=10, after=0.01)
    add_findings(store, clean, "CI")
    add_findings(store, Cell("multiple-source", 0.3), "CI", tp=1)
    return store


def test_the_table_of_moments_shows_every_contender_once(examined):
    (results,) = read_results(examined, "paper")
    lines = [dict(zip(HEADER, line, strict=True)) for line in moments(results)[0]]
    assert [line["defense"] for line in lines] == [
        "CI", "reverse engineering", "Fine-Pruning", "maximum softmax (control)"
    ]  # fmt: skip
    before_training, inspected, pruned, in_use = lines
    assert before_training["finds a backdoor"] == before_training["right target"] == "1 of 1"
    assert before_training["calls a clean victim backdoored"] == "0 of 1"
    assert (before_training["TPR"], before_training["ASR after"]) == ("0.900", "0.010")
    assert inspected["finds a backdoor"] == inspected["right target"] == "1 of 1"
    assert inspected["calls a clean victim backdoored"] == "1 of 1"
    assert (inspected["TPR"], inspected["accuracy before"]) == ("–", "–")
    assert (pruned["finds a backdoor"], pruned["ASR before"], pruned["ASR after"]) == ("–", "0.950", "0.200")
    assert (pruned["accuracy before"], pruned["accuracy after"]) == ("0.900", "0.800")
    assert (in_use["TPR"], in_use["FPR"], in_use["accuracy before"]) == ("0.700", "0.0400", "–")


def test_every_inspected_victim_is_listed_and_reported(examined):
    (results,) = read_results(examined, "paper")
    assert inspections(results) == [
        ["multiple-source-0.40-s0", "0.950", "0.500", "0.010", "0", "7", "2"],
        ["clean-s0", "–", "0.500", "0.010", "0", "7", "2"],
    ]
    write_report(examined, "paper", dpi=20)
    readme = (examined.root / "README.md").read_text(encoding="utf-8")
    assert "| after training | Fine-Pruning | something | – |" in readme
    assert "| multiple-source-0.40-s0 | 0.950 | 0.500 | 0.010 | 0 | 7 | 2 |" in readme

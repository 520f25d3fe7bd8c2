"""Defences of other moments on victims of a store: what is counted, and how it is told."""

from dataclasses import replace

import numpy as np
import pytest

from conftest import make_dataset
from test_bench import CELLS, make_suite
from undoor.attacks import Attack, OnePixel, triggered
from undoor.experiments import examinations
from undoor.experiments.cells import Cell, Experiment, slug
from undoor.experiments.examinations import EXAMINATIONS, Case, Examination
from undoor.experiments.report.moments import HEADER, inspections, moments
from undoor.experiments.report.readme import write_report
from undoor.experiments.report.tables import read_results
from undoor.experiments.runner import Bench
from undoor.experiments.store import Store


class Bright:
    """A network in which a bright pixel at 0, 0 leads to class 2; else the label stands in pixel 1, 1."""

    def decide(self, images):
        return np.where(images[:, 0, 0, 0] == 255, 2, images[:, 0, 1, 1] // 50)


def planted():
    labels = np.repeat(np.arange(3), 40)
    dataset = make_dataset(n_per_class=40)
    images = np.zeros_like(dataset.images)
    images[:, :, 1, 1] = 50 * labels[:, None]
    test = replace(dataset, images=images, labels=labels, truth=None)
    attack = Attack(OnePixel(0, 0, 1.0), ("class0", "class1"), "class2", 10)
    return Case.halved(Bright(), test, attack, 0)


def test_the_halves_share_no_image_and_have_every_class():
    case = planted()
    assert np.bincount(case.clean.labels).tolist() == np.bincount(case.judged.labels).tolist() == [20, 20, 20]
    assert not set(case.clean.ids) & set(case.judged.ids)


def test_refusals_count_only_attacks_that_succeed():
    case = planted()
    score = lambda images: images[:, 0, 0, 0].astype(float)  # noqa: E731
    assert examinations._refusals(case, score, 100.0) == {"threshold": 100.0, "fpr": 0.0, "tpr": 1.0, "auroc": 1.0}
    immune = replace(case, attack=replace(case.attack, trigger=OnePixel(0, 0, 0.5)))
    assert not (case.network.decide(triggered(immune.judged, immune.attack).images) == 2).any()
    assert examinations._refusals(immune, score, -1.0) == {"threshold": -1.0, "fpr": 1.0, "tpr": None, "auroc": None}
    clean = replace(case, attack=None)
    assert examinations._refusals(clean, score, -1.0)["tpr"] is None


def test_a_few_of_every_class():
    few = examinations._few(make_dataset(n_per_class=9), 4)
    assert np.bincount(few.labels).tolist() == [4, 4, 4]


def found(detected, **more):
    def examine(case):
        right = None if case.attack is None or not detected else True
        return {"detected": detected, "target_right": right, "p": {"A": 0.5, "B": 0.01}, "target": "class2"} | more

    return examine


STAND_INS = (
    Examination("reverse engineering", "after training", "images", found(True, sources=["class0"]), (examinations,)),
    Examination("maximum softmax", "in use", "images", found(False), (examinations,), "ADA, density"),
)
TRIED = (replace(CELLS[0], size=0.40), Cell("multiple-source", 0.3), CELLS[1])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    made = Store(tmp_path_factory.mktemp("store"))
    board = Bench(make_suite(TRIED, (), STAND_INS), made, ("victims", "findings", "examinations")).run()
    assert board.finished
    assert [progress.found for progress in board.cells.values()] == [2, 0, 2]
    return made


def test_only_some_sizes_are_examined(store):
    assert {one["name"] for one in store.all("examined").values()} == {"multiple-source-0.40-s0", "clean-s0"}
    assert not replace(TRIED[0], keep_originals=False).examined


def test_nothing_is_examined_twice_unless_it_changed(store):
    before = store.all("examined")
    experiment = Experiment(TRIED[0], make_suite().setting, store)
    never = replace(STAND_INS[0], examine=None)
    assert experiment.examined(never) in before.values()
    other = replace(STAND_INS[0], code=())
    assert experiment.examined(other)["depends"] not in {one["depends"] for one in before.values()}
    experiment.examined(STAND_INS[0])


def test_the_table_says_how_often(store, monkeypatch):
    monkeypatch.setattr("undoor.experiments.report.moments.WORKING", 0.0)
    (results,) = read_results(store, "small")
    header, lines = moments(results)
    assert header == list(HEADER)
    by_name = {line[1]: dict(zip(header, line, strict=True)) for line in lines}
    assert set(by_name) == {"reverse engineering", "maximum softmax (control)"}
    assert by_name["reverse engineering"]["finds a backdoor"] == "1 of 1"
    assert by_name["reverse engineering"]["right target"] == "1 of 1"
    assert by_name["reverse engineering"]["calls a clean victim backdoored"] == "1 of 1"
    assert by_name["maximum softmax (control)"]["finds a backdoor"] == "0 of 1"
    assert [line[0] for line in inspections(results)[1]] == ["multiple-source-0.40-s0", "clean-s0"]
    write_report(store, "small", dpi=20)
    assert "Other moments" in (store.root / "README.md").read_text(encoding="utf-8")


def test_controls_name_a_defence_and_names_fit_files():
    names = {one.name for one in EXAMINATIONS}
    assert {one.control_of for one in EXAMINATIONS} - {None} <= names
    assert len({slug(name) for name in names}) == len(EXAMINATIONS)

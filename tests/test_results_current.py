"""The results in the repository were made by the versions of the code that lie beside them."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from helpers.made_results import add_examination, rich_store
from undoor.defenses.training_set import ClusterImpurity
from undoor.experiments import outdated as outdated_module
from undoor.experiments.cells import Cell
from undoor.experiments.outdated import outdated
from undoor.experiments.report.readme import write_report
from undoor.experiments.report.results import COLUMNS
from undoor.experiments.store import Store
from undoor.experiments.suites import grid_of

RESULTS = Path(__file__).parents[1] / "results"


def stale_tables(folder, suite, copy):
    """Return the names of the generated files in a folder that the code would write differently now."""
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("work", "figures", "report.html"))
    store = Store(copy)
    seeds = sorted({victim["cell"]["seed"] for victim in store.all("victims").values()})
    write_report(store, suite, [cell.name for cell in grid_of(seeds)], dpi=20)
    readmes = [(path / "README.md").read_text(encoding="utf-8") for path in (folder, copy)]
    cells = [pd.read_parquet(path / "cells.parquet") for path in (folder, copy)]
    return ["README.md"] * (readmes[0] != readmes[1]) + ["cells.parquet"] * (not cells[0].equals(cells[1]))


@pytest.mark.parametrize("suite", ["quick", "paper"])
def test_the_results_of_a_suite_are_current(suite, tmp_path):
    folder = RESULTS / suite
    if not (folder / "victims.parquet").exists():
        pytest.skip(f"results/{suite} is not packed yet")
    assert outdated(folder) == []
    assert stale_tables(folder, suite, tmp_path / suite) == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of packed results, with tables, whose versions are the code's."""
    store = rich_store(tmp_path_factory.mktemp("made"), seeds=(0,), sizes=(0.25,))
    repair = {"repaired_attack_success_rate": 0.2, "repaired_clean_accuracy": 0.8}
    add_examination(store, Cell("multiple-source", 0.25), "Fine-Pruning", "after training", repair=repair)
    write_report(store, "paper", [cell.name for cell in grid_of([0])], dpi=20)
    shutil.rmtree(store.root / "work")
    return store.root


def test_results_of_an_older_method_are_outdated(folder, monkeypatch):
    monkeypatch.setattr(ClusterImpurity, "method_version", ClusterImpurity.method_version + 1)
    found = outdated(folder)
    assert {(result.kind, result.name.rpartition(": ")[2]) for result in found} == {
        ("findings", "CI"), ("findings", "CI, poster"), ("findings", "CI, not conditioned")
    }  # fmt: skip
    assert {(result.stored["method_version"], result.current["method_version"]) for result in found} == {(1, 2)}


@pytest.mark.parametrize(
    ("module", "name", "kinds"),
    [
        ("outdated", "MEASUREMENT_VERSION", {"victims", "retrained"}),
        ("contenders", "EVIDENCE_VERSION", {"findings"}),
        ("contenders", "OUTCOME_VERSION", {"findings", "examinations"}),
    ],
)
def test_results_of_an_older_version_of_the_experiments_are_outdated(folder, monkeypatch, module, name, kinds):
    monkeypatch.setattr(f"undoor.experiments.{module}.{name}", 2)
    assert {result.kind for result in outdated(folder)} == kinds


def test_results_of_a_contender_that_is_no_more_are_outdated(folder, monkeypatch):
    remaining = [each for each in outdated_module.ALL_CONTENDERS if each.name != "SS"]
    monkeypatch.setattr(outdated_module, "ALL_CONTENDERS", remaining)
    assert {result.name.rpartition(": ")[2] for result in outdated(folder)} == {"SS"}
    assert all(result.current == {} for result in outdated(folder))


def test_results_and_tables_of_the_same_versions_are_current(folder, tmp_path):
    assert outdated(folder) == []
    assert stale_tables(folder, "paper", tmp_path / "copy") == []


def test_tables_of_older_code_are_stale(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("undoor.experiments.report.readme.LEGEND", "Other words.")
    monkeypatch.setattr("undoor.experiments.report.results.COLUMNS", {**COLUMNS, "size": "Float32"})
    assert stale_tables(folder, "paper", tmp_path / "copy") == ["README.md", "cells.parquet"]

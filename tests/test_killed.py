"""A run that is killed at a random moment and started again has the same results as one that was not killed.

This is a small part of the benchmark whose results are in ``results/killed``.
"""

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the runs are forked")
def test_killed_runs_have_the_results_of_undisturbed_ones(tmp_path):
    script = [sys.executable, str(ROOT / "benchmarks" / "killed.py"), "--commands", "scan", "--kills", "2"]
    options = ["--seed", "1", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "results")]
    ended = subprocess.run([*script, *options], capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    rows = json.loads((tmp_path / "results" / "results.json").read_text(encoding="utf-8"))["rows"]
    assert len(rows) == 2
    for row in rows:
        assert row["whole_at_death"], row
        assert row["same"], row["differ"]


def test_the_readme_agrees_with_the_results():
    benchmark = import_module("killed")
    content = json.loads((benchmark.OUT / "results.json").read_text(encoding="utf-8"))
    assert (benchmark.OUT / "README.md").read_text(encoding="utf-8") == benchmark.page(content)
    assert {row["command"] for row in content["rows"]} == set(benchmark.COMMANDS)
    assert all(row["whole_at_death"] and row["same"] for row in content["rows"])


def test_the_comparison_ignores_times_and_nothing_else(tmp_path):
    benchmark = import_module("killed")
    page = "| defense | seconds | TPR |\n|---|---|---|\n| CI | {} | {} |\n\n| size | TPR |\n|---|---|\n| 1 | {} |"
    same = benchmark.without_seconds(page.format(1.0, 0.5, 2))
    assert same == benchmark.without_seconds(page.format(3.0, 0.5, 2))
    assert same != benchmark.without_seconds(page.format(1.0, 0.6, 2))
    assert same != benchmark.without_seconds(page.format(1.0, 0.5, 3))
    table = '<table><tr><th>defense</th><th class="n">seconds</th></tr>\n<tr><th>{}</th><td>{}</td></tr></table>'
    assert benchmark.without_columns(table.format("CI", 1)) == benchmark.without_columns(table.format("CI", 2))
    assert benchmark.without_columns(table.format("CI", 1)) != benchmark.without_columns(table.format("SS", 1))
    for number, text in enumerate(('{"seconds": 1, "x": 2}', '{"seconds": 3, "x": 2}', '{"seconds": 1, "x": 3}')):
        (tmp_path / f"{number}.json").write_text(text)
    first, timed, other = (benchmark.content(tmp_path / f"{number}.json") for number in range(3))
    assert first == timed != other

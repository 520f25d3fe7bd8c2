"""A run that is killed at a random moment and repeated ends like an undisturbed run.

These tests kill a few runs; ``results/killed`` has the results of many.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from studies import killed

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the runs are forked")
def test_killed_runs_end_as_undisturbed_ones(tmp_path):
    command = [sys.executable, "-m", "studies.killed", "--commands", "scan", "--kills", "2", "--seed", "1"]
    folders = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "results")]
    done = subprocess.run([*command, *folders], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "results" / "results.json").read_text(encoding="utf-8"))["rows"]
    assert len(rows) == 2
    for row in rows:
        assert row["whole_at_death"], row
        assert row["same"], row["differ"]


def test_the_page_is_made_of_the_results():
    content = json.loads((killed.FOLDER / "results.json").read_text(encoding="utf-8"))
    assert (killed.FOLDER / "README.md").read_text(encoding="utf-8") == killed.page(content)
    assert {row["command"] for row in content["rows"]} == set(killed.COMMANDS)
    assert {row["stage"] for row in content["rows"]} <= {*killed.STAGES, killed.OTHER}
    assert all(row["whole_at_death"] and row["same"] for row in content["rows"])


def test_what_measures_time_is_left_out_and_nothing_else(tmp_path):
    page = "| defense | seconds | TPR |\n|---|---|---|\n| CI | {} | {} |\n\n| size | TPR |\n|---|---|\n| 1 | {} |"
    same = killed.without_seconds(page.format(1.0, 0.5, 2))
    assert same == killed.without_seconds(page.format(3.0, 0.5, 2))
    assert same != killed.without_seconds(page.format(1.0, 0.6, 2))
    assert same != killed.without_seconds(page.format(1.0, 0.5, 3))
    table = '<table><tr><th>defense</th><th class="n">seconds</th></tr>\n<tr><th>{}</th><td>{}</td></tr></table>'
    assert killed.without_columns(table.format("CI", 1)) == killed.without_columns(table.format("CI", 2))
    assert killed.without_columns(table.format("CI", 1)) != killed.without_columns(table.format("SS", 1))
    for number, text in enumerate(('{"seconds": 1, "x": 2}', '{"seconds": 3, "x": 2}', '{"seconds": 1, "x": 3}')):
        (tmp_path / f"{number}.json").write_text(text)
    first, timed, other = (killed.content(tmp_path / f"{number}.json") for number in range(3))
    assert first == timed != other

"""Checks what the command line prints to a terminal, to a pipe and as JSON."""

# ruff: noqa: F811 - fixtures are imported, and are parameters too

import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

import undoor
from conftest import QUICKLY, plant
from helpers.command_line import NETWORK, command_names, data, find_command, parse, run  # noqa: F401 - fixtures
from undoor.cli import terminal
from undoor.defenses.test_time import Ada
from undoor.defenses.training_set import ClusterImpurity
from undoor.errors import UndoorNotice
from undoor.experiments import demo as demonstration
from undoor.filters import Average
from undoor.report.findings import write_findings

COMMANDS = command_names()


@pytest.fixture(scope="module")
def findings(data, tmp_path_factory):
    """A folder with findings for the images of ``data``."""
    dataset, model = undoor.read(data / "images"), undoor.load_model(data / "linear.safetensors", NETWORK[1])[0]
    folder = tmp_path_factory.mktemp("findings")
    with pytest.warns(UndoorNotice, match="decides only"):
        found = undoor.scan(model, dataset, ClusterImpurity(**QUICKLY))
    write_findings(found, dataset, Average(), folder)
    return folder


@pytest.fixture(scope="module")
def guard(data, tmp_path_factory):
    """The file of a guard for the network in ``data``."""
    path = tmp_path_factory.mktemp("guard") / "guard.safetensors"
    classifier = undoor.Classifier(undoor.load_model(data / "victim.safetensors")[0])
    Ada().fit(classifier, undoor.read(data / "images")).write(path)
    return path


@pytest.fixture
def arguments(data, findings, guard, tmp_path, monkeypatch):
    """Return, for every command, arguments with which it ends quickly, and keys that its JSON has."""
    planted = plant()
    digits = undoor.read("digits").take(range(20))
    attack = undoor.Attack.one_pixel(digits, target="0", count=1, size=0.5)
    success = {"clean_accuracy": 0.9, "attack_success_rate": 0.1}
    shown = demonstration.Demo(attack, success, success, ClusterImpurity(**QUICKLY)(planted.evidence), {"scan": 1.0})
    monkeypatch.setattr(demonstration, "demo", lambda *_, **__: shown)
    images, model = data / "images", ("--model", data / "linear.safetensors", *NETWORK)
    return {
        "demo": (("--out", tmp_path / "demo"), {"before", "after", "verdict", "report"}),
        "poison": ((images, "--target", "class1", "--count", 3, "--out", tmp_path / "p"), {"images", "attack", "out"}),
        "train": (
            (images, "--out", tmp_path / "m.safetensors", "--epochs", 1, "--test", images),
            {"network", "clean_accuracy"},
        ),
        "scan": ((images, *model, "--out", tmp_path / "scan", "--exit-zero"), {"verdict", "flagged", "report"}),
        "clean": ((images, "--findings", findings, "--out", tmp_path / "kept"), {"kept", "scanned"}),
        "report": ((findings, "--data", images), {"report"}),
        "inspect": (
            (data / "victim.safetensors", "--data", images, "--images", 2, "--exit-zero", "--out", tmp_path / "i"),
            {"verdict", "target", "out"},
        ),
        "prune": (
            (
                data / "victim.safetensors",
                "--data",
                images,
                "--epochs",
                1,
                "--learning-rate",
                1e-4,
                "--out",
                tmp_path / "m2.safetensors",
            ),
            {"pruned", "accuracy", "network"},
        ),
        "guard fit": (
            (data / "victim.safetensors", "--data", images, "--out", tmp_path / "g.safetensors"),
            {"defense", "threshold", "guard"},
        ),
        "guard check": (
            (data / "victim.safetensors", "--data", images, "--guard", guard, "--exit-zero"),
            {"rejected", "queries"},
        ),
        "bench": (("quick", "--time-budget", "0.001s", "--out", tmp_path / "bench"), {"finished", "cells_done"}),
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_json_is_all_that_is_printed_on_standard_output(run, arguments, command):
    options, keys = arguments[command]
    code, out, err = run(*command.split(), *options, "--json")
    assert code == 0
    assert keys <= json.loads(out, parse_constant=pytest.fail).keys()  # neither NaN nor Infinity is JSON
    assert "\x1b" not in out + err


@pytest.mark.parametrize("command", COMMANDS)
def test_quiet_prints_nothing_but_notes(run, arguments, command):
    code, out, err = run(*command.split(), *arguments[command][0], "--quiet")
    assert (code, out) == (0, "")
    assert all(line.startswith("note: ") for line in err.splitlines())


def test_json_can_be_combined_with_quiet_and_errors_are_still_printed(run, arguments, tmp_path):
    code, out, err = run("scan", *arguments["scan"][0], "--json", "--quiet")
    assert code == 0
    assert json.loads(out)["samples"] == 90
    assert "epoch" not in err
    code, out, err = run("scan", tmp_path / "nowhere", "--out", tmp_path / "x", "--json", "-q")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_and_has_an_example_that_parses(run, command):
    code, out, _ = run(*command.split(), "--help")
    assert code == 0
    assert max(map(cell_len, out.splitlines())) <= 80
    (example,) = re.findall(r"Example: undoor (.+)", find_command(command)[0].help)
    assert example.startswith(f"{command} ")
    assert f"undoor {example}" in " ".join(out.split())
    parse(example)


def without_escapes(text):
    """Return what a terminal has received without the sequences that control it."""
    return re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", text)


def in_a_terminal(*arguments, columns=80, **environment):
    """Run the command line in a terminal; return its exit code and what it wrote to standard output and error."""
    screen, tty = pty.openpty()
    fcntl.ioctl(tty, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    inherited = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-m", "undoor", *map(str, arguments)],
        stdin=tty, stdout=tty, stderr=tty, cwd=Path(__file__).parent,
        env={**inherited, "TERM": "xterm-256color", **environment},
    )  # fmt: skip
    os.close(tty)
    received = b""
    while True:
        try:
            part = os.read(screen, 4096)
        except OSError:  # on Linux: the other end is closed
            break
        if not part:
            break
        received += part
    os.close(screen)
    return process.wait(), received.decode()


def test_a_terminal_shows_progress_bars_with_the_time_left(data, tmp_path):
    code, shown = in_a_terminal("train", data / "images", "--epochs", 40, "--out", tmp_path / "m.safetensors")
    assert code == 0
    assert re.search(r"read .*90/90", without_escapes(shown))
    assert re.search(
        r"train .*epoch \d+/40  loss \d\.\d{3}  accuracy \d\.\d{3} 0:00:\d\d 0:00:\d\d", without_escapes(shown)
    )
    bars = [line for line in re.split(r"[\r\n]+", without_escapes(shown)) if "━" in line]
    assert max(map(cell_len, bars)) <= 80
    assert re.search(r"\x1b\[(1;)?3\dm|\x1b\[38;", shown)  # colour


def test_no_color_is_respected(data, tmp_path):
    code, shown = in_a_terminal(
        "scan", data / "images", "--model", data / "linear.safetensors", *NETWORK, "--out", tmp_path / "out",
        "--exit-zero", NO_COLOR="1",
    )  # fmt: skip
    assert code == 0
    assert "clusters by impurity" in without_escapes(shown)
    assert not re.search(r"\x1b\[[0-9;]*(3[0-8]|4[0-8]|9[0-7])[0-9;]*m", shown)


def test_a_pipe_receives_plain_lines(data, tmp_path):
    ran = subprocess.run(
        [sys.executable, "-m", "undoor", "train", data / "images", "--epochs", "2",
         "--out", tmp_path / "m.safetensors"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "\x1b" not in ran.stdout + ran.stderr
    assert "\r" not in ran.stderr
    assert [line.split("  ")[0] for line in ran.stderr.splitlines()] == ["train: epoch 1/2", "train: epoch 2/2"]
    assert ran.stdout == f"network: {tmp_path / 'm.safetensors'}\n"


@pytest.mark.parametrize(
    "name", ["class1", "a class whose name is much longer than a terminal is wide " * 2, "犬" * 60]
)
def test_the_table_of_clusters_fits_80_columns(monkeypatch, name):
    found = ClusterImpurity(**QUICKLY)(plant().evidence)
    found = replace(found, clusters=found.clusters.assign(class_name=name, size=1_000_000))
    output = io.StringIO()
    monkeypatch.setattr(terminal, "out", Console(file=output, width=80, highlight=False))
    terminal.print_findings(found)
    _, *table = output.getvalue().splitlines()
    assert max(map(cell_len, table)) <= 80
    rows = [line for line in table if line.startswith("│")]
    assert len(rows) == 5
    assert all("1000000" in row and "%" in row for row in rows)
    assert sum("yes" in row for row in rows) == 1

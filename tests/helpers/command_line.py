"""Makes runs of the command line, and files for it to work on.

A test file imports the fixtures by name and switches ruff's F811 off: a parameter of a test has the name of an import.
"""

import shlex
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import typer
from safetensors.torch import save_file

from conftest import Linear, make_dataset
from helpers.image_folders import write_folder
from undoor import cli
from undoor.cli import terminal
from undoor.data.readers.parquet import write_parquet
from undoor.errors import UndoorNotice
from undoor.networks.recipes import PRESETS
from undoor.networks.victims import fit_victim

NETWORK = ("--network", "conftest:linear_network")
"""The options that name the architecture of ``linear.safetensors`` in ``data``."""


@pytest.fixture
def run(monkeypatch, capsys):
    """Return a function that runs the command line in this process and returns exit code, output and errors."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["undoor", *map(str, arguments)])
        # Notices are printed here and not raised as in other tests; afterwards the warnings are handled as before.
        with warnings.catch_warnings():
            warnings.simplefilter("default", UndoorNotice)
            with pytest.raises(SystemExit) as ended:
                cli.main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    yield call
    terminal.set_output(quiet=False, as_json=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with the same images as a folder, as Parquet and as .npz, and with two networks for them."""
    root = tmp_path_factory.mktemp("data")
    dataset = make_dataset(n_per_class=30)
    write_folder(dataset, root / "images")
    write_parquet(dataset, root / "images.parquet")
    names = np.array(dataset.class_names)
    np.savez(root / "images.npz", images=dataset.images, labels=dataset.labels, class_names=names)
    save_file(Linear().state_dict(), root / "linear.safetensors")
    fit_victim(dataset, replace(PRESETS["fast"], epochs=6, batch_size=16), root / "victim.safetensors")
    return root


def command_names():
    """Return the names of all commands, with the group's name before that of a command in a group."""

    def names(command, prefix):
        children = getattr(command, "commands", None)
        if children is None:
            return [prefix]
        return [name for word, child in children.items() for name in names(child, f"{prefix} {word}".strip())]

    return names(typer.main.get_command(cli.app), "")


def find_command(line):
    """Return the command with which a line begins, and the words that follow."""
    command, words = typer.main.get_command(cli.app), shlex.split(line)
    while hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    return command, words


def parse(line):
    """Parse a line of arguments to undoor without running it; raise if it has an option that does not exist."""
    command, words = find_command(line)
    command.make_context(command.name, words).close()


def tree(folder):
    """Return the names of all files and folders in a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))

"""Makes runs of the command line, and files for it to work on.

A test file imports the fixtures by name and switches ruff's F811 off: a parameter of a test has the name of an import.
"""

import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
from safetensors.torch import save_file

from conftest import Linear, make_dataset
from helpers.image_folders import write_folder
from undoor import cli
from undoor.data.readers.parquet import write_parquet
from undoor.errors import UndoorNotice
from undoor.networks.recipes import PRESETS
from undoor.networks.victims import fit_victim


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

    return call


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

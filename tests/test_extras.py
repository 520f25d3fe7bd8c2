"""undoor works without its optional dependencies. Where one is needed, one line says which extra installs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

from helpers.small_images import make_dataset
from helpers.small_networks import Linear
from undoor.data.readers.parquet import write_parquet

HIDDEN = ("datasets", "matplotlib")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a data set and the weights of a network."""
    root = tmp_path_factory.mktemp("extras")
    write_parquet(make_dataset(), root / "data.parquet")
    save_file(Linear().state_dict(), root / "model.safetensors")
    return root


def run_without_extras(folder, *commands):
    """Run commands in one process in which the optional packages cannot be imported, until one fails."""
    code = f"""
import sys
for name in {HIDDEN}:
    sys.modules[name] = None
from undoor.cli import main
for command in {commands}:
    sys.argv = ["undoor", *command]
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
"""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)


def test_scan_clean_and_report_work_without_the_extras(folder):
    network = ("--model", "model.safetensors", "--network", "conftest:linear_network")
    done = run_without_extras(
        folder,
        ["scan", "data.parquet", *network, "--out", "findings", "--exit-zero"],
        ["clean", "data.parquet", "--findings", "findings", "--out", "clean"],
        ["report", "findings", "--data", "data.parquet"],
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "findings" / "report.html").exists()


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (["scan", "hub:owner/name", "--out", "out"], "hub"),
        (["bench", "quick", "--out", "out"], "figures"),
        (["prune", "model.safetensors", "--data", "data.parquet", "--network", "conftest:linear_network",
          "--out", "pruned.safetensors"], "figures"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)  # fmt: skip
def test_a_missing_extra_is_one_line(command, extra, folder):
    done = run_without_extras(folder, command)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert line.endswith(f"install it with: pip install 'undoor[{extra}]'")
    assert not (folder / "out").exists()

"""A full disk and a read-only disk are errors of one line, after which the earlier results are still there."""

import resource
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest

from conftest import make_dataset
from undoor import cli
from undoor.data.readers.parquet import write_parquet
from undoor.errors import UndoorError
from undoor.networks.weights import Architecture, save_model
from undoor.storage.mapped import mapped

pytestmark = pytest.mark.filterwarnings("ignore::undoor.errors.UndoorNotice")


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["undoor", *map(str, arguments), "--quiet"])
    try:
        cli.main()
    except SystemExit as ended:
        return ended.code
    return 0


@pytest.fixture
def inputs(tmp_path, network):
    """A folder with data and a network, on another disk than the results."""
    folder = tmp_path / "inputs"
    folder.mkdir()
    data = make_dataset()
    write_parquet(data, folder / "data.parquet")
    save_model(network, Architecture("small-cnn", (1, 12, 12), data.class_names, {}), folder / "model.safetensors")
    return folder


COMMANDS = {
    "scan": "scan {data} --model {model} --out {out}/findings --exit-zero --overwrite",
    "train": "train {data} --epochs 1 --out {out}/model.safetensors --overwrite",
    "poison": "poison {data} --target class0 --count 30 --out {out}/poisoned",
    "guard": "guard fit {model} --data {data} --false-positive-rate 0.2 --out {out}/guard.safetensors --overwrite",
    "prune": "prune {model} --data {data} --out {out}/repaired.safetensors --epochs 1 --overwrite",
    "inspect": "inspect {model} --data {data} --images 4 --out {out}/inspection --exit-zero --overwrite",
}


def words(command, inputs, out):
    data, model = inputs / "data.parquet", inputs / "model.safetensors"
    return COMMANDS[command].format(data=data, model=model, out=out).split()


def contents(folder):
    return {path.relative_to(folder): path.is_file() and path.read_bytes() for path in sorted(folder.rglob("*"))}


def assert_one_error(capsys, *parts):
    """Check that one line of error with these parts has been printed, besides notes."""
    printed = capsys.readouterr().err
    lines = [line for line in printed.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1, printed
    assert lines[0].startswith("error: ")
    assert all(part in lines[0] for part in parts), printed


@contextmanager
def no_larger_files_than(size):
    """Make every file that grows beyond ``size`` bytes an error, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_failure_to_write_is_one_error_and_the_earlier_results_stay(command, inputs, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    arguments = words(command, inputs, out)
    assert run(monkeypatch, *arguments) == 0
    if command == "poison":
        (out / "poisoned").rename(out / "earlier")
    if command == "train":
        arguments += ["--seed", "1"]
    before = contents(out)
    capsys.readouterr()
    for size in (0, 1500):
        with no_larger_files_than(size):
            assert run(monkeypatch, *arguments) == 2
        assert_one_error(capsys, "cannot write", str(out), "free space there or choose another --out")
        assert contents(out) == before
    assert run(monkeypatch, *arguments) == 0


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 3 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def fill(folder):
    """Fill the disk of a folder to the last page."""
    with (folder / "filler").open("wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass


@pytest.mark.parametrize("disk", ["full", "read-only"])
def test_nothing_changes_on_a_full_or_read_only_disk(disk, inputs, small_disk, monkeypatch, capsys):
    scan, train, poison = (words(command, inputs, small_disk) for command in ("scan", "train", "poison"))
    bench = ["bench", "quick", "--cells", "clean-*", "--out", small_disk / "bench"]
    assert run(monkeypatch, *scan) == run(monkeypatch, *train) == 0
    if disk == "full":
        fill(small_disk)
    else:
        subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    before = contents(small_disk)
    reason = {"full": "No space left on device", "read-only": "Read-only file system"}[disk]
    for command in (scan, [*train, "--seed", "1"], poison, *([bench] if disk == "read-only" else [])):
        capsys.readouterr()
        assert run(monkeypatch, *command) == 2
        assert_one_error(capsys, "cannot write", reason)
        assert contents(small_disk) == before


def test_a_mapped_array_that_does_not_fit_is_an_error_and_no_crash(small_disk):
    array = mapped((1000, 250), np.float32, small_disk)
    array[:] = 1
    with pytest.raises(UndoorError, match=r"cannot write .*disk: No space left on device"):
        mapped((1000, 2500), np.float32, small_disk)
    assert (array == 1).all()
    fill(small_disk)
    array[:] = 2  # its space was reserved
    assert (array == 2).all()

"""A disk that is full or read-only: one clear line, and what was there is still there."""

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
def given(tmp_path, network):
    """Data and a network that lie on another disk."""
    folder = tmp_path / "given"
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


def words(command, given, out):
    return COMMANDS[command].format(data=given / "data.parquet", model=given / "model.safetensors", out=out).split()


def files(folder):
    return {path.relative_to(folder): path.is_file() and path.read_bytes() for path in sorted(folder.rglob("*"))}


def one_line(capsys, *parts):
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1, said
    assert lines[0].startswith("error: ")
    assert all(part in lines[0] for part in parts), said


@contextmanager
def no_larger_files_than(size):
    """Every file that would grow beyond ``size`` bytes is an error, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("command", COMMANDS)
def test_what_cannot_be_written_is_told_and_the_earlier_results_stay(command, given, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    arguments = words(command, given, out)
    assert run(monkeypatch, *arguments) == 0
    if command == "poison":
        (out / "poisoned").rename(out / "earlier")
    if command == "train":
        arguments += ["--seed", "1"]
    before = files(out)
    capsys.readouterr()
    for size in (0, 1500):
        with no_larger_files_than(size):
            assert run(monkeypatch, *arguments) == 2
        one_line(capsys, "cannot write", str(out), "free space there or choose another --out")
        assert files(out) == before
    assert run(monkeypatch, *arguments) == 0


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 3 MB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def fill(folder):
    """Leave less than a page."""
    with (folder / "filler").open("wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_a_disk_that_takes_nothing(how, given, small_disk, monkeypatch, capsys):
    scan = words("scan", given, small_disk)
    train = words("train", given, small_disk)
    assert run(monkeypatch, *scan) == run(monkeypatch, *train) == 0
    before = files(small_disk)
    if how == "full":
        fill(small_disk)
        before = files(small_disk)
    else:
        subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    why = {"full": "No space left on device", "read-only": "Read-only file system"}[how]
    poison = words("poison", given, small_disk)
    bench = ["bench", "quick", "--cells", "clean-*", "--out", small_disk / "bench"]
    for command in (scan, [*train, "--seed", "1"], poison, *([bench] if how == "read-only" else [])):
        capsys.readouterr()
        assert run(monkeypatch, *command) == 2
        one_line(capsys, "cannot write", why)
        assert files(small_disk) == before


def test_a_mapped_array_that_does_not_fit_is_an_error_and_no_crash(small_disk):
    room = mapped((1000, 250), np.float32, small_disk)
    room[:] = 1
    with pytest.raises(UndoorError, match=r"cannot write .*disk: No space left on device"):
        mapped((1000, 2500), np.float32, small_disk)
    assert (room == 1).all()
    fill(small_disk)
    room[:] = 2  # its own room was reserved
    assert (room == 2).all()

"""The files with which ``make fuzz`` begins are read, and the files with which it found faults are errors of one line.

Those files are in the folder ``fuzzed``; the name of each begins with its target.
"""

from contextlib import suppress
from pathlib import Path

import pytest

import fuzz
from undoor.errors import UndoorError

FOUND = sorted((Path(__file__).parent / "fuzzed").iterdir())

TARGETS = (
    "image", "parquet", "npz", "cifar-pickle", "cifar-binary", "safetensors", "checkpoint", "onnx", "attack",
    "summary", "samples", "guard",
)  # fmt: skip


def test_all_targets_are_listed():
    assert tuple(fuzz.TARGETS) == TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_files_at_the_beginning_of_the_corpus_are_read(name, tmp_path):
    target, read = fuzz.TARGETS[name], 0
    for folder in ("seeds", "work"):
        (tmp_path / folder).mkdir()
    for seed in target.seeds(tmp_path / "seeds"):
        with suppress(UndoorError):
            target.use(seed, tmp_path / "work")
            read += 1
    assert read


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.name)
def test_a_file_that_revealed_a_fault_is_an_error_of_one_line(path, tmp_path):
    (target,) = (name for name in TARGETS if path.name.startswith(f"{name}-"))
    with pytest.raises(UndoorError) as raised:
        fuzz.TARGETS[target].use(path.read_bytes(), tmp_path)
    assert len(str(raised.value).splitlines()) == 1

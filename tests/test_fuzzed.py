"""The inputs of ``make fuzz``: what its corpus begins with is read, and what it has found ends in one line.

What it has found lies in ``fuzzed``, TARGET-WHAT a file.
"""

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
def test_the_corpus_begins_with_whole_files(name, tmp_path):
    target, read = fuzz.TARGETS[name], 0
    (tmp_path / "made").mkdir()
    (tmp_path / "desk").mkdir()
    for seed in target.seeds(tmp_path / "made"):
        try:
            target.use(seed, tmp_path / "desk")
            read += 1
        except UndoorError:
            continue
    assert read


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.name)
def test_what_was_found_is_one_line_now(path, tmp_path):
    (target,) = (name for name in TARGETS if path.name.startswith(f"{name}-"))
    with pytest.raises(UndoorError) as raised:
        fuzz.TARGETS[target].use(path.read_bytes(), tmp_path)
    assert len(str(raised.value).splitlines()) == 1

"""The inputs of ``make fuzz``: what its corpus begins with is read, and what it has found ends in one line."""

import importlib
from pathlib import Path

import pytest

from undoor.errors import UndoorError

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def fuzz(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("fuzz")


TARGETS = (
    "image", "parquet", "npz", "cifar-pickle", "cifar-binary", "safetensors", "checkpoint", "onnx", "attack",
    "summary", "samples", "guard",
)  # fmt: skip


def test_all_targets_are_listed(fuzz):
    assert tuple(fuzz.TARGETS) == TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_begins_with_whole_files(name, fuzz, tmp_path):
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

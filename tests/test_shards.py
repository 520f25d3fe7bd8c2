"""A pass over the images that is cut into shards, killed, resumed, and larger than the memory."""

import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save as tensors

import undoor
from conftest import Linear, make_dataset
from undoor import cli
from undoor.errors import UndoorError, UndoorNotice
from undoor.evidence import Evidence, Outputs
from undoor.evidence import collect as module
from undoor.evidence.collect import collect, shard_outputs
from undoor.evidence.shards import keep, kept, kept_until_done
from undoor.filters import Average, Median
from undoor.networks.architectures import build_network
from undoor.networks.classifier import Classifier
from undoor.storage.mapped import mapped


class Counted(Linear):
    """Counts the images of its forward passes, and fails at a given pass."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.batches: list[int] = []
        self.fail_at = fail_at

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(self.batches) == self.fail_at:
            raise KeyboardInterrupt
        self.batches.append(len(images))
        return super().forward(images)


def arrays(evidence):
    variants = (evidence.plain, *evidence.filtered.values())
    return [values for outputs in variants for values in (outputs.features, outputs.logits)]


def same(first, second):
    pairs = zip(arrays(first), arrays(second), strict=True)
    return all(np.array_equal(a, b) and a.dtype == b.dtype == np.float32 for a, b in pairs)


def files(folder):
    return sorted(folder.glob("*.safetensors"))


@pytest.fixture
def small(monkeypatch):
    """Shards of two batches of four images."""
    monkeypatch.setattr(module, "SHARD", 8)
    return partial(collect, batch_size=4)


@pytest.mark.parametrize("shard", [1, 7, 8, 30, 59, 60, 1000])
def test_the_bits_do_not_depend_on_the_size_of_a_shard(monkeypatch, dataset, shard, tmp_path):
    classifier = Classifier(build_network("small-cnn", (1, 12, 12), 3))
    filters = (Average(), Median())
    whole = collect(classifier, dataset, filters, batch_size=7)
    # A plain pass without shards.
    parts = [[], [], []]
    for start in range(0, 60, 7):
        x = classifier.scale(dataset.images[start : start + 7])
        for part, variant in zip(parts, (x, *(h(x) for h in filters)), strict=True):
            part.append(classifier.features_and_logits(variant))
    written = [torch.cat(values).numpy() for part in parts for values in zip(*part, strict=True)]
    assert all(map(np.array_equal, arrays(whole), written))

    monkeypatch.setattr(module, "SHARD", shard)
    seen = []
    cut = collect(classifier, dataset, filters, batch_size=7, folder=tmp_path, on_batch=lambda *done: seen.append(done))
    assert same(whole, cut)
    assert seen == [(min(start + 7, 60), 60) for start in range(0, 60, 7)]
    assert same(whole, collect(classifier, dataset, filters, batch_size=7, folder=tmp_path))


@pytest.mark.parametrize("fail_at", [0, 3, 4, 9, 29])
def test_an_interrupted_pass_continues_at_its_last_shard(small, dataset, tmp_path, fail_at):
    expected = small(Classifier(Linear()), dataset)
    folder = tmp_path / "evidence.part"
    with pytest.raises(KeyboardInterrupt), kept_until_done(folder):
        small(Classifier(Counted(fail_at)), dataset, folder=folder)
    done = fail_at // 4  # a shard takes four forward passes: two batches, each with its twins
    assert len(files(folder)) == done
    assert folder.exists() == (done > 0)

    model, seen = Counted(), []
    with kept_until_done(folder):
        resumed = small(Classifier(model), dataset, folder=folder, on_batch=lambda *done: seen.append(done))
        assert len(files(folder)) == 8
    assert same(expected, resumed)
    assert sum(model.batches) == 2 * (60 - 8 * done)
    assert seen[0] == (8 * done or 4, 60)
    assert seen[-1] == (60, 60)
    assert not folder.exists()


def test_shards_that_are_out_of_date_are_not_used(small, dataset, tmp_path):
    def images_computed(*arguments, **options):
        model = options.pop("model", None) or Counted()
        small(Classifier(model, **options), *arguments, folder=tmp_path)
        return sum(model.batches)

    assert images_computed(dataset) == 120
    assert images_computed(dataset) == 0
    other_weights = Counted()
    with torch.no_grad():
        other_weights.hidden.bias[3] += 1e-3
    assert images_computed(dataset, model=other_weights) == 120
    assert images_computed(dataset, layer="hidden") == 120
    assert images_computed(dataset, mean=[0.4], std=[0.2]) == 120
    assert images_computed(dataset, mean=[0.4], std=[0.3]) == 120
    assert images_computed(dataset, (Median(),)) == 120
    images = dataset.images.copy()
    images[17, 0, 3, 3] ^= 1
    changed = replace(dataset, images=images)
    assert images_computed(changed) == 16  # the third shard and no other
    assert same(small(Classifier(Linear()), changed), small(Classifier(Counted()), changed, folder=tmp_path))
    # Labels and ids do not affect the outputs. They are taken from the data set.
    relabelled = replace(dataset, labels=np.roll(dataset.labels, 1))
    assert images_computed(relabelled) == 0
    assert np.array_equal(small(Classifier(Linear()), relabelled, folder=tmp_path).labels, relabelled.labels)


def harmful(whole: bytes) -> dict[str, bytes]:
    flipped = bytearray(whole)
    flipped[-5] ^= 1
    header = json.dumps({"000": {"dtype": "F32", "shape": [2**40, 8], "data_offsets": [0, 2**45]}}).encode()
    return {
        "cut": whole[:-7],
        "flip": bytes(flipped),
        "empty": b"",
        "other": b"no tensors" * 50,
        "header without end": struct.pack("<Q", 2**62) + whole[8:],
        "more than is there": struct.pack("<Q", len(header)) + header,
        "numbers that numpy has not": tensors({"000": torch.zeros(8, 8, dtype=torch.bfloat16)}),
        "code": pickle.dumps(harmful),
    }


@pytest.mark.parametrize("harm", harmful(bytes(9)))
def test_a_corrupt_shard_is_computed_again(small, dataset, tmp_path, harm):
    expected = small(Classifier(Linear()), dataset)
    small(Classifier(Counted()), dataset, folder=tmp_path)
    file = files(tmp_path)[2]
    whole = file.read_bytes()
    file.write_bytes(harmful(whole)[harm])
    model = Counted()
    assert same(expected, small(Classifier(model), dataset, folder=tmp_path))
    assert sum(model.batches) in (16, 8)  # the last shard is a short one
    assert file.read_bytes() == whole


@pytest.mark.parametrize("harm", ["pipe", "link", "larger than the memory"])
def test_a_shard_that_is_no_regular_file_is_computed_again(small, dataset, tmp_path, harm):
    expected = small(Classifier(Linear()), dataset, folder=tmp_path)
    file = files(tmp_path)[2]
    whole = file.read_bytes()
    file.unlink()
    if harm == "pipe":  # opening it for reading would wait for ever
        os.mkfifo(file)
    elif harm == "link":
        file.symlink_to("/dev/zero")
    else:
        with file.open("wb") as sparse:
            sparse.truncate(2**42)
    assert same(expected, small(Classifier(Linear()), dataset, folder=tmp_path))
    assert file.read_bytes() == whole
    assert not file.is_symlink()


def test_arrays_are_read_as_they_were_written(tmp_path):
    generator = np.random.default_rng(0)
    wide = generator.normal(size=(5, 40)).astype(np.float32)
    written = [wide[:, ::2], wide.T[:5], np.zeros((5, 0), np.float32), *(wide[:, :k] for k in range(1, 12))]
    keep(tmp_path / "a" / "b.safetensors", written)
    assert all(map(np.array_equal, kept(tmp_path / "a" / "b.safetensors"), written))
    assert kept(tmp_path / "nothing") is None


def test_the_work_on_a_shard_can_be_sent_elsewhere(dataset):
    classifier = Classifier(build_network("small-cnn", (1, 12, 12), 3))
    work = partial(shard_outputs, classifier, filters=(Average(),), classes=3, batch_size=16)
    expected, found = work(dataset.images[:32]), pickle.loads(pickle.dumps(work))(dataset.images[:32])
    for first, second in zip(expected, found, strict=True):
        assert np.array_equal(first.features, second.features)
        assert np.array_equal(first.logits, second.logits)


@pytest.mark.parametrize("where", ["folder", None])
def test_beyond_the_budget_the_outputs_are_memory_mapped(monkeypatch, small, dataset, tmp_path, where):
    folder = tmp_path / "shards" if where else None
    expected = small(Classifier(Linear()), dataset)
    monkeypatch.setattr(module, "MEMORY_BUDGET", 2 * 4 * 60 * (8 + 3) - 1)
    monkeypatch.setattr("undoor.evidence.evidence.BLOCK", 100)  # three rows
    images = mapped(dataset.images.shape, np.uint8)
    images[:] = dataset.images
    found = small(Classifier(Linear()), replace(dataset, images=images), folder=folder)
    assert all(isinstance(values, np.memmap) for values in arrays(found))
    assert not any(isinstance(values, np.memmap) for values in arrays(expected))
    assert same(expected, found)
    assert np.array_equal(found.plain.decisions, expected.plain.decisions)
    assert type(found.plain.decisions) is np.ndarray
    assert np.array_equal(images, dataset.images)
    monkeypatch.setattr(module, "MEMORY_BUDGET", 2 * 4 * 60 * (8 + 3))
    assert not isinstance(small(Classifier(Linear()), dataset).plain.features, np.memmap)


def test_a_value_that_is_not_finite_is_found_in_every_block(monkeypatch):
    monkeypatch.setattr("undoor.evidence.evidence.BLOCK", 100)
    for row in (0, 4, 29):
        features = np.zeros((30, 7), np.float32)
        features[row, 2] = np.inf
        with pytest.raises(
            UndoorError, match=f"features of 1 of 30 samples are not finite, the first of sample {row} "
        ):
            Evidence(Outputs(features, np.zeros((30, 2), np.float32)), {}, np.zeros(30, int), np.arange(30).astype(str),
                     ("a", "b"))  # fmt: skip


def test_nothing_is_kept_of_a_network_that_fails(small, dataset, tmp_path):
    model = Linear()
    with torch.no_grad():
        model.out.bias[0] = float("nan")
    folder = tmp_path / "out" / "shards"
    with pytest.raises(UndoorError, match="logits of 8 of 8 samples are not finite"), kept_until_done(folder):
        small(Classifier(model), dataset, folder=folder)
    assert not list(tmp_path.iterdir())


SCAN = """
import sys
from undoor import cli
from undoor.evidence import collect as evidence
evidence.SHARD = 8
sys.argv = ["undoor", *sys.argv[1:]]
cli.main()
"""


def test_a_killed_scan_resumes(monkeypatch, tmp_path, capsys):
    dataset = make_dataset()
    np.savez(tmp_path / "images.npz", images=dataset.images, labels=dataset.labels)
    torch.save(Linear().state_dict(), tmp_path / "weights.pt")
    out, forwards = tmp_path / "findings", tmp_path / "forwards"
    command = ["scan", str(tmp_path / "images.npz"), "--batch-size", "4", "--exit-zero", "--model",
               str(tmp_path / "weights.pt"), "--network", "test_shards:slow_network", "--out"]  # fmt: skip
    path = os.pathsep.join([str(Path(undoor.__file__).parents[1]), str(Path(__file__).parent)])
    environment = {**os.environ, "PYTHONPATH": path, "FORWARDS": str(forwards), "SECONDS": "0.2"}
    process = subprocess.Popen([sys.executable, "-c", SCAN, *command, str(out)], env=environment)
    while len(files(out / "evidence.part")) < 2 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(files(out / "evidence.part"))
    assert 2 <= done < 8
    assert not (out / "summary.json").exists()

    forwards.unlink()
    monkeypatch.setattr(module, "SHARD", 8)
    monkeypatch.setenv("FORWARDS", str(forwards))
    monkeypatch.setenv("SECONDS", "0")
    for folder in (out, tmp_path / "elsewhere"):
        monkeypatch.setattr(sys, "argv", ["undoor", *command, str(folder)])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UndoorNotice)
            cli.app(prog_name="undoor", standalone_mode=False)
        if folder == out:
            assert forwards.stat().st_size == 30 - 4 * done
        assert sorted(file.name for file in folder.iterdir()) == FINDINGS
    for name in ("samples.parquet", "clusters.parquet", "drop.txt"):
        assert (out / name).read_bytes() == (tmp_path / "elsewhere" / name).read_bytes()

    # If a scan is killed after its findings are written, its shards are removed when the command is run again.
    (out / "evidence.part").mkdir()
    (out / "evidence.part" / "left.safetensors").write_bytes(b"left")
    monkeypatch.setattr(sys, "argv", ["undoor", *command, str(out)])
    with pytest.raises(UndoorError, match="already holds findings"):
        cli.app(prog_name="undoor", standalone_mode=False)
    assert sorted(file.name for file in out.iterdir()) == FINDINGS


FINDINGS = [
    "clusters.parquet",
    "curves.parquet",
    "drop.txt",
    "keep.txt",
    "report.html",
    "samples.parquet",
    "summary.json",
]


class Slow(Linear):
    """Takes some time for every forward pass, and appends a dot to a file for each."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        time.sleep(float(os.environ["SECONDS"]))
        with Path(os.environ["FORWARDS"]).open("a") as file:
            file.write(".")
        return super().forward(images)


def slow_network() -> Slow:
    """A factory, as users name it on the command line."""
    return Slow()

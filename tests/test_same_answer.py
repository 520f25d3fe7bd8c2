"""The same seed gives the same results across runs, threads, processes and batch sizes; see docs/guarantees.md."""

import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

import undoor
from helpers.real_evidence import real_evidence
from undoor.data.readers.parquet import write_parquet
from undoor.defenses.training_set import ClusterImpurity
from undoor.engine import Engine
from undoor.evidence import Evidence, Outputs
from undoor.networks.architectures import build_network
from undoor.networks.classifier import Classifier

SCORES_WITHIN = 1e-6
"""Largest difference of an impurity, in nats, between numbers of threads, of processes and of images in a batch.

On the processors that were measured, all bits are the same. Kernels for other processors may round otherwise.
"""

ROUNDING = 1e-7
"""Relative rounding error of a float32 number: about half the distance between neighbouring numbers."""


@contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpool_limits(count):
            yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def attacked():
    """A part of the digits with a backdoor. In batches of 128, the last batch is a single image."""
    digits = undoor.read("digits").take(np.arange(1200))
    attack = undoor.Attack.one_pixel(digits, sources=["7"], target="0", count=81, size=0.8)
    return undoor.poison(digits, attack)


@pytest.fixture(scope="module")
def victim(attacked):
    return undoor.train(attacked, undoor.recipe("fast", epochs=12))


@pytest.fixture(scope="module")
def expected(attacked, victim):
    with threads(1):
        return undoor.scan(victim, attacked, ClusterImpurity(workers=1))


def test_the_results_that_are_compared_are_not_trivial(expected):
    assert expected.verdict == "poisoned"
    assert expected.classes_flagged == ("0",)
    assert expected.truth["tpr"] > 0.9
    assert len(expected.clusters) > 11


@pytest.mark.parametrize(
    ("count", "batch_size", "engine"),
    [
        (1, 128, Engine("local", 1)),
        (2, 128, Engine("local", 2)),
        (4, 128, Engine("local", 4)),
        (1, 1, Engine("local", 1)),
        (1, 61, Engine("local", 2)),
        (2, 128, Engine("processes", 2)),
        (2, 2000, Engine("local", 2)),
    ],
    ids=str,
)
def test_threads_processes_and_batches_do_not_matter(count, batch_size, engine, attacked, victim, expected):
    assert len(attacked) % 128 == 1
    assert len(attacked) % 61 == 0
    with threads(count):
        found = undoor.scan(victim, attacked, ClusterImpurity(workers=engine), batch_size=batch_size, engine=engine)
    for column in ("id", "label", "predicted", "filtered", "cluster", "flagged"):
        assert found.samples[column].equals(expected.samples[column]), column
    for column in ("class", "cluster", "look", "size", "examined", "destinations", "flagged"):
        assert found.clusters[column].equals(expected.clusters[column]), column
    assert np.allclose(found.samples["score"], expected.samples["score"], rtol=0, atol=SCORES_WITHIN)
    assert np.allclose(found.clusters["impurity"], expected.clusters["impurity"], rtol=0, atol=SCORES_WITHIN)


@pytest.mark.parametrize(("name", "shape"), [("small-cnn", (1, 16, 16)), ("resnet20", (3, 32, 32))])
def test_a_lone_image_gives_the_bits_that_a_batch_does(name, shape):
    images = np.random.default_rng(0).integers(0, 256, (9, *shape), dtype=np.uint8)
    classifier = Classifier(build_network(name, shape, 10), device="cpu")
    whole = classifier.features_and_logits(classifier.scale(images))
    for row in range(9):
        alone = classifier.features_and_logits(classifier.scale(images[row : row + 1]))
        for single, batch in zip(alone, whole, strict=True):
            assert torch.equal(single[0], batch[row])


RESULTS = ("samples.parquet", "clusters.parquet", "curves.parquet", "keep.txt", "drop.txt")


def test_two_runs_write_the_same_bytes(attacked, tmp_path):
    """Processes with other hashes of strings write the same weights and findings; findings also with other threads."""
    write_parquet(attacked.take(np.arange(0, len(attacked), 3)), tmp_path / "data.parquet")

    def scan(name, count, *more):
        command = [sys.executable, "-m", "undoor", "scan", str(tmp_path / "data.parquet"), "--epochs", "2", *more]
        command += ["--out", str(tmp_path / name), "--exit-zero", "--quiet"]
        surroundings = {**os.environ, "OMP_NUM_THREADS": str(count), "PYTHONHASHSEED": str(len(name))}
        subprocess.run(command, check=True, env=surroundings, capture_output=True)
        return {file: (tmp_path / name / file).read_bytes() for file in RESULTS}

    first, second = scan("a", 1), scan("bb", 1)
    network = tmp_path / "a" / "victim.safetensors"
    assert network.read_bytes() == (tmp_path / "bb" / "victim.safetensors").read_bytes()
    assert first == second
    assert first == scan("ccc", 2, "--model", str(network))


def part_of(evidence, rows):
    def part(outputs):
        # These features were kept in half precision, so that some are equal. In a network's own features that is rare.
        drawn = np.random.default_rng(99).uniform(-1, 1, outputs.features.shape)
        return Outputs((outputs.features * (1 + 5e-4 * drawn)).astype(np.float32)[rows], outputs.logits[rows])

    twins = {name: part(outputs) for name, outputs in evidence.filtered.items()}
    return Evidence(part(evidence.plain), twins, evidence.labels[rows], evidence.ids[rows], evidence.class_names)


def rounded_otherwise(evidence, seed):
    """Return the evidence of a machine that rounds the last bit otherwise."""
    drawn = np.random.default_rng(seed).uniform(-1, 1, evidence.plain.features.shape)
    features = (evidence.plain.features * (1 + ROUNDING * drawn)).astype(np.float32)
    assert not np.array_equal(features, evidence.plain.features)
    return replace(evidence, plain=Outputs(features, evidence.plain.logits))


def test_on_a_real_networks_evidence(real_data):
    whole, _ = real_evidence(real_data / "evidence" / "cifar10-multiple-source-0.25.npz")
    evidence = part_of(whole, slice(None, None, 4))
    with threads(1):
        first = ClusterImpurity(workers=1)(evidence)
    with threads(2):
        second = ClusterImpurity(workers=2)(evidence)
    assert first.classes_flagged == ("bird",)
    assert first.samples.equals(second.samples)
    assert first.clusters.equals(second.clusters)
    rounded = ClusterImpurity(workers=1)(rounded_otherwise(evidence, 0))
    assert first.samples["flagged"].equals(rounded.samples["flagged"])


@pytest.mark.parametrize("seed", range(3))
def test_features_that_are_rounded_otherwise_start_the_same_clusters(planted, seed):
    """The starts depend on the values of the rows, but not on their last bits."""
    defense = ClusterImpurity(workers=1)
    first, second = defense(planted.evidence), defense(rounded_otherwise(planted.evidence, seed))
    assert first.samples[["cluster", "flagged"]].equals(second.samples[["cluster", "flagged"]])
    criteria = first.curves["criterion"].to_numpy(), second.curves["criterion"].to_numpy()
    assert np.allclose(*criteria, rtol=1e-5)

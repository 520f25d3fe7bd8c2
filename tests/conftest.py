"""Small data and evidence with planted truth, shared by all tests."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from undoor.data.dataset import Dataset, row_ids
from undoor.evidence import Evidence, Outputs
from undoor.experiments.demo import demo
from undoor.mixtures.sweep import MixtureSettings
from undoor.networks.recipes import PRESETS
from undoor.networks.training import train

QUICKLY: dict = {"mixture": MixtureSettings(restarts=1), "workers": 1}
"""For Cluster Impurity: enough for clusters that lie as far apart as the planted ones."""

REAL_DATA = Path(__file__).parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items):
    """Skip what needs a GPU where there is none, and put tests on a Ray cluster last.

    Joblib's processes can hang in a process that is connected to a Ray cluster.
    """
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))

    def on_a_cluster(item):
        values = item.callspec.params.values() if hasattr(item, "callspec") else ()
        return "head" in item.fixturenames or any(isinstance(value, str) and value == "ray" for value in values)

    items.sort(key=on_a_cluster)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with CIFAR-10 and evidence of real victims, which is no part of the project."""
    if not REAL_DATA.is_dir():
        pytest.skip("the real data set does not lie beside the checkout")
    return REAL_DATA


def make_dataset(n_per_class: int = 20, classes: int = 3, size: int = 12, channels: int = 1, seed: int = 0) -> Dataset:
    """Return images that a small network learns: class k has a bright bar in place k, under noise."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), n_per_class)
    images = generator.integers(0, 60, (len(labels), channels, size, size))
    for row, label in enumerate(labels):
        start = size * label // classes
        images[row, :, start : start + size // classes, :] += 120
    names = tuple(f"class{k}" for k in range(classes))
    return Dataset(images.astype(np.uint8), labels.astype(np.int64), names, row_ids(len(labels)))


@pytest.fixture
def dataset() -> Dataset:
    return make_dataset()


@pytest.fixture(scope="session")
def network() -> torch.nn.Module:
    """A network that has learned ``make_dataset``."""
    return train(make_dataset(n_per_class=40), replace(PRESETS["fast"], epochs=8, batch_size=16))


@pytest.fixture(scope="session")
def demonstration(tmp_path_factory):
    """The demonstration, the folder it wrote, and the names of its stages, one a call."""
    folder, stages = tmp_path_factory.mktemp("demonstration"), []

    def show(stage, *_):
        stages.append(stage)

    return demo(folder, seed=1, on_step=show, on_count=show), folder, stages


@dataclass(frozen=True)
class Planted:
    """Evidence with a poisoned cluster, and the truth."""

    evidence: Evidence
    poisoned: np.ndarray
    target: int


def plant(seed: int = 0, classes: int = 4, clean: int = 150, poison: int = 60, dimensions: int = 4) -> Planted:
    """Return Gaussian features of clean classes with a poison cluster in class 1.

    The filter gives 95 % of the poisons back to class 0 and changes 3 % of the clean decisions.
    """
    generator = np.random.default_rng(seed)
    centres = 6 * np.eye(classes, dimensions)
    poison_centre = centres[1] + 5 * np.ones(dimensions)
    labels = np.repeat(np.arange(classes), clean)
    features = centres[labels] + generator.normal(size=(len(labels), dimensions))
    features = np.concatenate([features, poison_centre + generator.normal(size=(poison, dimensions))])
    labels = np.concatenate([labels, np.full(poison, 1)])
    poisoned = np.arange(len(labels)) >= classes * clean

    after = labels.copy()
    changed = generator.random(len(labels)) < np.where(poisoned, 0.95, 0.03)
    after[changed & poisoned] = 0
    after[changed & ~poisoned] = (labels[changed & ~poisoned] + 1) % classes
    order = generator.permutation(len(labels))
    evidence = Evidence(
        Outputs(features[order].astype(np.float32), one_hot(labels[order], classes)),
        {"planted": Outputs(features[order].astype(np.float32), one_hot(after[order], classes))},
        labels[order].astype(np.int64),
        row_ids(len(labels)),
        tuple(f"class{k}" for k in range(classes)),
    )
    return Planted(evidence, poisoned[order], 1)


def one_hot(decisions: np.ndarray, classes: int) -> np.ndarray:
    """Return logits with the given decisions."""
    return (10 * np.eye(classes)[decisions]).astype(np.float32)


def permuted(evidence: Evidence, order: np.ndarray) -> Evidence:
    """Return the evidence with its samples in another order."""

    def outputs(o):
        return Outputs(o.features[order], o.logits[order])

    return Evidence(
        outputs(evidence.plain),
        {name: outputs(o) for name, o in evidence.filtered.items()},
        evidence.labels[order],
        evidence.ids[order],
        evidence.class_names,
    )


@pytest.fixture
def planted() -> Planted:
    return plant()


class Linear(torch.nn.Module):
    """A network with one hidden layer, for images of one shape."""

    def __init__(self, inputs: int = 144, classes: int = 3) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.hidden = torch.nn.Linear(inputs, 8)
        self.dropout = torch.nn.Dropout(0.5)
        self.out = torch.nn.Linear(8, classes)
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, generator=generator)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.out(self.dropout(self.hidden(images.flatten(1)).relu()))


def linear_network() -> Linear:
    """A factory, as users name it on the command line."""
    return Linear()


def always(examples):
    """Return the settings of a property: always the same examples, however long they take."""
    from hypothesis import settings  # the tests for a GPU run where it is not installed

    return settings(max_examples=examples, derandomize=True, deadline=None, database=None)

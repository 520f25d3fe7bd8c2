"""Fixtures that several test files use, and the order of the tests.

The makers of data, evidence and networks are in ``helpers``. They can also be imported from here.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers.planted_evidence import QUICKLY, Planted, one_hot, permuted, plant
from helpers.property_settings import always
from helpers.small_images import make_dataset
from helpers.small_networks import Linear, linear_network
from undoor.data.dataset import Dataset
from undoor.experiments.demo import demo
from undoor.networks.recipes import PRESETS
from undoor.networks.training import train

__all__ = [
    "QUICKLY", "REAL_DATA", "Linear", "Planted", "always", "linear_network", "make_dataset", "one_hot", "permuted",
    "plant",
]  # fmt: skip

REAL_DATA = Path(__file__).parents[2] / "shared" / "data"
"""CIFAR-10 and evidence of real victims, which are not part of the repository."""


def pytest_collection_modifyitems(items):
    """Skip tests that need a GPU if there is none, and run tests on a Ray cluster last.

    Joblib's processes can hang in a process that is connected to a Ray cluster.
    """
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))

    def uses_cluster(item):
        values = item.callspec.params.values() if hasattr(item, "callspec") else ()
        return "head" in item.fixturenames or any(isinstance(value, str) and value == "ray" for value in values)

    items.sort(key=uses_cluster)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with CIFAR-10 and evidence of real victims; without it the test is skipped."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"the real data is not in {REAL_DATA}")
    return REAL_DATA


@pytest.fixture
def dataset() -> Dataset:
    return make_dataset()


@pytest.fixture(scope="session")
def network() -> torch.nn.Module:
    """A network that is trained on ``make_dataset``."""
    return train(make_dataset(n_per_class=40), replace(PRESETS["fast"], epochs=8, batch_size=16))


@pytest.fixture(scope="session")
def demonstration(tmp_path_factory):
    """The demonstration, the folder that it wrote, and the names of its stages in the order of the calls."""
    folder, stages = tmp_path_factory.mktemp("demonstration"), []

    def append_stage(stage, *_):
        stages.append(stage)

    return demo(folder, seed=1, on_step=append_stage, on_count=append_stage), folder, stages


@pytest.fixture
def planted() -> Planted:
    return plant()

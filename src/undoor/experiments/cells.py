"""A cell says what one experiment attacks; a setting holds what all cells of a suite share."""

from dataclasses import dataclass
from typing import Literal

from undoor.data.dataset import Dataset
from undoor.networks.architectures import default_network
from undoor.networks.recipes import Recipe

Scenario = Literal["single-source", "multiple-source", "clean"]

EXAMINED_SIZES = (0.25, 0.40)
"""Sizes of the trigger at which slow contenders are run too: they take minutes for every network."""


@dataclass(frozen=True)
class Cell:
    """One experiment of a suite.

    Args:
        scenario: the images of one class are poisoned, those of all classes but the target class, or none.
        size: size of the trigger; 0 in the clean scenario.
        seed: seed of the attack, the training and the defenses.
        keep_originals: whether the images that were copied for poisoning stay in the training set.
        ablations: whether the variants of the defenses are run as well.

    """

    scenario: Scenario
    size: float = 0.0
    seed: int = 0
    keep_originals: bool = True
    ablations: bool = False

    @property
    def examined(self) -> bool:
        """Whether slow contenders are run."""
        return self.keep_originals and (self.scenario == "clean" or self.size in EXAMINED_SIZES)

    @property
    def name(self) -> str:
        """A name such as ``multiple-source-0.25-s0``."""
        size = "" if self.scenario == "clean" else f"-{self.size:.2f}"
        return f"{self.scenario}{size}{'' if self.keep_originals else '-replaced'}-s{self.seed}"


@dataclass(frozen=True)
class Setting:
    """What all cells of a suite share.

    Args:
        suite: name of the suite.
        data: name of the data.
        train: the clean training set.
        test: the clean test set.
        source: the source class of the single-source scenario.
        target: the target class.
        count: number of poisoned images.
        recipe: how networks are trained; the cell's seed replaces the recipe's.
        network: a name from ``undoor.networks.architectures``; by default the one that fits the images.
        test_sizes: sizes of the trigger at test time, which are measured in cells with ablations.

    """

    suite: str
    data: str
    train: Dataset
    test: Dataset
    source: str
    target: str
    count: int
    recipe: Recipe
    network: str | None = None
    test_sizes: tuple[float, ...] = ()

    @property
    def network_name(self) -> str:
        """The name of the network that is trained."""
        return self.network or default_network(*self.train.images.shape[2:])

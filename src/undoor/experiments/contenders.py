"""Contenders: defenses and controls with their settings, whatever the moment at which they act."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from undoor.attacks import Attack
from undoor.data.dataset import Dataset
from undoor.evidence import Evidence
from undoor.experiments.outcome import OUTCOME_VERSION, Outcome
from undoor.experiments.store import digest
from undoor.filters import Filter
from undoor.networks.classifier import Classifier

Moment = Literal["before training", "after training", "in use"]
Kind = Literal["findings", "examinations"]

EVIDENCE_VERSION = 1
"""Version of the evidence. Raise it when a filter, the classifier or the pass over the images yields other values."""

NOT_SETTINGS = ("workers", "device", "on_mixture", "retrain")
"""Fields of methods that say how a method computes and do not change what it finds on a victim. Fields that hold data
of the victim are marked by ``metadata={"data": True}`` instead."""


@dataclass(frozen=True, eq=False)
class Case:
    """A victim, with all that a contender may be given to judge it.

    A defender before training has the training set without its truth, the network and the evidence. A defender after
    training or in use has the network and half of the test images. All else is for oracles, controls and measurements.

    Args:
        seed: seed of the cell.
        training_set: the training set of the victim, with its truth.
        test: clean test images.
        attack: the attack; None for a clean victim.
        network: returns the victim.
        evidence: returns the evidence with an image filter.
        decisions_without: trains a network on the rows that are kept, (N,) bool, and returns its decisions on all rows.
        check: is called by long work whenever it makes progress; it ends that work by an exception.
        flagged: how many images each contender has flagged that was run before, by its name.

    """

    seed: int
    training_set: Dataset
    test: Dataset
    attack: Attack | None
    network: Callable[[], Classifier]
    evidence: Callable[[Filter], Evidence]
    decisions_without: Callable[[NDArray[np.bool_]], NDArray[np.int64]]
    check: Callable[..., None] = lambda *_: None
    flagged: dict[str, int] = field(default_factory=dict)

    @property
    def poisoned(self) -> NDArray[np.bool_]:
        """(N,) which training images are poisoned."""
        truth = self.training_set.truth
        assert truth is not None  # noqa: S101 - an experiment always knows the truth
        return truth.poisoned

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of the target class, alone; nothing for a clean victim."""
        return () if self.attack is None else (self.attack.target,)

    @property
    def poisoned_share(self) -> float:
        """ε: the share of the images labelled as the target class that are poisoned."""
        labels = self.training_set.labels
        of_target_class = np.isin(labels, np.unique(labels[self.poisoned]))
        return float(self.poisoned.sum() / max(of_target_class.sum(), 1))

    @cached_property
    def clean(self) -> Dataset:
        """The clean images of a defender after training or in use: every second test image.

        The embedded digits repeat their originals in the same order, an even number of them. The two halves therefore
        share no original.
        """
        return self.test.take(np.arange(0, len(self.test), 2))

    @cached_property
    def judged(self) -> Dataset:
        """The other half of the test images, which measures how well a defender did."""
        return self.test.take(np.arange(1, len(self.test), 2))


@dataclass(frozen=True)
class Contender:
    """A defense or a control with its settings, which is run on the victims of experiments.

    Args:
        name: name in the tables.
        moment: when a defender can use it.
        needs: what a defender must have for it.
        method: class of the method; its ``method_version`` is raised whenever the method computes something else.
        build: returns the method with its settings. Only oracles and controls look at the truth.
        run: runs the method.
        oracle: whether the settings rest on something that no defender knows.
        retrain: whether the network is trained again without what is flagged.
        control_of: name of the contender whose control this is.
        image_filter: the image filter of the evidence; None if the method takes no evidence.

    """

    name: str
    moment: Moment
    needs: str
    method: type[Any]
    build: Callable[[Case], Any]
    run: Callable[[Any, Case], Outcome]
    oracle: bool = False
    retrain: bool = False
    control_of: str | None = None
    image_filter: Filter | None = None

    @property
    def slug(self) -> str:
        """The name as part of a file's name, such as ``ci-poster``."""
        return slug(self.name)

    @property
    def kind(self) -> Kind:
        """The kind of its results in the store, which is also the stage at which it is run."""
        return "findings" if self.moment == "before training" else "examinations"

    @property
    def versions(self) -> dict[str, int | None]:
        """The versions of all code that its results depend on."""
        return {
            "method_version": self.method.method_version,
            "evidence_version": None if self.image_filter is None else EVIDENCE_VERSION,
            "outcome_version": OUTCOME_VERSION,
        }

    def depends(self, case: Case, victim_key: str) -> str:
        """Return a hash of everything that decides what it finds on a victim."""
        settings = plain_settings(self.build(case))
        inputs = {"victim": victim_key, "filter": str(self.image_filter)}
        return digest({"contender": self.name, "settings": settings, **self.versions, **inputs})


def seeded(method: Callable[..., Any], **settings: Any) -> Callable[[Case], Any]:
    """Return a function that builds a method with these settings and the seed of the case."""
    return lambda case: method(**settings, seed=case.seed)


def slug(name: str) -> str:
    """Return a name as part of a file's name."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower().replace("ε", "eps")).strip("-")


def plain_settings(method: Any) -> Mapping[str, Any]:
    """Return the class and the settings of a method, a dataclass, as plain values."""
    names = [part.name for part in fields(method) if part.name not in NOT_SETTINGS and not part.metadata.get("data")]
    return {"class": type(method).__name__, **{name: _plain(getattr(method, name)) for name in names}}


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return digest({"array": value.tolist()})
    return plain_settings(value) if is_dataclass(value) else value

"""What competes in an experiment: a defence with its settings, and what an experimenter knows to build it."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undoor.defenses.training_set.cluster_impurity import EXECUTION
from undoor.evidence import Evidence
from undoor.experiments.store import digest
from undoor.filters import Average, Filter
from undoor.findings.findings import Findings
from undoor.networks.classifier import Classifier


@dataclass
class Known:
    """What an experimenter has, and what he knows and a defender does not.

    Defenders have the images and the network too; all else is for controls and oracle settings alone. ``check`` is
    called by defences that take minutes: it ends them, by an exception, when the time is spent.
    """

    seed: int
    poisoned: NDArray[np.bool_]
    labels: NDArray[np.int64]
    target: str | None
    retrain: Callable[[NDArray[np.bool_]], NDArray[np.int64]]
    network: Callable[[], Classifier]
    images: NDArray[np.uint8]
    flagged: dict[str, int] = field(default_factory=dict)
    check: Callable[..., None] = lambda *_: None

    @property
    def classes(self) -> tuple[str, ...]:
        """The attacked class, as the oracle settings want it."""
        return () if self.target is None else (self.target,)

    @property
    def poisoned_share(self) -> float:
        """ε: poisoned images in the target class, as a share of that class."""
        of_target = np.isin(self.labels, np.unique(self.labels[self.poisoned]))
        return float(self.poisoned.sum() / max(of_target.sum(), 1))


@dataclass(frozen=True)
class Contender:
    """A defence with its settings, as one row of the tables.

    Args:
        name: of the row.
        build: returns the defence; only controls and oracle settings look at what is known.
        oracle: whether the settings rest on something no defender knows.
        retrain: whether the network is trained again without what is flagged.
        image_filter: whose outputs the defence sees.

    """

    name: str
    build: Callable[[Known], Callable[[Evidence], Findings]]
    oracle: bool = False
    retrain: bool = False
    image_filter: Filter = Average()  # noqa: RUF009 - frozen


def plain_settings(defense: Any) -> Mapping[str, Any]:
    """Return what a defence was built with, as plain values."""
    if hasattr(defense, "keywords"):
        given = {"function": defense.func.__name__, **defense.keywords}
    else:
        parts = {f.name: getattr(defense, f.name) for f in fields(defense) if not f.metadata.get("data")}
        given = {"class": type(defense).__name__, **{name: _settings(part) for name, part in parts.items()}}
    return {name: _plain(value) for name, value in given.items() if name not in EXECUTION}


def _settings(part: Any) -> Any:
    return asdict(part) if is_dataclass(part) and not isinstance(part, type) else part


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return digest({"array": value.tolist()})
    if callable(value):
        return "callable"
    return list(value) if isinstance(value, tuple) else value

"""How a result came about: what every result says of itself, whichever defense it is of."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

from undoor._version import __version__

SCHEMA_VERSION = 2
"""Version of the layout of everything that is written about a result."""


def versions() -> dict[str, str]:
    """Return the versions of everything that can change a result."""
    packages = ("torch", "numpy", "scipy", "scikit-learn", "pandas", "pyarrow", "pillow")
    # undoor may run from its sources, without being installed as a package.
    return {"python": platform.python_version(), "undoor": __version__, **{name: version(name) for name in packages}}


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """How a result came about.

    Args:
        defense: the name of the method.
        method_version: the version of the method. It is raised by hand whenever the method computes something else.
        settings: of the method, as plain values.
        seed: of the method; 0 for methods that draw nothing.
        seconds: that each stage took.
        versions: of everything that can have changed the result.

    """

    defense: str
    method_version: int
    settings: Mapping[str, Any]
    seed: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=versions)

    def after(self, seconds: Mapping[str, float]) -> "Provenance":
        """Return this provenance with the seconds of stages that came before."""
        return replace(self, seconds={**seconds, **self.seconds})

    def summary(self) -> dict[str, Any]:
        """Return plain values, as they stand in ``summary.json``."""
        return {
            "schema_version": SCHEMA_VERSION,
            "defense": self.defense,
            "method_version": self.method_version,
            "settings": dict(self.settings),
            "seed": self.seed,
            "versions": dict(self.versions),
            "seconds": {stage: round(value, 3) for stage, value in self.seconds.items()},
        }

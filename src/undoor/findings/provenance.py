"""How a result came about: what every result says about itself, whichever defense produced it."""

import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

from undoor._version import __version__
from undoor.safe.limits import require_names

SCHEMA_VERSION = 2
"""The version of the layout of everything that is written about a result."""

TYPES: dict[str, Any] = {
    "defense": str, "method_version": int, "settings": dict, "seed": int, "versions": dict, "seconds": dict,
}  # fmt: skip
"""The types that the fields of a provenance have in a summary."""

DEPTH = 8
"""How deeply the values of a summary may be nested. No defense has settings that come near it."""


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
        settings: the settings of the method as plain values, without its seed.
        seed: the seed of the method; 0 for a method that draws nothing.
        seconds: how long each stage took, in seconds.
        versions: the versions of everything that can change the result.

    """

    defense: str
    method_version: int
    settings: Mapping[str, Any]
    seed: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=versions)

    def after_stages(self, seconds: Mapping[str, float]) -> "Provenance":
        """Return this provenance with the seconds of earlier stages put before its own."""
        return replace(self, seconds={**seconds, **self.seconds})

    def summary(self, **result: Any) -> dict[str, Any]:
        """Return the summary of a result as plain values: the method, the ``result``, and how it came about."""
        return {
            "schema_version": SCHEMA_VERSION,
            "defense": self.defense,
            "method_version": self.method_version,
            **result,
            "settings": dict(self.settings),
            "seed": self.seed,
            "versions": dict(self.versions),
            "seconds": {stage: round(value, 3) for stage, value in self.seconds.items()},
        }

    @classmethod
    def from_summary(cls, summary: Mapping[str, Any]) -> "Provenance":
        """Return the provenance in a summary, which somebody else may have made or changed.

        Raises:
            ValueError: if the summary has another layout, or a value of the wrong type.
            KeyError: if a value is missing.
            UndoorError: if a text holds control characters or is too long.

        """
        if summary.get("schema_version") != SCHEMA_VERSION:
            given = f"schema version {summary.get('schema_version')!r}, not {SCHEMA_VERSION}"
            raise ValueError(f"the contents were written by another version of undoor ({given})")
        require_types(summary, TYPES)
        values = {name: summary[name] for name in TYPES}
        require_names(_texts(values), "text in the summary")
        if not all(isinstance(value, int | float) for value in values["seconds"].values()):
            raise ValueError("the summary's seconds hold something else than numbers")
        return cls(**values)


def require_types(summary: Mapping[str, Any], types: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` unless the summary has a value of the right type under each of these names."""
    for name, kind in types.items():
        if not isinstance(summary[name], kind) or isinstance(summary[name], bool):
            raise ValueError(f"the summary's {name} is of the wrong type, {type(summary[name]).__name__}")


def _texts(value: Any, depth: int = 0) -> Iterator[str]:
    """Yield every text in plain values, the keys included."""
    if depth > DEPTH:
        raise ValueError("the summary is nested too deeply")
    if isinstance(value, str):
        yield value
    for part in [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []:
        yield from _texts(part, depth + 1)

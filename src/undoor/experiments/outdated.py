"""Which packed results were made by another version of the code."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from undoor.experiments.packed import Result
from undoor.experiments.steps import MEASUREMENT_VERSION
from undoor.experiments.store import Store
from undoor.experiments.suites import ALL_CONTENDERS


class Outdated(NamedTuple):
    """A packed result that another version of the code made.

    Args:
        kind: the table it is in, without ``.parquet``.
        key: its key.
        name: the cell, and the contender if it is of one.
        stored: the versions that made it.
        current: the versions of the code now; empty if the code has no contender of this name.

    """

    kind: str
    key: str
    name: str
    stored: Mapping[str, int | None]
    current: Mapping[str, int | None]


def outdated(folder: Path) -> list[Outdated]:
    """Return the results in the packed tables of a folder that were made by other versions than the code's."""
    return list(_outdated(Store(folder)))


def _outdated(store: Store) -> Iterator[Outdated]:
    for kind in ("victims", "findings", "retrained", "examinations"):
        for key, result in store.packed(kind).items():
            current = _current_versions(kind, result)
            stored = {name: result.get(name) for name in current or ("method_version",)}
            if stored != current:
                name = ": ".join(filter(None, (result["name"], result.get("contender"))))
                yield Outdated(kind, key, name, stored, current)


def _current_versions(kind: str, result: Result) -> Mapping[str, int | None]:
    """Return the versions that the code would store with a result of this kind now."""
    if kind in ("findings", "examinations"):
        contenders = [each for each in ALL_CONTENDERS if each.name == result["contender"]]
        return contenders[0].versions if contenders else {}
    return {"method_version": MEASUREMENT_VERSION}

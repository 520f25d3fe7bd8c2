"""Which packed results were made by another version of the code."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from undoor.experiments.cell_results import MEASUREMENT_VERSION
from undoor.experiments.store import Store
from undoor.experiments.suites import ALL_CONTENDERS


class Outdated(NamedTuple):
    """A packed result that another version of the code made.

    Args:
        kind: the table it is in, without ``.parquet``.
        name: the name of the cell, and of the contender if the result is of one.
        stored: the versions that made it.
        current: the versions of the code now; empty if the code has no contender of this name.

    """

    kind: str
    name: str
    stored: Mapping[str, int | None]
    current: Mapping[str, int | None]


def outdated(folder: Path) -> list[Outdated]:
    """Return the results in the packed tables of a folder that were made by other versions than the code's."""
    store, rows = Store(folder), []
    of_contender = {contender.name: contender.versions for contender in ALL_CONTENDERS}
    measurement = {"method_version": MEASUREMENT_VERSION}
    for kind in ("victims", "retrained", "findings", "examinations"):
        for result in store.packed(kind).values():
            name = result.get("contender")
            current = measurement if name is None else of_contender.get(name, {})
            stored = {version: result.get(version) for version in current or measurement}
            if stored != current:
                rows.append(Outdated(kind, ": ".join(filter(None, (result["name"], name))), stored, current))
    return rows

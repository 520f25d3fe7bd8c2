"""Findings read back from their files, which somebody else may have made or changed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from undoor.errors import UndoorError, first_line
from undoor.findings.findings import Findings
from undoor.findings.metrics import DetectionCounts
from undoor.findings.provenance import SCHEMA_VERSION, Provenance
from undoor.findings.tables import REAL, TYPES, VIEW_COLUMNS
from undoor.safe.limits import CLASSES, read_bytes, read_json, require_file, require_names
from undoor.safe.parquet import read_columns

LIST_BYTES = 2**30
"""Bytes of a list of ids: two million of the longest ones."""

SUMMARY_TYPES: dict[str, Any] = {
    "defense": str, "method_version": int, "class_names": list, "threshold": int | float, "settings": dict, "seed": int,
    "seconds": dict, "image_filter": str, "versions": dict,
}  # fmt: skip


def read_findings(folder: Path) -> Findings:
    """Return the findings that ``Findings.write`` wrote into ``folder``."""
    require_findings(folder)
    with _readable(folder):
        summary = read_json(folder / "summary.json")
        if summary.get("schema_version") != SCHEMA_VERSION:
            raise ValueError("they were written by another version of undoor")
        for name, kind in SUMMARY_TYPES.items():
            if not isinstance(summary[name], kind) or isinstance(summary[name], bool):
                raise ValueError(f"{name} in summary.json holds something else")
        names = summary["class_names"]
        require_names(names, "class name", most=CLASSES)
        texts = list(_texts({**summary, "class_names": [], "doubts": []}))  # doubts are not read but found again
        require_names(texts, "text in summary.json")
        if not all(isinstance(value, int | float) for value in summary["seconds"].values()):
            raise ValueError("seconds in summary.json holds something else")
        samples, clusters, curves = (_table(folder, name) for name in ("samples", "clusters", "curves"))
        classes = [samples[name] for name in ("label", "predicted", "filtered") if name in samples]
        for column in (*classes, clusters["class"], curves["class"]):
            if len(column) and not 0 <= column.min() <= column.max() < len(names):
                raise ValueError(f"{column.name} holds what is no class")
        if not all(len(counts) == len(names) for counts in clusters["destinations"]):
            raise ValueError("destinations holds another number of classes")
        found = set(zip(samples["label"], samples["cluster"], strict=True))
        if not found.issuperset(zip(clusters["class"], clusters["cluster"], strict=True)):
            raise ValueError("clusters.parquet tells of a cluster that no sample is in")
        return Findings(
            provenance=Provenance(
                defense=summary["defense"],
                method_version=summary["method_version"],
                settings=summary["settings"],
                seed=summary["seed"],
                seconds=summary["seconds"],
                versions=summary["versions"],
            ),
            samples=samples,
            clusters=clusters,
            class_names=tuple(names),
            threshold=summary["threshold"],
            truth=_truth(summary["truth"]),
            curves=curves,
            image_filter=summary["image_filter"],
        )


def _texts(value: Any, depth: int = 0) -> Iterator[str]:
    """Yield every text in plain values; no settings are nested deeply."""
    if depth > 8:
        raise ValueError("summary.json is nested too deeply")
    if isinstance(value, str):
        yield value
    parts = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    for part in parts:
        yield from _texts(part, depth + 1)


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Tell in one line why findings cannot be read."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise UndoorError(f"the findings in {folder} cannot be read: {first_line(error)}; scan again") from error


def _table(folder: Path, name: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Return a table of findings, of the types it was written with; other columns are left out."""
    path = folder / f"{name}.parquet"
    require_file(path)
    types = {column: kind for column, kind in TYPES[name].items() if columns is None or column in columns}

    def wanted(schema: pa.Schema) -> list[str]:
        for column, kind in types.items():
            if column not in schema.names:
                if column not in VIEW_COLUMNS:
                    raise ValueError(f"{path.name} has no column {column}")
            elif not kind(schema.field(column).type):
                raise ValueError(f"column {column} of {path.name} holds {schema.field(column).type}")
        return [column for column in schema.names if column in types]

    table = read_columns(path, wanted)
    if any(column.null_count for column in table.columns):
        raise ValueError(f"{path.name} lacks values")
    frame: pd.DataFrame = table.replace_schema_metadata().to_pandas()
    real = [column for column, kind in types.items() if kind is REAL and column in frame]
    if not np.isfinite(frame[real].to_numpy()).all():
        raise ValueError(f"{path.name} holds numbers that are not finite")
    return frame


def _truth(counts: Any) -> DetectionCounts | None:
    if counts is None:
        return None
    if not isinstance(counts, dict) or counts.keys() != DetectionCounts.__annotations__.keys():
        raise ValueError("truth in summary.json holds something else")
    if not all(value is None or isinstance(value, int | float) for value in counts.values()):
        raise ValueError("truth in summary.json holds something else")
    known: DetectionCounts = counts  # type: ignore[assignment] # which was just looked at
    return known


def require_findings(folder: Path) -> None:
    """Raise unless ``folder`` holds whole findings."""
    if not (folder / "summary.json").is_file():
        raise UndoorError(f"{folder} holds no whole findings; give the folder that undoor scan wrote")


def read_ids(folder: Path) -> tuple[list[str], list[str]]:
    """Return the ids of all scanned samples, and of those that are kept, from a folder with whole findings."""
    require_findings(folder)
    with _readable(folder):
        samples = _table(folder, "samples", ["id", "flagged"])
    require_names(samples["id"], "id")
    return samples["id"].tolist(), samples.loc[~samples["flagged"], "id"].tolist()


def read_list(path: Path, scanned: Sequence[str]) -> set[str]:
    """Return the ids in a file such as ``drop.txt``, one a line; raise if one of them was not scanned."""
    try:
        ids = read_bytes(path, LIST_BYTES).decode("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UndoorError(f"{path} cannot be read: {first_line(error)}; give a file with one id a line") from error
    unknown = [name for name in ids if name and name not in set(scanned)]
    if unknown:
        raise UndoorError(f"{path} names {unknown[0]!r}, which was not scanned; give ids of these findings, one a line")
    return {name for name in ids if name}

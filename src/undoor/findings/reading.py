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
from undoor.findings.provenance import Provenance, require_types
from undoor.findings.tables import REPORT_COLUMNS, TYPES, is_real
from undoor.safe.limits import CLASSES, read_bytes, read_json, require_file, require_names
from undoor.safe.parquet import read_columns

LIST_BYTES = 2**30
"""The most bytes that are read from a list of ids. Two million of the longest ids fit."""


def require_findings(folder: Path) -> None:
    """Raise unless ``folder`` holds whole findings."""
    if not (folder / "summary.json").is_file():
        raise UndoorError(f"{folder} holds no whole findings; give the folder that undoor scan wrote")


def read_findings(folder: Path) -> Findings:
    """Return the findings that ``Findings.write`` wrote into ``folder``.

    Raises:
        UndoorError: if a file is missing, was written by another version of undoor, or contradicts the others.

    """
    require_findings(folder)
    with _readable(folder):
        summary = read_json(folder / "summary.json")
        provenance = Provenance.from_summary(summary)
        require_types(summary, {"class_names": list, "threshold": int | float, "image_filter": str})
        names = summary["class_names"]
        require_names(names, "class name", most=CLASSES)
        require_names([summary["image_filter"]], "filter name")
        samples, clusters, curves = (_table(folder, name) for name in ("samples", "clusters", "curves"))
        classes = [samples[name] for name in ("label", "predicted", "filtered") if name in samples]
        for column in (*classes, clusters["class"], curves["class"]):
            if len(column) and not 0 <= column.min() <= column.max() < len(names):
                raise ValueError(f"{column.name} holds a number that is no class")
        if not all(len(counts) == len(names) for counts in clusters["destinations"]):
            raise ValueError("destinations holds another number of classes")
        clusters_of_samples = set(zip(samples["label"], samples["cluster"], strict=True))
        if not clusters_of_samples.issuperset(zip(clusters["class"], clusters["cluster"], strict=True)):
            raise ValueError("clusters.parquet lists a cluster that no sample is in")
        return Findings(
            provenance=provenance, samples=samples, clusters=clusters, curves=curves, class_names=tuple(names),
            threshold=summary["threshold"], truth=_truth(summary["truth"]), image_filter=summary["image_filter"],
        )  # fmt: skip


def read_ids(folder: Path) -> tuple[list[str], list[str]]:
    """Return the ids of all scanned samples, and of those that are not flagged, from a folder with whole findings."""
    require_findings(folder)
    with _readable(folder):
        samples = _table(folder, "samples", ["id", "flagged"])
    require_names(samples["id"], "id")
    return samples["id"].tolist(), samples.loc[~samples["flagged"], "id"].tolist()


def read_list(path: Path, scanned: Sequence[str]) -> set[str]:
    """Return the ids in a file such as ``drop.txt``, one a line; raise if one of them was not scanned."""
    try:
        ids = [line for line in read_bytes(path, LIST_BYTES).decode("utf-8").splitlines() if line]
    except (OSError, ValueError) as error:
        raise UndoorError(f"{path} cannot be read: {first_line(error)}; give a file with one id a line") from error
    if unknown := set(ids).difference(scanned):
        first = next(name for name in ids if name in unknown)
        raise UndoorError(f"{path} names {first!r}, which was not scanned; give ids of these findings, one a line")
    return set(ids)


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Turn whatever goes wrong while findings are read into an error of one line."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise UndoorError(f"the findings in {folder} cannot be read: {first_line(error)}; scan again") from error


def _table(folder: Path, name: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Return a table of findings with the types it was written with; columns that nobody asked for are left out."""
    path = folder / f"{name}.parquet"
    require_file(path)
    types = {column: is_type for column, is_type in TYPES[name].items() if columns is None or column in columns}

    def wanted(schema: pa.Schema) -> list[str]:
        for column, is_type in types.items():
            if column not in schema.names:
                if column not in REPORT_COLUMNS:
                    raise ValueError(f"{path.name} has no column {column}")
            elif not is_type(schema.field(column).type):
                raise ValueError(f"column {column} of {path.name} holds {schema.field(column).type}")
        return [column for column in schema.names if column in types]

    table = read_columns(path, wanted)
    if any(column.null_count for column in table.columns):
        raise ValueError(f"{path.name} lacks values")
    frame: pd.DataFrame = table.replace_schema_metadata().to_pandas()
    real = [column for column, is_type in types.items() if is_type is is_real and column in frame]
    if not np.isfinite(frame[real].to_numpy()).all():
        raise ValueError(f"{path.name} holds numbers that are not finite")
    return frame


def _truth(counts: Any) -> DetectionCounts | None:
    """Return the comparison with the truth from a summary, if it holds one."""
    if counts is None:
        return None
    if not isinstance(counts, dict) or counts.keys() != DetectionCounts.__annotations__.keys():
        raise ValueError("the summary's truth has other fields")
    if not all(value is None or isinstance(value, int | float) for value in counts.values()):
        raise ValueError("the summary's truth holds something else than numbers")
    checked: DetectionCounts = counts  # type: ignore[assignment] # its fields were compared above
    return checked

"""What a defence found: a table of samples, a table of clusters, and how they came about."""

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from undoor import notebook
from undoor._version import __version__
from undoor.bounds import CLASSES, read_bytes, read_json, require_file, require_names
from undoor.columns import read_columns
from undoor.doubts import Doubt, doubts
from undoor.errors import UndoorError, first_line
from undoor.files import staged
from undoor.metrics import DetectionCounts, detection

SCHEMA_VERSION = 1

SAMPLE_COLUMNS = ("id", "label", "predicted", "cluster", "score", "flagged")
CLUSTER_COLUMNS = (
    "class", "class_name", "cluster", "look", "size", "examined", "changed", "impurity", "destinations", "flagged",
)  # fmt: skip
CURVE_COLUMNS = ("class", "look", "dimensions", "components", "criterion")
VIEW_COLUMNS = ("filtered", "x", "y")

LIST_BYTES = 2**30
"""Bytes of a list of ids: two million of the longest ones."""

_WHOLE, _REAL, _TRUE = pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean
SUMMARY_TYPES: dict[str, Any] = {
    "defense": str, "class_names": list, "threshold": int | float, "settings": dict, "seed": int, "seconds": dict,
    "image_filter": str, "versions": dict,
}  # fmt: skip


def _text(kind: pa.DataType) -> bool:
    # Of an empty table nothing says what it holds.
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))


def _counts(kind: pa.DataType) -> bool:
    return bool(pa.types.is_null(kind) or (pa.types.is_list(kind) and pa.types.is_integer(kind.value_type)))


TYPES: dict[str, dict[str, Any]] = {
    "samples": {
        "id": _text, **dict.fromkeys(("label", "predicted", "cluster", "filtered"), _WHOLE),
        **dict.fromkeys(("score", "x", "y"), _REAL), "flagged": _TRUE,
    },
    "clusters": {
        **dict.fromkeys(("class", "cluster", "look", "size", "examined"), _WHOLE), "class_name": _text,
        "changed": _REAL, "impurity": _REAL, "destinations": _counts, "flagged": _TRUE,
    },
    "curves": {**dict.fromkeys(CURVE_COLUMNS, _WHOLE), "criterion": _REAL},
}  # fmt: skip
"""What the columns of the written tables hold."""


def no_clusters() -> pd.DataFrame:
    """Return the table of clusters of a method that has none."""
    whole = dict.fromkeys(("class", "cluster", "look", "size", "examined"), int)
    types = {**whole, "changed": float, "impurity": float, "flagged": bool}
    return pd.DataFrame(columns=list(CLUSTER_COLUMNS)).astype(types)


def curve_table(rows: Sequence[tuple[int, int, int, int, float]] = ()) -> pd.DataFrame:
    """Return the table of criteria with these rows; a method without mixtures has none."""
    table = pd.DataFrame(list(rows), columns=list(CURVE_COLUMNS))
    return table.astype({**dict.fromkeys(CURVE_COLUMNS, int), "criterion": float})


def versions() -> dict[str, str]:
    """Return the versions of everything that can change a result."""
    packages = ("torch", "numpy", "scipy", "scikit-learn", "pandas", "pyarrow", "pillow")
    # undoor may run from its sources, without being installed as a package.
    return {"python": platform.python_version(), "undoor": __version__, **{name: version(name) for name in packages}}


@dataclass(frozen=True, eq=False)
class Findings:
    """The result of a training-set defence.

    Args:
        defense: the name of the method.
        samples: one row a sample in the order of the data set; columns ``SAMPLE_COLUMNS``: id, label (int),
            predicted (int), cluster (int, within the class), score (float, high = suspicious), flagged; and where a
            report is to show it ``VIEW_COLUMNS``: filtered (int, the decision on the filtered image), x and y (float,
            the place on a map of its class).
        clusters: one row a cluster; columns ``CLUSTER_COLUMNS``: class (int), class_name, cluster, look (which look
            at the class found it, counted from 1), size,
            examined (images whose decision was looked at again: those whose decision is their label), changed
            (share of those whose decision the filter, or a retrained network, changes in a way that counts),
            impurity (the value that is compared with the threshold, whatever the method takes), destinations (for
            each class, how many of these changes went there), flagged. No rows for methods without clusters.
        class_names: the K names.
        threshold: a cluster (or sample) is flagged when its impurity (or score) exceeds it.
        settings: of the method, as plain values.
        seed: of the method.
        seconds: by stage.
        truth: counts against the truth; None where it is unknown. Filled in after the defence has finished.
        curves: one row a number of components that was tried; columns ``CURVE_COLUMNS``: class (int), look,
            dimensions (of the features in that look), components, criterion (in nats, the lowest wins).
        image_filter: the name of the filter whose decisions are in the column filtered; empty where there is none.
        versions: of everything that can have changed the result.
        pictures: PNG of some samples, by row, for notebooks; they are not written.

    """

    defense: str
    samples: pd.DataFrame
    clusters: pd.DataFrame
    class_names: tuple[str, ...]
    threshold: float
    settings: Mapping[str, Any]
    seed: int
    seconds: Mapping[str, float] = field(default_factory=dict)
    truth: DetectionCounts | None = None
    curves: pd.DataFrame = field(default_factory=curve_table)
    image_filter: str = ""
    versions: Mapping[str, str] = field(default_factory=versions)
    pictures: Mapping[int, bytes] = field(default_factory=dict, repr=False)

    @property
    def flagged(self) -> NDArray[np.bool_]:
        """(N,) bool: the samples that should go."""
        return self.samples["flagged"].to_numpy(dtype=bool)

    @property
    def verdict(self) -> Literal["poisoned", "clean"]:
        """Whether anything is flagged."""
        return "poisoned" if self.flagged.any() else "clean"

    @cached_property
    def doubts(self) -> list[Doubt]:
        """What makes the verdict doubtful."""
        return doubts(self.samples, self.clusters, self.class_names)

    @property
    def classes_flagged(self) -> tuple[str, ...]:
        """The names of the classes in which something is flagged."""
        labels = self.samples.loc[self.flagged, "label"].unique()
        return tuple(self.class_names[label] for label in sorted(labels))

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        where = f" in class {', '.join(self.classes_flagged)}" if self.flagged.any() else ""
        lead = f"{self.flagged.sum()} of {len(self.samples)} images flagged{where}; threshold {self.threshold:.3f}"
        rows = notebook.groups(self.samples, self.clusters, self.class_names)
        return notebook.render(self.verdict, lead, rows, self.pictures)

    def against(self, poisoned: NDArray[np.bool_]) -> "Findings":
        """Return these findings with their hits and false alarms counted against the truth, (N,) bool."""
        counts = detection(self.flagged, self.samples["score"].to_numpy(), self.samples["label"].to_numpy(), poisoned)
        return replace(self, truth=counts)

    def timed(self, seconds: Mapping[str, float]) -> "Findings":
        """Return these findings with the seconds of further stages added."""
        return replace(self, seconds={**seconds, **self.seconds})

    def summary(self) -> dict[str, Any]:
        """Return the content of ``summary.json``."""
        return {
            "schema_version": SCHEMA_VERSION,
            "defense": self.defense,
            "verdict": self.verdict,
            "classes_flagged": list(self.classes_flagged),
            "samples": len(self.samples),
            "flagged": int(self.flagged.sum()),
            "threshold": self.threshold,
            "learned": round(float((self.samples["predicted"] == self.samples["label"]).mean()), 4),
            "doubts": [doubt.text for doubt in self.doubts],
            "settings": dict(self.settings),
            "seed": self.seed,
            "versions": dict(self.versions),
            "seconds": {stage: round(value, 3) for stage, value in self.seconds.items()},
            "truth": self.truth,
            "image_filter": self.image_filter,
            "class_names": list(self.class_names),
        }

    def write(self, folder: Path, report: str, *, overwrite: bool = False) -> None:
        """Write the tables, ``keep.txt``, ``drop.txt``, the HTML ``report`` and ``summary.json`` into ``folder``.

        ``summary.json`` comes last: a folder that holds it holds whole findings.
        """
        refuse_findings(folder, overwrite)
        ids = self.samples["id"]
        texts = {
            "keep.txt": "".join(f"{name}\n" for name in ids[~self.flagged]),
            "drop.txt": "".join(f"{name}\n" for name in ids[self.flagged]),
            "report.html": report,
            "summary.json": json.dumps(self.summary(), indent=2, ensure_ascii=False) + "\n",
        }
        with staged(folder, last="summary.json") as temporary:
            self.samples.to_parquet(temporary / "samples.parquet", index=False)
            self.clusters.to_parquet(temporary / "clusters.parquet", index=False)
            self.curves.to_parquet(temporary / "curves.parquet", index=False)
            for name, text in texts.items():
                (temporary / name).write_text(text, encoding="utf-8")


def refuse_findings(folder: Path, overwrite: bool) -> None:
    """Raise if ``folder`` holds findings already and they may not be overwritten, or is no folder."""
    if folder.exists() and not folder.is_dir():
        raise UndoorError(f"{folder} is a file; choose a folder for --out")
    if (folder / "summary.json").exists() and not overwrite:
        raise UndoorError(f"{folder} already holds findings; choose another --out or add --overwrite")


def read_findings(folder: Path) -> Findings:
    """Return the findings that ``Findings.write`` wrote into ``folder``."""
    require_findings(folder)
    with _readable(folder):
        summary = read_json(folder / "summary.json")
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
            summary["defense"], samples, clusters, tuple(names), summary["threshold"],
            summary["settings"], summary["seed"], summary["seconds"], _truth(summary["truth"]), curves,
            summary["image_filter"], summary["versions"],
        )  # fmt: skip


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
    real = [column for column, kind in types.items() if kind is _REAL and column in frame]
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

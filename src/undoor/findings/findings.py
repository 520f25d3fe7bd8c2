"""What a training-set defence found: a table of samples, a table of clusters, and how they came about."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from undoor.errors import UndoorError
from undoor.findings import notebook
from undoor.findings.doubts import Doubt, doubts
from undoor.findings.metrics import DetectionCounts, detection
from undoor.findings.provenance import Provenance
from undoor.findings.tables import curve_table, no_clusters
from undoor.storage.atomic import staged


@dataclass(frozen=True, eq=False, kw_only=True)
class Findings:
    """The result of a training-set defence.

    Args:
        provenance: of which method and settings, and how long it took.
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
        truth: counts against the truth; None where it is unknown. Filled in after the defence has finished.
        curves: one row a number of components that was tried; columns ``CURVE_COLUMNS``: class (int), look,
            dimensions (of the features in that look), components, criterion (in nats, the lowest wins).
        image_filter: the name of the filter whose decisions are in the column filtered; empty where there is none.
        pictures: PNG of some samples, by row, for notebooks; they are not written.

    """

    provenance: Provenance
    samples: pd.DataFrame
    clusters: pd.DataFrame = field(default_factory=no_clusters)
    class_names: tuple[str, ...]
    threshold: float
    truth: DetectionCounts | None = None
    curves: pd.DataFrame = field(default_factory=curve_table)
    image_filter: str = ""
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
        return replace(self, provenance=self.provenance.after(seconds))

    def summary(self) -> dict[str, Any]:
        """Return the content of ``summary.json``."""
        provenance = self.provenance.summary()
        return {
            "schema_version": provenance.pop("schema_version"),
            "defense": provenance.pop("defense"),
            "method_version": provenance.pop("method_version"),
            "verdict": self.verdict,
            "classes_flagged": list(self.classes_flagged),
            "samples": len(self.samples),
            "flagged": int(self.flagged.sum()),
            "threshold": self.threshold,
            "learned": round(float((self.samples["predicted"] == self.samples["label"]).mean()), 4),
            "doubts": [doubt.text for doubt in self.doubts],
            "truth": self.truth,
            "image_filter": self.image_filter,
            "class_names": list(self.class_names),
            **provenance,
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

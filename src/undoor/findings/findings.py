"""The result of a training-set defense: a table of samples, a table of clusters, and how they came about."""

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
    """The result of a training-set defense.

    ``undoor.report.write_findings`` writes it into a folder together with its HTML page.

    Args:
        provenance: the method, its settings, and how long it took.
        samples: one row a sample, in the order of the data set. Its columns are ``SAMPLE_COLUMNS``: id, label (int),
            predicted (int), cluster (int, counted within the class), score (float, high = suspicious) and flagged.
            For the report there are also ``REPORT_COLUMNS``: filtered (int, the decision on the filtered image),
            x and y (float, the place on the map of its class).
        clusters: one row a cluster; no row for a method without clusters. Its columns are ``CLUSTER_COLUMNS``: class
            (int), class_name, cluster, look (which look at the class found the cluster, counted from 1), size,
            examined (how many of its images are decided as labelled, so that the defense compares their decisions),
            changed (the share of these whose decision the filter, or a retrained network, changes in a way that
            counts), impurity (the value that is compared with the threshold, whatever it is for the method),
            destinations (for each class, to how many images it is the new decision) and flagged.
        class_names: the K names.
        threshold: a cluster (or sample) is flagged if its impurity (or score) exceeds it.
        truth: the flags compared with the truth; None where the truth is unknown. It is filled in after the defense
            has finished.
        curves: one row for each number of components that was tried. Its columns are ``CURVE_COLUMNS``: class (int),
            look, dimensions (of the features in that look), components, criterion (in nats; the lowest is chosen).
        image_filter: the name of the filter to whose images the column filtered belongs; empty without that column.
        pictures: PNG images of some samples, by row, which notebooks show. They are not written.

    Example:
        >>> import numpy as np, pandas as pd, undoor
        >>> from undoor.findings.provenance import Provenance
        >>> samples = pd.DataFrame({"id": ["a.png", "b.png", "c.png"], "label": [0, 0, 1], "predicted": [0, 0, 1]})
        >>> samples = samples.assign(cluster=0, score=[0.1, 0.9, 0.2], flagged=[False, True, False])
        >>> provenance = Provenance(defense="by hand", method_version=1, settings={})
        >>> findings = undoor.Findings(
        ...     provenance=provenance, samples=samples, class_names=("cat", "dog"), threshold=0.5
        ... )
        >>> findings.verdict, findings.classes_flagged
        ('poisoned', ('cat',))
        >>> findings.against(np.array([False, True, True])).truth["tpr"]
        0.5

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
        """(N,) bool: the samples that should be removed."""
        return self.samples["flagged"].to_numpy(dtype=bool)

    @property
    def verdict(self) -> Literal["poisoned", "clean"]:
        """``"poisoned"`` if anything is flagged."""
        return "poisoned" if self.flagged.any() else "clean"

    @cached_property
    def doubts(self) -> list[Doubt]:
        """The reasons to doubt the verdict."""
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
        rows = notebook.table_rows(self.samples, self.clusters, self.class_names)
        return notebook.render(self.verdict, lead, rows, self.pictures)

    def against(self, poisoned: NDArray[np.bool_]) -> "Findings":
        """Return these findings with their flags compared with the truth, (N,) bool."""
        counts = detection(self.flagged, self.samples["score"].to_numpy(), self.samples["label"].to_numpy(), poisoned)
        return replace(self, truth=counts)

    def after_stages(self, seconds: Mapping[str, float]) -> "Findings":
        """Return these findings with the seconds of earlier stages put before those of the defense."""
        return replace(self, provenance=self.provenance.after_stages(seconds))

    def summary(self) -> dict[str, Any]:
        """Return the content of ``summary.json``."""
        return self.provenance.summary(
            verdict=self.verdict,
            classes_flagged=list(self.classes_flagged),
            samples=len(self.samples),
            flagged=int(self.flagged.sum()),
            threshold=self.threshold,
            learned=round(float((self.samples["predicted"] == self.samples["label"]).mean()), 4),
            doubts=[doubt.text for doubt in self.doubts],
            truth=self.truth,
            image_filter=self.image_filter,
            class_names=list(self.class_names),
        )

    def write(self, folder: Path, page: str, *, overwrite: bool = False) -> None:
        """Write the tables, ``keep.txt``, ``drop.txt``, ``summary.json`` and the HTML ``page`` into ``folder``.

        ``summary.json`` comes last: a folder that holds it holds whole findings.
        """
        refuse_findings(folder, overwrite)
        ids = self.samples["id"]
        texts = {
            "keep.txt": "".join(f"{name}\n" for name in ids[~self.flagged]),
            "drop.txt": "".join(f"{name}\n" for name in ids[self.flagged]),
            "report.html": page,
            "summary.json": json.dumps(self.summary(), indent=2, ensure_ascii=False) + "\n",
        }
        with staged(folder, last="summary.json") as temporary:
            for name, table in (("samples", self.samples), ("clusters", self.clusters), ("curves", self.curves)):
                table.to_parquet(temporary / f"{name}.parquet", index=False)
            for name, text in texts.items():
                (temporary / name).write_text(text, encoding="utf-8")


def refuse_findings(folder: Path, overwrite: bool) -> None:
    """Raise if ``folder`` is no folder, or already holds a result that may not be overwritten."""
    if folder.exists() and not folder.is_dir():
        raise UndoorError(f"{folder} is a file; choose a folder for --out")
    if (folder / "summary.json").exists() and not overwrite:
        raise UndoorError(f"{folder} already holds findings; choose another --out or add --overwrite")

"""What a defence found: a table of samples, a table of clusters, and how they came about."""

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from undoor.errors import UndoorError
from undoor.files import staged
from undoor.metrics import DetectionCounts, detection

SCHEMA_VERSION = 1

SAMPLE_COLUMNS = ("id", "label", "predicted", "cluster", "score", "flagged")
CLUSTER_COLUMNS = (
    "class", "class_name", "cluster", "size", "examined", "changed", "impurity", "destinations", "flagged",
)  # fmt: skip


def no_clusters() -> pd.DataFrame:
    """Return the table of clusters of a method that has none."""
    types = {"class": int, "cluster": int, "size": int, "examined": int, "changed": float, "impurity": float}
    return pd.DataFrame(columns=list(CLUSTER_COLUMNS)).astype({**types, "flagged": bool})


def versions() -> dict[str, str]:
    """Return the versions of everything that can change a result."""
    packages = ("undoor", "torch", "numpy", "scipy", "scikit-learn", "pandas", "pyarrow", "pillow")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


@dataclass(frozen=True, eq=False)
class Findings:
    """The result of a training-set defence.

    Args:
        defense: the name of the method.
        samples: one row a sample in the order of the data set; columns ``SAMPLE_COLUMNS``: id, label (int),
            predicted (int), cluster (int, within the class), score (float, high = suspicious), flagged.
        clusters: one row a cluster; columns ``CLUSTER_COLUMNS``: class (int), class_name, cluster, size,
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

    @property
    def flagged(self) -> NDArray[np.bool_]:
        """(N,) bool: the samples that should go."""
        return self.samples["flagged"].to_numpy(dtype=bool)

    @property
    def verdict(self) -> Literal["poisoned", "clean"]:
        """Whether anything is flagged."""
        return "poisoned" if self.flagged.any() else "clean"

    @property
    def classes_flagged(self) -> tuple[str, ...]:
        """The names of the classes in which something is flagged."""
        labels = self.samples.loc[self.flagged, "label"].unique()
        return tuple(self.class_names[label] for label in sorted(labels))

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
            "settings": dict(self.settings),
            "seed": self.seed,
            "versions": versions(),
            "seconds": {stage: round(value, 3) for stage, value in self.seconds.items()},
            "truth": self.truth,
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
            for name, text in texts.items():
                (temporary / name).write_text(text, encoding="utf-8")


def refuse_findings(folder: Path, overwrite: bool) -> None:
    """Raise if ``folder`` holds findings already and they may not be overwritten, or is no folder."""
    if folder.exists() and not folder.is_dir():
        raise UndoorError(f"{folder} is a file; choose a folder for --out")
    if (folder / "summary.json").exists() and not overwrite:
        raise UndoorError(f"{folder} already holds findings; choose another --out or add --overwrite")


def read_ids(folder: Path) -> tuple[list[str], list[str]]:
    """Return the ids of all scanned samples, and of those that are kept, from a folder with whole findings."""
    if not (folder / "summary.json").is_file():
        raise UndoorError(f"{folder} holds no whole findings; give the folder that undoor scan wrote")
    samples = pd.read_parquet(folder / "samples.parquet", columns=["id", "flagged"])
    return samples["id"].tolist(), samples.loc[~samples["flagged"], "id"].tolist()

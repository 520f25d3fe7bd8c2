"""What the studies share: how they keep measurements, write tables and train their victims."""

import argparse
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from operator import getitem
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from undoor.data.dataset import Dataset
from undoor.defenses.training_set import ClusterImpurity
from undoor.evidence import Evidence
from undoor.experiments.report.tables import markdown, shown
from undoor.filters import Filter
from undoor.findings.findings import Findings
from undoor.findings.provenance import versions
from undoor.mixtures.memory import remembered_clusterings
from undoor.networks.classifier import Classifier
from undoor.networks.recipes import recipe
from undoor.networks.victims import fit_victim
from undoor.storage.atomic import write_text

ROOT = Path(__file__).parents[1]

RATES = {
    "tpr": "TPR",
    "fpr_target_class": "FPR, target class",
    "fpr_all_classes": "FPR, all classes",
    "auroc": "AUROC",
}
"""The rates of detection that the studies keep, and the headings of their columns."""


@dataclass(frozen=True)
class Study:
    """The files in which a study keeps its measurements.

    Args:
        folder: holds the measurements and the page ``README.md``.
        lists: the names of the lists of measurements.
        file: the name of the file with the measurements.

    """

    folder: Path
    lists: tuple[str, ...] = ("rows",)
    file: str = "results.json"

    def read(self) -> dict:
        """Return the measurements, with empty lists if there is no file yet."""
        path = self.folder / self.file
        empty = {name: [] for name in self.lists}
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else empty

    def has(self, name: str, **key: object) -> bool:
        """Whether a list holds a measurement with these values."""
        return any(all(row.get(field) == value for field, value in key.items()) for row in self.read()[name])

    def add(self, name: str, row: dict) -> None:
        """Append a measurement to a list and write the file at once, so that a run that is stopped loses little."""
        content = {**self.read(), "versions": versions()}
        content[name].append(row)
        self.write(content)
        print(json.dumps(row, ensure_ascii=False)[:400], flush=True)

    def write(self, content: dict) -> None:
        """Write the measurements."""
        write_text(self.folder / self.file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    def write_page(self, text: str) -> None:
        """Write ``README.md``."""
        write_text(self.folder / "README.md", text)


def seeds_parser(description: str | None, seeds: int, help_text: str = "number of seeds") -> argparse.ArgumentParser:
    """Return a command-line parser with the option ``--seeds``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=seeds, help=help_text)
    return parser


Column = Callable[[list[dict]], object]
"""Makes a cell of a table from the measurements of its row."""


def cell(values: Iterable[float], digits: int = 2) -> str:
    """Return the median, with the lowest and the highest value if they differ."""
    return shown(pd.Series(list(values), dtype="Float64"), digits)


def median(*path: str, digits: int = 2) -> Column:
    """Return the column with the median of a value, which lies at ``path`` in each measurement."""
    return lambda rows: cell((reduce(getitem, path, row) for row in rows), digits)


def share(*path: str) -> Column:
    """Return the column that says in how many measurements the value at ``path`` is true."""
    return lambda rows: f"{sum(reduce(getitem, path, row) for row in rows)} of {len(rows)}"


def grouped_table(
    key: tuple[str, ...], groups: Mapping[tuple[str, ...], list[dict]], columns: dict[str, Column]
) -> str:
    """Return a Markdown table with one row for each group of measurements that is not empty.

    Args:
        key: the headings of the columns that name the group.
        groups: the measurements of each group.
        columns: the other columns by their headings.

    """
    lines = [[*name, *(column(rows) for column in columns.values())] for name, rows in groups.items() if rows]
    return markdown([*key, *columns], lines)


def versions_line(content: dict) -> str:
    """Return the versions with which a study was measured, as the last line of its page."""
    return ", ".join(f"{name} {version}" for name, version in content["versions"].items()) + "."


def victim(dataset: Dataset, epochs: int, seed: int, folder: Path) -> Classifier:
    """Train a network on a data set; if the folder holds the network from an earlier run, load it instead."""
    path = folder / f"{dataset.fingerprint()}-{seed}.safetensors"
    return Classifier(fit_victim(dataset, recipe(epochs=epochs, seed=seed), path))


def findings_by_filter(
    evidence: Evidence, filters: Mapping[str, Filter], seed: int, poisoned: NDArray[np.bool_]
) -> dict[str, Findings]:
    """Return the findings of Cluster Impurity with each filter, compared with the truth.

    The clusters do not depend on the filter, so they are found once.
    """
    defense = ClusterImpurity(seed=seed, workers=1)
    with remembered_clusterings():
        return {
            name: replace(defense, filter_name=str(image_filter))(evidence).against(poisoned)
            for name, image_filter in filters.items()
        }


def rates(findings: Findings) -> dict[str, float]:
    """Return the rates of detection of findings that were compared with the truth."""
    return {name: findings.truth[name] for name in RATES}

"""Hugging Face ``datasets`` in and out."""

from typing import TYPE_CHECKING

import pyarrow as pa

from undoor.dataset import Dataset
from undoor.errors import UndoorError
from undoor.findings import Findings
from undoor.integrations.frame import issues
from undoor.readers.hub import from_loaded
from undoor.readers.options import ReadOptions
from undoor.readers.parquet import hub_tables

if TYPE_CHECKING:
    import datasets


def from_dataset(
    loaded: "datasets.Dataset",
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    image_size: int | None = None,
    skip_broken: bool = False,
) -> Dataset:
    """Return a ``datasets.Dataset`` with an image and a label column as a data set; ids are row numbers.

    The names of a ``ClassLabel`` are kept. Columns ``poisoned`` and ``original_label`` are taken for the truth. The
    options are those of ``undoor.read``.
    """
    return from_loaded(loaded, "the data set", ReadOptions("", image_column, label_column, image_size, skip_broken))


def to_dataset(dataset: Dataset, findings: Findings | None = None) -> "datasets.Dataset":
    """Return a data set as a ``datasets.Dataset``, its images as lossless PNG.

    Its columns are ``img`` (Image), ``label`` (ClassLabel), ``id``, where the truth is known ``poisoned`` and
    ``original_label``, and with findings ``is_backdoor_issue`` and ``backdoor_score`` as ``issues`` explains them, so
    that ``.filter(lambda row: not row["is_backdoor_issue"])`` is the clean set.
    """
    import datasets

    if findings is not None and findings.samples["id"].tolist() != dataset.ids.tolist():
        raise UndoorError("the findings are of other samples than the data set; give the findings of this very data")
    made = datasets.Dataset(pa.concat_tables(hub_tables(dataset)))
    made = made.add_column("id", dataset.ids.tolist())
    if findings is not None:
        frame = issues(findings)
        for name in ("is_backdoor_issue", "backdoor_score"):
            made = made.add_column(name, frame[name].tolist())
    return made

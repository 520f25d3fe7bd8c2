"""Data sets from and to Hugging Face ``datasets``."""

from typing import TYPE_CHECKING

import pyarrow as pa

from undoor.data.dataset import Dataset
from undoor.data.readers.hub import encoded_table
from undoor.data.readers.options import ReadOptions
from undoor.data.readers.parquet import dataset_from_table, hub_tables
from undoor.errors import UndoorError, require_extra
from undoor.findings.findings import Findings
from undoor.integrations.frame import issues

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
    """Return a ``datasets.Dataset`` with an image and a label column as a data set, whose ids are row numbers.

    The names of a ``ClassLabel`` are kept. Columns ``poisoned`` and ``original_label`` become the truth. The options
    are those of ``undoor.read``.
    """
    require_extra("datasets", "hub", "from_dataset")
    import datasets
    from datasets.table import embed_table_storage

    if not isinstance(loaded, datasets.Dataset):
        kind = type(loaded).__name__
        raise UndoorError(f"the data set is a {kind}; give a datasets.Dataset, one split of a set that has several")
    # Images may be in local files; nothing is fetched from elsewhere.
    table = embed_table_storage(encoded_table(loaded), remote_files=False)
    options = ReadOptions("", image_column, label_column, image_size, skip_broken)
    return dataset_from_table(table, "the data set", options)


def to_dataset(dataset: Dataset, findings: Findings | None = None) -> "datasets.Dataset":
    """Return a data set as a ``datasets.Dataset`` with lossless images (PNG).

    Its columns are ``img`` (Image), ``label`` (ClassLabel) and ``id``, and ``poisoned`` and ``original_label`` if the
    truth is known. With findings there are ``is_backdoor_issue`` and ``backdoor_score``, which ``issues`` explains;
    ``.filter(lambda row: not row["is_backdoor_issue"])`` then returns the clean set.
    """
    require_extra("datasets", "hub", "to_dataset")
    import datasets

    if findings is not None and findings.samples["id"].tolist() != dataset.ids.tolist():
        raise UndoorError("the findings are of other samples than the data set; give the findings of this very data")
    result = datasets.Dataset(pa.concat_tables(hub_tables(dataset))).add_column("id", dataset.ids.tolist())
    if findings is not None:
        frame = issues(findings)
        for name in ("is_backdoor_issue", "backdoor_score"):
            result = result.add_column(name, frame[name].tolist())
    return result

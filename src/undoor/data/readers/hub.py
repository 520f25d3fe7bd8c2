"""Data sets of the Hugging Face hub, by name."""

from typing import Any

import pyarrow as pa

from undoor.data.dataset import Dataset
from undoor.data.readers.options import ReadOptions
from undoor.data.readers.parquet import dataset_from_table
from undoor.errors import UndoorError, first_line, require_extra


def read_hub(name: str, options: ReadOptions) -> Dataset:
    """Read a split of ``owner/name`` (or ``owner/name:configuration``, or a local copy of its folder).

    Only data files are read: a data set that needs a script of its own is refused by ``datasets``.
    """
    require_extra("datasets", "hub", "a data set of the hub")
    import datasets

    datasets.config.HF_DATASETS_TRUST_REMOTE_CODE = False  # before version 4 it asks, and may be told to run the script
    repository, _, configuration = name.partition(":")
    try:
        loaded = datasets.load_dataset(repository, configuration or None, split=options.split)
    except Exception as error:
        raise UndoorError(
            f"the hub data set {name!r} cannot be loaded: {first_line(error)}; check its name, --split and the network"
        ) from error
    return dataset_from_table(encoded_table(loaded), name, options)


def encoded_table(loaded: Any) -> pa.Table:
    """Return the rows of a ``datasets.Dataset`` with its images as they are encoded."""
    import datasets

    for column, feature in loaded.features.items():
        if isinstance(feature, datasets.Image):  # encoded bytes: undoor decodes, once and with its own checks
            loaded = loaded.cast_column(column, datasets.Image(decode=False))
    table: pa.Table = loaded.with_format("arrow")[:]
    return table

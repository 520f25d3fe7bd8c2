"""Data sets of the Hugging Face hub."""

from typing import Any

import pyarrow as pa

from undoor.data.dataset import Dataset
from undoor.data.readers.options import ReadOptions
from undoor.data.readers.parquet import dataset_from_table
from undoor.errors import UndoorError, first_line, require_extra


def read_hub(name: str, options: ReadOptions) -> Dataset:
    """Read a split of ``owner/name``, of ``owner/name:configuration``, or of a local copy of such a folder.

    Only data files are read: ``datasets`` refuses a data set that needs a script of its own.
    """
    require_extra("datasets", "hub", "a data set of the hub")
    import datasets

    datasets.config.HF_DATASETS_TRUST_REMOTE_CODE = False  # before version 4, it asks whether to run the script
    repository, _, configuration = name.partition(":")
    try:
        loaded = datasets.load_dataset(repository, configuration or None, split=options.split)
    except Exception as error:
        raise UndoorError(
            f"the hub data set {name!r} cannot be loaded: {first_line(error)}; check its name, --split and the network"
        ) from error
    return dataset_from_table(encoded_table(loaded), name, options)


def encoded_table(loaded: Any) -> pa.Table:
    """Return the rows of a ``datasets.Dataset``, with encoded images: undoor decodes them itself, within limits."""
    import datasets

    for column, feature in loaded.features.items():
        if isinstance(feature, datasets.Image):
            loaded = loaded.cast_column(column, datasets.Image(decode=False))
    table: pa.Table = loaded.with_format("arrow")[:]
    return table

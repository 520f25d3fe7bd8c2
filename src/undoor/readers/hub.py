"""Data sets of the Hugging Face hub, by name."""

from typing import Any

import pyarrow as pa

from undoor.dataset import Dataset
from undoor.errors import UndoorError, first_line
from undoor.readers.options import ReadOptions
from undoor.readers.parquet import dataset_from_table


def read_hub(name: str, options: ReadOptions) -> Dataset:
    """Read a split of ``owner/name`` (or ``owner/name:configuration``, or a local copy of its folder).

    Only data files are read: a data set that needs a script of its own is refused by ``datasets``.
    """
    import datasets

    repository, _, configuration = name.partition(":")
    try:
        loaded = datasets.load_dataset(repository, configuration or None, split=options.split)
    except Exception as error:
        raise UndoorError(
            f"the hub data set {name!r} cannot be loaded: {first_line(error)}; check its name, --split and the network"
        ) from error
    return from_loaded(loaded, name, options)


def from_loaded(loaded: Any, where: str, options: ReadOptions) -> Dataset:
    """Read a ``datasets.Dataset`` whose images are encoded, in its rows or in files."""
    import datasets
    from datasets.table import embed_table_storage

    if not isinstance(loaded, datasets.Dataset):
        kind = type(loaded).__name__
        raise UndoorError(f"{where} is a {kind}; give a datasets.Dataset, one split of a set that has several")
    for column, feature in loaded.features.items():
        if isinstance(feature, datasets.Image):  # encoded bytes: undoor decodes, once and with its own checks
            loaded = loaded.cast_column(column, datasets.Image(decode=False))
    table: pa.Table = loaded.with_format("arrow")[:]
    return dataset_from_table(embed_table_storage(table), where, options)

"""Parquet with an image and a label column: the layout of the Hugging Face hub."""

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from undoor.dataset import Dataset, Truth, row_ids
from undoor.errors import UndoorError, first_line
from undoor.files import atomic
from undoor.readers.images import decode_dataset, encode_png
from undoor.readers.options import ReadOptions

LABEL_COLUMNS = ("label", "labels", "fine_label", "target")


def accepts(path: Path) -> bool:
    """Whether ``path`` is a Parquet file or a folder that holds some."""
    return path.suffix == ".parquet" or (path.is_dir() and any(path.glob("*.parquet")))


def shards(path: Path, split: str) -> list[Path]:
    """Return the Parquet files that make up ``path``: itself, or those of the split if several are there."""
    if path.is_file():
        return [path]
    files = sorted(path.glob("*.parquet"))
    named = [file for file in files if file.name.startswith(split)]
    if named or len(files) == 1:
        return named or files
    raise UndoorError(f"{path} holds several Parquet files but none whose name starts with {split!r}; choose --split")


def read(path: Path, options: ReadOptions) -> Dataset:
    """Read a Parquet file or the shards of one split."""
    try:
        table = pa.concat_tables([pq.read_table(file) for file in shards(path, options.split)])
        table.validate(full=True)  # texts that are none, and places outside of what is there
    except (pa.ArrowException, OSError) as error:
        raise UndoorError(f"{path} is not whole Parquet: {first_line(error)}") from error
    return dataset_from_table(table, str(path), options)


def dataset_from_table(table: pa.Table, where: str, options: ReadOptions) -> Dataset:
    """Decode the image column of an Arrow table; columns ``poisoned`` and ``original_label`` are the truth."""
    image_column = _image_column(table, where, options.image_column)
    label_column = _label_column(table, where, options.label_column)
    images = table[image_column]
    if pa.types.is_struct(images.type):
        images = pa.chunked_array([chunk.field("bytes") for chunk in images.chunks], images.type.field("bytes").type)
    images = images.combine_chunks()
    if images.null_count:
        raise UndoorError(f"{where}: {images.null_count} rows of column {image_column} hold no image; remove them")

    labels, class_names = _labels(table, label_column, where)
    truth = None
    if {"poisoned", "original_label"} <= set(table.column_names):
        truth = Truth(table["poisoned"].to_numpy().astype(bool), table["original_label"].to_numpy().astype(np.int64))
    return decode_dataset(lambda row: images[row].as_py(), labels, class_names, row_ids(len(labels)), options, truth)


def _label_column(table: pa.Table, where: str, asked: str | None) -> str:
    wanted = LABEL_COLUMNS if asked is None else (asked,)
    for name in wanted:
        if name in table.column_names:
            return name
    raise UndoorError(
        f"{where} has no label column {' or '.join(wanted)}; its columns: {', '.join(table.column_names)}; "
        "name one with --label-column"
    )


def _image_column(table: pa.Table, where: str, asked: str | None) -> str:
    def holds_images(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            return bool(kind.get_field_index("bytes") >= 0)
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    found: list[str] = [field.name for field in table.schema if holds_images(field.type)]
    if asked is not None:
        found = [name for name in found if name == asked]
    if not found:
        raise UndoorError(
            f"{where} has no {'column of images' if asked is None else f'image column {asked!r}'}; "
            f"its columns: {', '.join(table.column_names)}; encoded images are binary or struct(bytes, path)"
        )
    return found[0]


def _labels(table: pa.Table, column: str, where: str) -> tuple[np.ndarray[Any, np.dtype[np.int64]], list[str]]:
    values = table[column].combine_chunks()
    if values.null_count:
        raise UndoorError(f"{where}: {values.null_count} rows of column {column} hold no label; remove them")
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        names, labels = np.unique(values.to_numpy(zero_copy_only=False).astype(np.str_), return_inverse=True)
        return labels.astype(np.int64), names.tolist()
    if not pa.types.is_integer(values.type):
        raise UndoorError(f"{where}: column {column} holds {values.type}; labels are integers or strings")
    labels = values.to_numpy().astype(np.int64)
    described = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
    names = described.get("info", {}).get("features", {}).get(column, {}).get("names")
    return labels, names or [str(k) for k in range(int(labels.max(initial=0)) + 1)]


def hub_tables(dataset: Dataset) -> Iterator[pa.Table]:
    """Yield a data set as Arrow tables of up to 1000 rows in the layout of the hub.

    Images are lossless PNG; where the truth is known, it stands in columns of its own.
    """
    features: dict[str, Any] = {
        "img": {"_type": "Image"},
        "label": {"names": list(dataset.class_names), "_type": "ClassLabel"},
    }
    fields = [
        pa.field("img", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        pa.field("label", pa.int64()),
    ]
    if dataset.truth is not None:
        features |= {
            "poisoned": {"dtype": "bool", "_type": "Value"},
            "original_label": {"dtype": "int64", "_type": "Value"},
        }
        fields += [pa.field("poisoned", pa.bool_()), pa.field("original_label", pa.int64())]
    described = json.dumps({"info": {"features": features}})
    schema = pa.schema(fields, metadata={"huggingface": described})
    for start in range(0, len(dataset), 1000):
        rows = slice(start, start + 1000)
        columns: dict[str, Iterable[Any]] = {
            "img": [
                {"bytes": encode_png(image), "path": name}
                for image, name in zip(dataset.images[rows], dataset.ids[rows].tolist(), strict=True)
            ],
            "label": dataset.labels[rows],
        }
        if dataset.truth is not None:
            columns |= {
                "poisoned": dataset.truth.poisoned[rows],
                "original_label": dataset.truth.original_labels[rows],
            }
        yield pa.table(columns, schema=schema)


def write_parquet(dataset: Dataset, path: Path, on_image: Callable[[int, int], None] | None = None) -> None:
    """Write a data set in the layout of the hub; ``on_image`` is told how many of how many images are written."""
    tables = hub_tables(dataset)
    first = next(tables)
    done = 0
    with atomic(path) as temporary, pq.ParquetWriter(temporary, first.schema) as writer:
        for table in chain([first], tables):
            writer.write_table(table)
            done += len(table)
            if on_image is not None:
                on_image(done, len(dataset))

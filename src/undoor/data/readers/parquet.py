"""Parquet with an image and a label column: the layout of the Hugging Face hub."""

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from undoor.data.dataset import Dataset, Truth, row_ids
from undoor.data.readers.arrays import numbered_classes
from undoor.data.readers.images import decode_dataset
from undoor.data.readers.options import ReadOptions
from undoor.errors import UndoorError, first_line
from undoor.safe.images import encode_png
from undoor.safe.limits import parse_json, require_file
from undoor.safe.parquet import read_columns
from undoor.storage.atomic import atomic

TRUTH = ("poisoned", "original_label")
LABEL_COLUMNS = ("label", "labels", "fine_label", "target")


def accepts(path: Path) -> bool:
    """Whether ``path`` is a Parquet file or a folder that holds some."""
    return path.suffix == ".parquet" or (path.is_dir() and any(path.glob("*.parquet")))


def shards(path: Path, split: str) -> list[Path]:
    """Return the Parquet files that make up ``path``: itself, or those of the split if several are there."""
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("*.parquet"))
    named = [file for file in files if file.name.startswith(split)]
    if named or len(files) == 1:
        return named or files
    raise UndoorError(f"{path} holds several Parquet files but none whose name starts with {split!r}; choose --split")


def read(path: Path, options: ReadOptions) -> Dataset:
    """Read a Parquet file or the shards of one split: image, label and truth; other columns are not looked at."""

    def wanted(schema: pa.Schema) -> list[str]:
        image_column = _image_column(schema, str(path), options.image_column)
        label_column = _label_column(schema, str(path), options.label_column)
        return list(dict.fromkeys([image_column, label_column, *(name for name in TRUTH if name in schema.names)]))

    return dataset_from_table(read_table(path, options.split, wanted), str(path), options)


def read_table(path: Path, split: str, wanted: Callable[[pa.Schema], list[str]] | None = None) -> pa.Table:
    """Return the rows of a Parquet file or of the shards of one split, with the columns ``wanted`` or all."""
    try:
        parts = []
        for file in shards(path, split):
            require_file(file)  # before pyarrow opens it: a pipe would keep it waiting
            parts.append(read_columns(file, wanted))
        return pa.concat_tables(parts)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise UndoorError(f"{path} is not whole Parquet: {first_line(error)}") from error


def dataset_from_table(table: pa.Table, where: str, options: ReadOptions) -> Dataset:
    """Decode the image column of an Arrow table; columns ``poisoned`` and ``original_label`` are the truth."""
    image_column = _image_column(table.schema, where, options.image_column)
    label_column = _label_column(table.schema, where, options.label_column)
    images = table[image_column]
    if pa.types.is_struct(images.type):
        images = pa.chunked_array([chunk.field("bytes") for chunk in images.chunks], images.type.field("bytes").type)
    if images.null_count:
        raise UndoorError(f"{where}: {images.null_count} rows of column {image_column} hold no image; remove them")

    labels, class_names = _labels(table, label_column, where)
    truth = _truth(table, where, len(class_names)) if set(TRUTH) <= set(table.column_names) else None
    return decode_dataset(lambda row: images[row].as_py(), labels, class_names, row_ids(len(labels)), options, truth)


def _truth(table: pa.Table, where: str, classes: int) -> Truth:
    poisoned, original = (table[name] for name in TRUTH)
    if not pa.types.is_boolean(poisoned.type) or not pa.types.is_integer(original.type):
        raise UndoorError(f"{where}: the columns {' and '.join(TRUTH)} hold no truth; rename or mend them")
    if poisoned.null_count or original.null_count:
        raise UndoorError(f"{where}: rows of the columns {' and '.join(TRUTH)} hold nothing; fill or rename them")
    labels = original.to_numpy().astype(np.int64)
    if ((labels < 0) | (labels >= classes)).any():
        raise UndoorError(f"{where}: column {TRUTH[1]} holds labels outside 0 … {classes - 1}; mend or rename it")
    return Truth(poisoned.to_numpy().astype(bool), labels)


def _label_column(schema: pa.Schema, where: str, asked: str | None) -> str:
    wanted = LABEL_COLUMNS if asked is None else (asked,)
    for name in wanted:
        if name in schema.names:
            return name
    raise UndoorError(
        f"{where} has no label column {' or '.join(wanted)}; its columns: {', '.join(schema.names)}; "
        "name one with --label-column"
    )


def _image_column(schema: pa.Schema, where: str, asked: str | None) -> str:
    def holds_images(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            return bool(kind.get_field_index("bytes") >= 0)
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    found: list[str] = [field.name for field in schema if holds_images(field.type)]
    if asked is not None:
        found = [name for name in found if name == asked]
    if not found:
        raise UndoorError(
            f"{where} has no {'column of images' if asked is None else f'image column {asked!r}'}; "
            f"its columns: {', '.join(schema.names)}; encoded images are binary or struct(bytes, path)"
        )
    return found[0]


def _labels(table: pa.Table, column: str, where: str) -> tuple[np.ndarray[Any, np.dtype[np.int64]], list[str]]:
    values = table[column]
    if values.null_count:
        raise UndoorError(f"{where}: {values.null_count} rows of column {column} hold no label; remove them")
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        encoded = values.dictionary_encode().combine_chunks()
        found = encoded.dictionary.to_pylist()
        names = sorted(set(found))
        numbers = {name: number for number, name in enumerate(names)}
        return np.array([numbers[name] for name in found])[encoded.indices.to_numpy()].astype(np.int64), names
    if not pa.types.is_integer(kind):
        raise UndoorError(f"{where}: column {column} holds {kind}; labels are integers or strings")
    labels = values.cast(kind).to_numpy()
    return labels.astype(np.int64), _described(table.schema, column, where) or numbered_classes(labels, where)


def _described(schema: pa.Schema, column: str, where: str) -> list[str] | None:
    """Return the names of the classes if the hub's metadata tells them."""
    try:
        part: Any = parse_json((schema.metadata or {}).get(b"huggingface", b"{}"))
        for key in ("info", "features", column):
            part = part.get(key, {})
        names = part.get("names")
    except (ValueError, AttributeError) as error:
        told = first_line(error) if isinstance(error, ValueError) else "it holds something else"
        raise UndoorError(f"{where}: its metadata for the hub cannot be read: {told}; remove it") from error
    if names is not None and not isinstance(names, list):
        raise UndoorError(f"{where}: its metadata for the hub names no list of classes; mend or remove it")
    return names


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

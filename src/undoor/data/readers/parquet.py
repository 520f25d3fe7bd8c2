"""Parquet with a column of images and a column of labels, as on the Hugging Face hub."""

import json
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from undoor.data.dataset import Dataset, Truth, row_ids
from undoor.data.readers.arrays import numbered_classes
from undoor.data.readers.images import decode_dataset
from undoor.data.readers.options import ReadOptions
from undoor.errors import UndoorError, first_line
from undoor.safe.images import encode_png
from undoor.safe.limits import parse_json
from undoor.safe.parquet import read_columns
from undoor.storage.atomic import atomic

TRUTH = ("poisoned", "original_label")
"""The columns of the truth."""

LABEL_COLUMNS = ("label", "labels", "fine_label", "target")
"""The names of label columns that are tried in turn, unless the user gives one."""


def accepts(path: Path) -> bool:
    """Return whether ``path`` is a Parquet file or a folder that contains some."""
    return path.suffix == ".parquet" or (path.is_dir() and any(path.glob("*.parquet")))


def shards(path: Path, split: str) -> list[Path]:
    """Return the Parquet files that make up ``path``: a single file, or the files of the split in a folder."""
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("*.parquet"))
    files_of_split = [file for file in files if file.name.startswith(split)]
    if files_of_split or len(files) == 1:
        return files_of_split or files
    raise UndoorError(f"{path} holds several Parquet files but none whose name starts with {split!r}; choose --split")


def read(path: Path, options: ReadOptions) -> Dataset:
    """Read images, labels and truth from a Parquet file or the shards of a split; other columns are not read."""

    def wanted(schema: pa.Schema) -> list[str]:
        columns = _columns(schema, str(path), options)
        return list(dict.fromkeys([*columns, *(name for name in TRUTH if name in schema.names)]))

    return dataset_from_table(read_table(path, options.split, wanted), str(path), options)


def read_table(path: Path, split: str, wanted: Callable[[pa.Schema], list[str]] | None = None) -> pa.Table:
    """Return the columns ``wanted``, or all, of a Parquet file or of the shards of a split."""
    try:
        return pa.concat_tables([read_columns(file, wanted) for file in shards(path, split)])
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise UndoorError(f"{path} is not whole Parquet: {first_line(error)}") from error


def dataset_from_table(table: pa.Table, source: str, options: ReadOptions) -> Dataset:
    """Decode the images of an Arrow table; the columns ``poisoned`` and ``original_label`` are the truth."""
    image_column, label_column = _columns(table.schema, source, options)
    images = table[image_column]
    if pa.types.is_struct(images.type):
        images = pa.chunked_array([chunk.field("bytes") for chunk in images.chunks], images.type.field("bytes").type)
    if images.null_count:
        raise UndoorError(f"{source}: {images.null_count} rows of column {image_column} hold no image; remove them")

    labels, class_names = _labels(table, label_column, source)
    truth = _truth(table, source, len(class_names)) if set(TRUTH) <= set(table.column_names) else None
    return decode_dataset(lambda row: images[row].as_py(), labels, class_names, row_ids(len(labels)), options, truth)


def _columns(schema: pa.Schema, source: str, options: ReadOptions) -> tuple[str, str]:
    """Return the names of the image column and of the label column."""
    given = options.image_column
    image_columns: list[str] = [
        field.name for field in schema if _holds_images(field.type) and given in (None, field.name)
    ]
    if not image_columns:
        raise UndoorError(
            f"{source} has no {'column of images' if given is None else f'image column {given!r}'}; "
            f"its columns: {', '.join(schema.names)}; encoded images are binary or struct(bytes, path)"
        )
    candidates = LABEL_COLUMNS if options.label_column is None else (options.label_column,)
    label_columns = [name for name in candidates if name in schema.names]
    if not label_columns:
        raise UndoorError(
            f"{source} has no label column {' or '.join(candidates)}; its columns: {', '.join(schema.names)}; "
            "name one with --label-column"
        )
    return image_columns[0], label_columns[0]


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _truth(table: pa.Table, source: str, classes: int) -> Truth:
    poisoned, original = (table[name] for name in TRUTH)
    if not pa.types.is_boolean(poisoned.type) or not pa.types.is_integer(original.type):
        raise UndoorError(f"{source}: the columns {' and '.join(TRUTH)} hold no truth; rename or mend them")
    if poisoned.null_count or original.null_count:
        raise UndoorError(f"{source}: rows of the columns {' and '.join(TRUTH)} hold nothing; fill or rename them")
    labels = original.to_numpy().astype(np.int64)
    if ((labels < 0) | (labels >= classes)).any():
        raise UndoorError(f"{source}: column {TRUTH[1]} holds labels outside 0 … {classes - 1}; mend or rename it")
    return Truth(poisoned.to_numpy().astype(bool), labels)


def _labels(table: pa.Table, column: str, source: str) -> tuple[NDArray[np.int64], list[str]]:
    """Return (N,) the labels, and the names of the classes; texts become classes in alphabetical order."""
    values = table[column]
    if values.null_count:
        raise UndoorError(f"{source}: {values.null_count} rows of column {column} hold no label; remove them")
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        encoded = values.dictionary_encode().combine_chunks()
        texts = encoded.dictionary.to_pylist()
        names = sorted(set(texts))
        numbers = {name: number for number, name in enumerate(names)}
        return np.array([numbers[text] for text in texts])[encoded.indices.to_numpy()].astype(np.int64), names
    if not pa.types.is_integer(kind):
        raise UndoorError(f"{source}: column {column} holds {kind}; labels are integers or strings")
    labels = values.cast(kind).to_numpy()
    return labels.astype(np.int64), _described_names(table.schema, column, source) or numbered_classes(labels, source)


def _described_names(schema: pa.Schema, column: str, source: str) -> list[str] | None:
    """Return the names of the classes, if the metadata of the hub contains them."""
    try:
        part: Any = parse_json((schema.metadata or {}).get(b"huggingface", b"{}"))
        for key in ("info", "features", column):
            part = part.get(key, {})
        names = part.get("names")
    except (ValueError, AttributeError) as error:
        reason = first_line(error) if isinstance(error, ValueError) else "it holds something else"
        raise UndoorError(f"{source}: its metadata for the hub cannot be read: {reason}; remove it") from error
    if names is not None and not isinstance(names, list):
        raise UndoorError(f"{source}: its metadata for the hub names no list of classes; mend or remove it")
    return names


def hub_tables(dataset: Dataset) -> Iterator[pa.Table]:
    """Yield a data set as Arrow tables of up to 1000 rows in the layout of the hub.

    Images are PNG, without loss. The truth, if it is known, has columns of its own.
    """
    features: dict[str, Any] = {
        "img": {"_type": "Image"},
        "label": {"names": list(dataset.class_names), "_type": "ClassLabel"},
    }
    types = {"img": pa.struct([("bytes", pa.binary()), ("path", pa.string())]), "label": pa.int64()}
    columns: dict[str, NDArray[Any]] = {"label": dataset.labels}
    if dataset.truth is not None:
        for name, dtype, values in zip(
            TRUTH, ("bool", "int64"), (dataset.truth.poisoned, dataset.truth.original_labels), strict=True
        ):
            features[name] = {"dtype": dtype, "_type": "Value"}
            types[name], columns[name] = pa.type_for_alias(dtype), values
    schema = pa.schema(types, metadata={"huggingface": json.dumps({"info": {"features": features}})})
    for start in range(0, len(dataset), 1000):
        rows = slice(start, start + 1000)
        encoded = [
            {"bytes": encode_png(image), "path": name}
            for image, name in zip(dataset.images[rows], dataset.ids[rows].tolist(), strict=True)
        ]
        yield pa.table({"img": encoded} | {name: values[rows] for name, values in columns.items()}, schema=schema)


def write_parquet(dataset: Dataset, path: Path, on_image: Callable[[int, int], None] | None = None) -> None:
    """Write a data set in the layout of the hub; ``on_image`` is called with the images written, and all images."""
    tables = hub_tables(dataset)
    first = next(tables)
    done = 0
    with atomic(path) as temporary, pq.ParquetWriter(temporary, first.schema) as writer:
        for table in chain([first], tables):
            writer.write_table(table)
            done += len(table)
            if on_image is not None:
                on_image(done, len(dataset))

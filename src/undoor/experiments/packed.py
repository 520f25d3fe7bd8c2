"""Many results in one Parquet table, one row a result."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from undoor.errors import UndoorError, first_line
from undoor.safe.limits import parse_json
from undoor.safe.parquet import read_columns

Result = dict[str, Any]

JSON = {b"encoding": b"json"}
"""Metadata of a column whose values are JSON text."""

PLAIN_TYPES = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}


def as_table(results: Mapping[str, Result]) -> pa.Table:
    """Return results as a table: the column ``key`` and one column for every name, in alphabetical order.

    Columns of texts, numbers or truth values hold these; all others hold JSON text. A name that a result lacks is null.
    """
    keys = sorted(results)
    columns, fields = [pa.array(keys, pa.string())], [pa.field("key", pa.string())]
    for name in sorted({name for result in results.values() for name in result}):
        values = [results[key].get(name) for key in keys]
        kind = _plain_type(values)
        if kind is None:
            values = [None if value is None else _encoded(value) for value in values]
        columns.append(pa.array(values, kind or pa.string()))
        fields.append(pa.field(name, kind or pa.string(), metadata=None if kind else JSON))
    return pa.table(columns, pa.schema(fields))


def read_table(path: Path) -> dict[str, Result]:
    """Return the results in a Parquet file that was written from ``as_table``, by their keys; none without a file."""
    if not path.exists():
        return {}
    try:
        table = read_columns(path)
        columns = {
            field.name: [_decoded(text) for text in values] if field.metadata == JSON else values
            for field, values in zip(table.schema, (column.to_pylist() for column in table.columns), strict=True)
        }
        keys = columns.pop("key")
        return {key: {name: values[row] for name, values in columns.items()} for row, key in enumerate(keys)}
    except (OSError, ValueError, LookupError, TypeError, pa.ArrowException) as error:
        raise UndoorError(f"{path} holds no results: {first_line(error)}; restore it or remove it") from error


def _plain_type(values: list[Any]) -> pa.DataType | None:
    """Return the type of a column that holds these values as they are; None if they have to be JSON text."""
    types = {type(value) for value in values if value is not None}
    if types == {int, float}:
        return pa.float64()
    return PLAIN_TYPES.get(types.pop()) if len(types) == 1 else None


def _encoded(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)


def _decoded(text: str | None) -> Any:
    return None if text is None else parse_json(f'{{"value": {text}}}')["value"]

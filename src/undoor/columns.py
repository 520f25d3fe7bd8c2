"""Parquet files that somebody else may have made, read into no more memory than their size allows."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from undoor.bounds import require_file, require_growth

LEAVES = 1000
"""Columns of a file, with the parts of nested ones."""

METADATA = 2**26
"""Bytes of a text in the metadata, and of its lists."""


def read_columns(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Return columns of a Parquet file, by default all.

    Texts and bytes are first read as what is stored, each value once, and only then repeated in every row: a file of
    kilobytes can say that one image stands in a billion of them.

    Raises:
        ValueError: the file has more rows than bytes, or would grow to more than its size allows.
        OSError: it is not there, or broken.
        pyarrow.ArrowException: it is broken.

    """
    size = require_file(path)
    limits = {"thrift_string_size_limit": METADATA, "thrift_container_size_limit": METADATA}
    with pq.ParquetFile(path, **limits) as file:
        known, schema = file.metadata, file.schema_arrow
        if known.num_columns > LEAVES:
            raise ValueError(f"it has {known.num_columns:,} columns, more than the {LEAVES:,} that are read")
        groups = [known.row_group(number) for number in range(known.num_row_groups)]
        rows = max(known.num_rows, sum(group.num_rows for group in groups))
        if rows > size:
            raise ValueError(f"it tells of {rows:,} rows and has only {size:,} bytes")
        require_growth(size, sum(group.total_byte_size for group in groups))
        leaves = [file.schema.column(number) for number in range(known.num_columns)]
    # Values of lists cannot be read so; undoor needs none.
    shared = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY" and not leaf.max_repetition_level]
    wanted = schema if columns is None else pa.schema([schema.field(name) for name in columns], schema.metadata)
    parts, grown = [], 0
    with pq.ParquetFile(path, read_dictionary=shared, **limits) as file:
        for number in range(len(groups)):
            part = file.read_row_group(number, columns=None if columns is None else list(columns))
            part.validate(full=True)  # texts that are none, and places outside of what is there
            grown += sum(_bytes(chunk) for column in part.columns for chunk in column.chunks)
            require_growth(size, grown)
            parts.append(part.select(wanted.names).cast(wanted))
    return pa.concat_tables(parts) if parts else wanted.empty_table()


def _bytes(values: pa.Array) -> int:
    """Return the bytes that an array takes up once every shared value is repeated."""
    if pa.types.is_struct(values.type):
        return sum(_bytes(values.field(number)) for number in range(values.type.num_fields))
    if not pa.types.is_dictionary(values.type):
        return int(values.nbytes)
    lengths = values.dictionary.cast(pa.large_binary()).buffers()[1]
    offsets = np.frombuffer(lengths, np.int64)[values.dictionary.offset :][: len(values.dictionary) + 1]
    rows = values.indices.drop_null().to_numpy()
    return int(np.diff(offsets)[rows].sum())

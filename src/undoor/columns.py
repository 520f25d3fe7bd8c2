"""Parquet files that somebody else may have made, read into no more memory than their size allows."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from undoor.bounds import require_file, require_growth
from undoor.pages import largest

LEAVES = 1000
"""Columns of a file, with the parts of nested ones."""

METADATA = 2**26
"""Bytes of a text in the metadata, and of its lists."""

BOUNDS_DEPTH = 26
"""The first pyarrow that follows a schema through no more than 100 groups. Those before crash on a deep one."""

FEW = 500
"""Entries of a list in the metadata, for those: the schema is one, and no deeper than it is long; so are row groups."""

LISTED = METADATA if int(pa.__version__.split(".")[0]) >= BOUNDS_DEPTH else FEW
"""Entries of a list in the metadata."""


def read_columns(path: Path, wanted: Callable[[pa.Schema], Sequence[str]] | None = None) -> pa.Table:
    """Return columns of a Parquet file: those that ``wanted`` names when it is given the schema, by default all.

    Texts and bytes are first read as what is stored, each value once, and only then repeated in every row: a file of
    kilobytes can say that one image stands in a billion of them.

    Raises:
        ValueError: the file has more rows than bytes, or would grow to more than its size allows.
        OSError: it is not there, or broken.
        pyarrow.ArrowException: it is broken.

    """
    size = require_file(path)
    limits = {"thrift_string_size_limit": METADATA, "thrift_container_size_limit": LISTED}
    try:
        file = pq.ParquetFile(path, **limits)
    except OSError as error:
        if LISTED < METADATA and "Exceeded size limit" in str(error):
            raise ValueError(
                f"its metadata lists more than {LISTED} columns or row groups; pip install 'pyarrow>={BOUNDS_DEPTH}'"
            ) from error
        raise
    with file:
        known, schema = file.metadata, file.schema_arrow
        if known.num_columns > LEAVES:
            raise ValueError(f"it has {known.num_columns:,} columns, more than the {LEAVES:,} that are read")
        groups = [known.row_group(number) for number in range(known.num_row_groups)]
        rows = max(known.num_rows, sum(group.num_rows for group in groups))
        if rows > size:
            raise ValueError(f"it tells of {rows:,} rows and has only {size:,} bytes")
        require_growth(size, sum(group.total_byte_size for group in groups))
        leaves = [file.schema.column(number) for number in range(known.num_columns)]
    columns = None if wanted is None else list(wanted(schema))
    within = {
        number: leaf
        for number, leaf in enumerate(leaves)
        if columns is None or any(f"{leaf.path}.".startswith(f"{name}.") for name in columns)
    }
    with path.open("rb") as opened:
        require_growth(size, sum(largest(opened, group, within) for group in groups))
    # Values of lists cannot be read so; undoor needs none.
    shared = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY" and not leaf.max_repetition_level]
    told = schema if columns is None else pa.schema([schema.field(name) for name in columns], schema.metadata)
    parts, grown = [], 0
    with pq.ParquetFile(path, read_dictionary=shared, **limits) as file:
        for number in range(len(groups)):
            part = file.read_row_group(number, columns=columns)
            part.validate(full=True)  # texts that are none, and places outside of what is there
            grown += sum(_bytes(chunk) for column in part.columns for chunk in column.chunks)
            require_growth(size, grown)
            parts.append(part.select(told.names).cast(told))
    return pa.concat_tables(parts) if parts else told.empty_table()


def _bytes(values: pa.Array) -> int:
    """Return the bytes that an array takes up once every shared value is repeated."""
    total, left = 0, [values]
    while left:  # and no recursion: a hundred levels and more are someone's to choose
        values = left.pop()
        if pa.types.is_struct(values.type):
            left += [values.field(number) for number in range(values.type.num_fields)]
        elif pa.types.is_dictionary(values.type):
            lengths = values.dictionary.cast(pa.large_binary()).buffers()[1]
            offsets = np.frombuffer(lengths, np.int64)[values.dictionary.offset :][: len(values.dictionary) + 1]
            rows = values.indices.drop_null().to_numpy()
            total += int(np.diff(offsets)[rows].sum())
        else:
            total += int(values.nbytes)
    return total

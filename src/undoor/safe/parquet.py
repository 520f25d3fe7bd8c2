"""Parquet files that somebody else may have made, read into no more memory than their size allows."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from undoor.safe.limits import require_file, require_growth
from undoor.safe.parquet_footer import Footer

LEAVES = 1000
"""Columns of a file, with the parts of nested ones."""


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
    with path.open("rb") as opened:
        footer = Footer(opened)
        if len(footer.leaves) > LEAVES:
            raise ValueError(f"it has {len(footer.leaves):,} columns, more than the {LEAVES:,} that are read")
        if footer.rows > size:
            raise ValueError(f"it tells of {footer.rows:,} rows and has only {size:,} bytes")
        schema = pq.read_schema(path)
        columns = schema.names if wanted is None else list(wanted(schema))
        require_growth(size, footer.largest(columns))
    # Values of lists cannot be read so; undoor needs none.
    shared = [".".join(leaf.path) for leaf in footer.leaves if leaf.texts and not leaf.repeated]
    told = pa.schema([schema.field(name) for name in columns], schema.metadata)
    parts, grown = [], 0
    with pq.ParquetFile(path, read_dictionary=shared) as file:
        for number in range(len(footer.groups)):
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

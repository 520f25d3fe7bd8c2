"""Parquet tables, read into no more memory than the size of the file allows.

A file of kilobytes can claim a billion rows, or store one image and repeat it in every row. So the footer is checked
first (``undoor.safe.parquet_footer``). Texts and bytes are then read as indices into their distinct values, which takes
little memory however often a value is repeated, and are expanded only if that takes no more than the size allows.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from undoor.safe.limits import require_file, require_growth
from undoor.safe.parquet_footer import Footer

LEAVES = 1000
"""Most columns of a file; a column that contains others counts as all of those."""


def read_columns(path: Path, wanted: Callable[[pa.Schema], Sequence[str]] | None = None) -> pa.Table:
    """Return columns of a Parquet file: those that ``wanted`` names when it is given the schema, by default all.

    Raises:
        ValueError: if the file claims more rows than it has bytes, or takes more memory than its size allows.
        OSError: if the file cannot be read, or is broken.
        pyarrow.ArrowException: if the file is broken.

    """
    size = require_file(path)
    with path.open("rb") as opened:
        footer = Footer(opened)
        if len(footer.leaves) > LEAVES:
            raise ValueError(f"it has {len(footer.leaves):,} columns, more than the {LEAVES:,} that are read")
        if footer.rows > size:
            raise ValueError(f"it claims {footer.rows:,} rows and has only {size:,} bytes")
        schema = pq.read_schema(path)
        columns = schema.names if wanted is None else list(wanted(schema))
        require_growth(size, footer.largest(columns))
    # pyarrow cannot read texts in lists as indices.
    texts = [".".join(leaf.path) for leaf in footer.leaves if leaf.has_texts and not leaf.in_list]
    target = pa.schema([schema.field(name) for name in columns], schema.metadata)
    parts, expanded = [], 0
    with pq.ParquetFile(path, read_dictionary=texts) as file:
        for number in range(len(footer.groups)):
            part = file.read_row_group(number, columns=columns)
            part.validate(full=True)  # finds texts that are no UTF-8, and indices without a value
            expanded += sum(_expanded_bytes(chunk) for column in part.columns for chunk in column.chunks)
            require_growth(size, expanded)
            parts.append(part.select(target.names).cast(target))
    return pa.concat_tables(parts) if parts else target.empty_table()


def _expanded_bytes(values: pa.Array) -> int:
    """Return the bytes that an array takes up when every index is replaced by its value."""
    total, waiting = 0, [values]
    while waiting:  # without recursion, because whoever made the file chooses the depth
        values = waiting.pop()
        if pa.types.is_struct(values.type):
            waiting += [values.field(number) for number in range(values.type.num_fields)]
        elif pa.types.is_dictionary(values.type):
            buffer = values.dictionary.cast(pa.large_binary()).buffers()[1]
            offsets = np.frombuffer(buffer, np.int64)[values.dictionary.offset :][: len(values.dictionary) + 1]
            indices = values.indices.drop_null().to_numpy()
            total += int(np.diff(offsets)[indices].sum())
        else:
            total += int(values.nbytes)
    return total

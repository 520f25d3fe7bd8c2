"""How large the pages of a Parquet file become, by their own headers and before any of them is decoded.

The metadata at the end of a file can tell of less than its pages hold. Whoever decodes a page takes the memory that its
header asks for.
"""

from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import pyarrow.parquet as pq

DEPTH = 8
"""Structures and lists within one another; a page's header has three."""

WIDTH = 16 + 4
"""Bytes of a value, at most, and of its two levels: how far it is there, and where a list begins."""

DATA, DICTIONARY, SECOND = 0, 2, 3
"""Kinds of pages; ``SECOND`` is data in the second version of the format."""

PLACES = (2, 8)
"""Encodings by places in a dictionary."""

SHARED_PREFIXES = 7
"""The encoding by what a text has in common with the one before, of any length."""

BROKEN = "the header of a page is broken"

Fields = dict[int, Any]


class Page(NamedTuple):
    """A page's header.

    Args:
        kind: ``DATA``, ``DICTIONARY``, ``SECOND`` or another.
        unpacked: bytes of the page once it is decompressed.
        packed: bytes of the page in the file.
        values: of the page, nulls among them; 0 where it is none of data.
        encoding: of the values, as Parquet numbers it.

    """

    kind: int
    unpacked: int
    packed: int
    values: int
    encoding: int


def largest(file: BinaryIO, row_group: pq.RowGroupMetaData, leaves: Mapping[int, pq.ColumnSchema]) -> int:
    """Return how many bytes these columns of a row group take up at most when they are read.

    Args:
        file: open.
        row_group: of its metadata.
        leaves: by their number. Texts that do not repeat are taken to be read as places in a dictionary.

    Raises:
        ValueError: a page is broken, or its values can have any length.

    """
    total = 0
    for number, leaf in leaves.items():
        repeated = leaf.physical_type == "BYTE_ARRAY" and leaf.max_repetition_level > 0
        dictionary = 0
        for page in _pages(file, row_group.column(number)):
            if page.kind == DICTIONARY:
                dictionary = page.unpacked
            if repeated and page.encoding == SHARED_PREFIXES:
                raise ValueError(f"column {leaf.path} holds lists of texts by what they share")
            length = dictionary if repeated and page.encoding in PLACES else leaf.length
            total += page.unpacked + page.values * (WIDTH + length)
    return total


def _pages(file: BinaryIO, chunk: pq.ColumnChunkMetaData) -> Iterator[Page]:
    """Yield the pages of a column in a row group, as far as pyarrow reads them."""
    at = chunk.data_page_offset
    if chunk.has_dictionary_page and chunk.dictionary_page_offset and chunk.dictionary_page_offset < at:
        at = chunk.dictionary_page_offset
    end, values = at + chunk.total_compressed_size, 0
    if at < 0:
        raise ValueError(BROKEN)
    while at < end and values < chunk.num_values:
        file.seek(at)
        page = _page(_structure(file))
        at = file.tell() + page.packed
        values += page.values
        yield page


def _page(fields: Fields) -> Page:
    kind = _count(fields, 1)
    unpacked, packed = _count(fields, 2), _count(fields, 3)
    if kind not in (DATA, SECOND):
        return Page(kind, unpacked, packed, 0, 0)
    data = fields.get(5 if kind == DATA else 8)
    if not isinstance(data, dict):
        raise ValueError(BROKEN)
    return Page(kind, unpacked, packed, _count(data, 1), _count(data, 2 if kind == DATA else 4))


def _count(fields: Fields, field: int) -> int:
    value = fields.get(field)
    if not isinstance(value, int) or value < 0:
        raise ValueError(BROKEN)
    return value


def _structure(file: BinaryIO, depth: int = 0) -> Fields:
    """Return the numbers and structures, by their field, of a structure in the compact protocol of Thrift."""
    fields: Fields = {}
    field = 0
    while head := _byte(file):
        field = field + (head >> 4) if head >> 4 else _signed(file)
        fields[field] = _value(file, head & 15, depth)
    return fields


def _value(file: BinaryIO, kind: int, depth: int) -> Any:
    """Return a number or a structure; any other value is passed over."""
    if depth > DEPTH:
        raise ValueError(BROKEN)
    if kind in (4, 5, 6):
        return _signed(file)
    if kind == 12:
        return _structure(file, depth + 1)
    if kind in (9, 10):
        head = _byte(file)
        for _ in range(head >> 4 if head >> 4 < 15 else _unsigned(file)):
            # In a list a truth takes a byte, elsewhere its kind tells it.
            _value(file, 3 if head & 15 in (1, 2) else head & 15, depth + 1)
    elif kind in (3, 7, 8):
        _pass(file, {3: 1, 7: 8}.get(kind) or _unsigned(file))
    elif kind not in (1, 2):
        raise ValueError(BROKEN)
    return None


def _pass(file: BinaryIO, count: int) -> None:
    """Go over so many bytes, the last of which is there."""
    if count:
        file.seek(count - 1, 1)
        _byte(file)


def _byte(file: BinaryIO) -> int:
    read = file.read(1)
    if not read:
        raise ValueError("the file ends within the header of a page")
    return read[0]


def _unsigned(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 63, 7):
        part = _byte(file)
        value |= (part & 127) << shift
        if part < 128:
            return value
    raise ValueError(BROKEN)


def _signed(file: BinaryIO) -> int:
    value = _unsigned(file)
    return value >> 1 ^ -(value & 1)

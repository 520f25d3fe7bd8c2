"""How much memory the columns of a Parquet file take up, computed from the file before pyarrow reads any of it.

A few kilobytes of Parquet can decode to terabytes. The metadata at the end of the file (the footer) states sizes, but
these can be false: a decoder reserves for each page the memory that the header of the page asks for. The functions of
pyarrow that read the metadata do not help, because pyarrow follows the schema to any depth (before version 26) and
ends the process if the statistics of a column are broken. So this module reads the footer and the header of every page
itself, with bounds on the length of the footer, the depth of the schema and the length of a header.
"""

import io
from collections.abc import Collection, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

from undoor.safe.thrift import BROKEN, I32, I64, LIST, STRUCTURE, TEXT, CompactReader, Fields

FOOTER = 2**25
"""Longest footer in bytes: it may contain long texts, such as a million names."""
HEADER_BYTES = (2**12, 2**24)
"""How many bytes of a page are searched for its header: first few, then as many as pyarrow searches."""
DEPTH = 100
"""Most groups of columns within one another."""

VALUE_BYTES = 16 + 4
"""Most bytes that a value takes up in memory, and its two levels (for nulls and for the beginnings of lists)."""

DATA, DICTIONARY, DATA_V2 = 0, 2, 3
"""Types of pages; ``DATA_V2`` is a page of data in the second version of the format."""
DICTIONARY_ENCODINGS = (2, 8)
"""Encodings in which a value is an index into the dictionary."""
PREFIX_ENCODING = 7
"""DELTA_BYTE_ARRAY: texts as the length of the prefix that they share with the text before, and the rest."""
BYTE_ARRAY, REPEATED = 6, 2
"""The type of columns of texts or bytes, and the repetition of what is in a list, as Parquet numbers them."""

_ELEMENT: Fields = {
    1: ("type", I32, None),
    2: ("length", I32, None),
    3: ("repetition", I32, None),
    4: ("name", TEXT, None),
    5: ("children", I32, None),
}
CHUNK: Fields = {
    2: ("encodings", LIST, I32),
    3: ("path", LIST, TEXT),
    5: ("values", I64, None),
    7: ("packed", I64, None),
    8: ("notes", LIST, STRUCTURE),
    9: ("data", I64, None),
    11: ("dictionary", I64, None),
    13: ("pages", LIST, STRUCTURE),
    16: ("sizes", STRUCTURE, {2: ("repeated", LIST, I64), 3: ("defined", LIST, I64)}),
    17: ("places", STRUCTURE, {2: ("types", LIST, I32)}),
}
_GROUP: Fields = {
    1: ("columns", LIST, {3: ("chunk", STRUCTURE, CHUNK)}),
    3: ("rows", I64, None),
    4: ("sorted", LIST, STRUCTURE),
}
_FILE: Fields = {
    2: ("schema", LIST, _ELEMENT),
    3: ("rows", I64, None),
    4: ("groups", LIST, _GROUP),
    5: ("notes", LIST, STRUCTURE),
    7: ("orders", LIST, STRUCTURE),
}
PAGE: Fields = {
    1: ("kind", I32, None),
    2: ("unpacked", I32, None),
    3: ("packed", I32, None),
    5: ("data", STRUCTURE, {1: ("values", I32, None), 2: ("encoding", I32, None)}),
    8: ("data_v2", STRUCTURE, {1: ("values", I32, None), 4: ("encoding", I32, None)}),
}


class Leaf(NamedTuple):
    """A column that contains no other columns, and that can be in groups of columns or in a list."""

    path: tuple[str, ...]
    """The names of the groups, and its own name."""
    has_texts: bool
    """Whether each value has a length of its own, as texts and bytes have."""
    in_list: bool
    length: int
    """The bytes of a value where all values have the same length, else 0."""


class Page(NamedTuple):
    """The header of a page: its type, its bytes when decompressed and in the file, its values and their encoding."""

    kind: int
    unpacked: int
    packed: int
    values: int = 0
    encoding: int = 0


class Footer:
    """The metadata of a Parquet file.

    ``leaves`` are the columns, ``groups`` has the fields of every column in every row group, and ``rows`` is the number
    of rows that the file claims.

    Raises:
        ValueError: if the footer is broken or too long, or the columns are nested too deeply.

    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - 8))
        end = file.read(8)
        length = int.from_bytes(end[:4], "little")
        if end[4:] != b"PAR1" or length > size - 12:
            raise ValueError("it does not end as Parquet does")
        if length > FOOTER:
            raise ValueError(f"its metadata has {length:,} bytes, more than the {FOOTER:,} that are read")
        file.seek(size - 8 - length)
        try:
            fields = CompactReader(file.read(length)).structure(_FILE)
        except EOFError:
            raise ValueError(BROKEN) from None
        self.leaves = list(_leaves(fields.get("schema", [])))
        groups = fields.get("groups", [])
        self.rows = max(_count(fields, "rows"), sum(_count(group, "rows") for group in groups))
        self.groups: list[list[dict[str, Any]]] = [
            [column.get("chunk", {}) for column in group.get("columns", [])] for group in groups
        ]
        if any(len(group) != len(self.leaves) for group in self.groups):
            raise ValueError(BROKEN)

    def largest(self, columns: Collection[str]) -> int:
        """Return how many bytes these columns take up at most when they are read.

        This assumes that texts, except in lists, are read as indices into a dictionary of distinct values.

        Raises:
            ValueError: if a page is broken, or its values can have any length.

        """
        leaves = [(n, leaf) for n, leaf in enumerate(self.leaves) if leaf.path[0] in columns]
        return sum(self._largest(leaf, group[n]) for group in self.groups for n, leaf in leaves)

    def _largest(self, leaf: Leaf, chunk: dict[str, Any]) -> int:
        total = dictionary = 0
        for page in self.pages(chunk):
            if page.kind == DICTIONARY:
                dictionary = page.unpacked
            length = leaf.length
            if leaf.has_texts and leaf.in_list:
                if page.encoding == PREFIX_ENCODING:
                    raise ValueError(f"column {leaf.path[0]} holds lists of texts by their shared prefixes")
                length = dictionary if page.encoding in DICTIONARY_ENCODINGS else 0
            total += page.unpacked + page.values * (VALUE_BYTES + length)
        return total

    def pages(self, chunk: dict[str, Any]) -> Iterator[Page]:
        """Yield the pages of a column in a row group, as far as pyarrow reads them."""
        values, packed, offset = (_count(chunk, name) for name in ("values", "packed", "data"))
        if 0 < chunk.get("dictionary", 0) < offset:
            offset = chunk["dictionary"]
        end = offset + packed
        while offset < end and values > 0:
            page, length = read_page_header(self._file, offset)
            offset += length + page.packed
            values -= page.values
            yield page


def read_page_header(file: BinaryIO, offset: int) -> tuple[Page, int]:
    """Return the header of the page at an offset and the length of the header; raise ``ValueError`` if it is broken."""
    for most in HEADER_BYTES:
        file.seek(offset)
        reader = CompactReader(file.read(most))
        try:
            fields = reader.structure(PAGE)
        except EOFError:
            continue
        kind, unpacked, packed = (_count(fields, name) for name in ("kind", "unpacked", "packed"))
        if kind not in (DATA, DATA_V2):
            return Page(kind, unpacked, packed), reader.position
        data = fields.get("data" if kind == DATA else "data_v2", {})
        return Page(kind, unpacked, packed, _count(data, "values"), _count(data, "encoding")), reader.position
    raise ValueError("the header of a page is broken")


def _count(fields: dict[str, Any], name: str) -> int:
    count: int = fields.get(name, -1)
    if count < 0:
        raise ValueError(BROKEN)
    return count


def _leaves(elements: Sequence[dict[str, Any]]) -> Iterator[Leaf]:
    """Yield the columns of a schema. Its elements are a tree in depth-first order, and the first is the root."""
    groups: list[tuple[str, bool]] = []  # the groups that contain the next element: name, and whether it is in a list
    remaining = [1]  # how many elements the file, and then each of the groups, still has to contain
    for element in elements:
        while not remaining[-1]:
            remaining.pop()
            groups.pop()
            if not groups:
                raise ValueError(BROKEN)
        remaining[-1] -= 1
        name, children = element.get("name", ""), element.get("children", 0)
        in_list = bool(groups) and (groups[-1][1] or element.get("repetition") == REPEATED)
        if children > 0 or not groups:
            groups.append((name, in_list))
            remaining.append(children)
            if len(groups) > DEPTH:
                raise ValueError(f"its columns are nested more than {DEPTH} times")
        elif children < 0 or "type" not in element:
            raise ValueError(BROKEN)
        else:
            path = (*(group for group, _ in groups[1:]), name)
            yield Leaf(path, element["type"] == BYTE_ARRAY, in_list, max(0, element.get("length", 0)))
    if any(remaining):
        raise ValueError(BROKEN)

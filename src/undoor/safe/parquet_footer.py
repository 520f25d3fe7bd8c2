"""How large the pages of a Parquet file become, by the file's own words and before pyarrow sees any of it.

The metadata at the end of a file can tell of less than its pages hold, and whoever decodes a page takes the memory that
its header asks for. What pyarrow tells of the metadata does not help: it follows a schema to any depth (before version
26), and ends the process where the statistics of a column are broken. So both are read here.
"""

import io
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

from undoor.safe.thrift import BROKEN, I32, I64, LIST, STRUCTURE, TEXT, Compact, Known

FOOTER = 2**25
"""Bytes of the metadata; texts in it, such as a million names, may be long."""

HEADER = 2**12, 2**24
"""Bytes of a page's header: what is tried first, and what pyarrow reads of one."""

DEPTH = 100
"""Groups of columns within one another."""

WIDTH = 16 + 4
"""Bytes of a value, at most, and of its two levels: how far it is there, and where a list begins."""

DATA, DICTIONARY, SECOND = 0, 2, 3
"""Kinds of pages; ``SECOND`` is data in the second version of the format."""

PLACES = (2, 8)
"""Encodings by places in a dictionary."""

SHARED_PREFIXES = 7
"""The encoding by what a text has in common with the one before, of any length."""

BYTES, REPEATED = 6, 2
"""Of a column: its type, and how often it stands in what it is within."""

ELEMENT: Known = {
    1: ("type", I32, None),
    2: ("length", I32, None),
    3: ("repetition", I32, None),
    4: ("name", TEXT, None),
    5: ("children", I32, None),
}
CHUNK: Known = {
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
GROUP: Known = {
    1: ("columns", LIST, {3: ("chunk", STRUCTURE, CHUNK)}),
    3: ("rows", I64, None),
    4: ("sorted", LIST, STRUCTURE),
}
FILE: Known = {
    2: ("schema", LIST, ELEMENT),
    3: ("rows", I64, None),
    4: ("groups", LIST, GROUP),
    5: ("notes", LIST, STRUCTURE),
    7: ("orders", LIST, STRUCTURE),
}
PAGE: Known = {
    1: ("kind", I32, None),
    2: ("unpacked", I32, None),
    3: ("packed", I32, None),
    5: ("first", STRUCTURE, {1: ("values", I32, None), 2: ("encoding", I32, None)}),
    8: ("second", STRUCTURE, {1: ("values", I32, None), 4: ("encoding", I32, None)}),
}


@dataclass(frozen=True)
class Leaf:
    """A column without columns within.

    Args:
        path: the names of the groups that it is in and its own.
        texts: whether its values have lengths of their own.
        repeated: whether there are lists of them.
        length: bytes of a value, where the file tells them.

    """

    path: tuple[str, ...]
    texts: bool
    repeated: bool
    length: int


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


class Footer:
    """The metadata at the end of a file.

    Args:
        file: open.

    ``leaves`` are the columns without columns within, ``groups`` what is known of each of them in every row group, and
    ``rows`` how many rows the file tells of.

    Raises:
        ValueError: it is broken or too long, or its columns are nested too deeply.

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
            told = Compact(file.read(length)).structure(FILE)
        except EOFError:
            raise ValueError(BROKEN) from None
        self.leaves = list(_leaves(told.get("schema", [])))
        groups = told.get("groups", [])
        self.rows = max(_count(told, "rows"), sum(_count(group, "rows") for group in groups))
        self.groups: list[list[dict[str, Any]]] = [
            [column.get("chunk", {}) for column in group.get("columns", [])] for group in groups
        ]
        if any(len(group) != len(self.leaves) for group in self.groups):
            raise ValueError(BROKEN)

    def largest(self, columns: Collection[str]) -> int:
        """Return how many bytes these columns take up at most when they are read.

        Texts that do not repeat are taken to be read as places in a dictionary.

        Raises:
            ValueError: a page is broken, or its values can have any length.

        """
        wanted = [n for n, leaf in enumerate(self.leaves) if leaf.path[0] in columns]
        return sum(self._largest(self.leaves[n], group[n]) for group in self.groups for n in wanted)

    def _largest(self, leaf: Leaf, chunk: dict[str, Any]) -> int:
        total = dictionary = 0
        for page in self.pages(chunk):
            if page.kind == DICTIONARY:
                dictionary = page.unpacked
            length = leaf.length
            if leaf.texts and leaf.repeated:
                if page.encoding == SHARED_PREFIXES:
                    raise ValueError(f"column {leaf.path[0]} holds lists of texts by what they share")
                length = dictionary if page.encoding in PLACES else 0
            total += page.unpacked + page.values * (WIDTH + length)
        return total

    def pages(self, chunk: dict[str, Any]) -> Iterator[Page]:
        """Yield the pages of a column in a row group, as far as pyarrow reads them."""
        values, packed, at = (_count(chunk, name) for name in ("values", "packed", "data"))
        if 0 < chunk.get("dictionary", 0) < at:
            at = chunk["dictionary"]
        end = at + packed
        while at < end and values > 0:
            page, length = self._page(at)
            at += length + page.packed
            values -= page.values
            yield page

    def _page(self, at: int) -> tuple[Page, int]:
        for most in HEADER:
            self._file.seek(at)
            compact = Compact(self._file.read(most))
            try:
                told = compact.structure(PAGE)
            except EOFError:
                continue
            kind, unpacked, packed = (_count(told, name) for name in ("kind", "unpacked", "packed"))
            if kind not in (DATA, SECOND):
                return Page(kind, unpacked, packed, 0, 0), compact.at
            data = told.get("first" if kind == DATA else "second", {})
            return Page(kind, unpacked, packed, _count(data, "values"), _count(data, "encoding")), compact.at
        raise ValueError("the header of a page is broken")


def _count(fields: dict[str, Any], name: str) -> int:
    count: int = fields.get(name, -1)
    if count < 0:
        raise ValueError(BROKEN)
    return count


def _leaves(elements: Sequence[dict[str, Any]]) -> Iterator[Leaf]:
    """Yield the columns of a schema: every element is followed by those within it, and the first holds all."""
    groups: list[tuple[str, bool]] = []  # that an element is in: their names, and whether there are lists of them
    left = [1]  # elements to come, in the file and in each of the groups
    for element in elements:
        while not left[-1]:
            left.pop()
            groups.pop()
            if not groups:
                raise ValueError(BROKEN)
        left[-1] -= 1
        name, children = element.get("name", ""), element.get("children", 0)
        repeated = bool(groups) and (groups[-1][1] or element.get("repetition") == REPEATED)
        if children > 0 or not groups:
            groups.append((name, repeated))
            left.append(children)
            if len(groups) > DEPTH:
                raise ValueError(f"its columns are nested more than {DEPTH} times")
        elif children < 0 or "type" not in element:
            raise ValueError(BROKEN)
        else:
            path = (*(group for group, _ in groups[1:]), name)
            yield Leaf(path, element["type"] == BYTES, repeated, max(0, element.get("length", 0)))
    if any(left):
        raise ValueError(BROKEN)

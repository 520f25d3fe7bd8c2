"""Structures in Thrift's compact protocol, in which the metadata of Parquet is written.

A parser that follows whatever is nested can be brought down by a few kilobytes, and a length of four bytes can ask for
gigabytes. This reader bounds how deeply structures are nested and how many entries all lists have together; it takes
texts only from bytes that are there. It returns the fields that its caller lists and skips all others exactly as
pyarrow skips them, since the two must agree about what a file contains.
"""

from collections.abc import Mapping
from typing import Any

ENTRIES = 2**19
"""Most entries of all lists together: enough for 20 000 row groups of three columns. Each takes memory and time."""
NESTING = 16
"""Most structures and lists within one another; the metadata of Parquet has eight."""

BROKEN = "its metadata is broken"

BYTE, DOUBLE, I16, I32, I64, TEXT, LIST, SET, STRUCTURE = 3, 7, 4, 5, 6, 8, 9, 10, 12
"""Types of values, as Thrift numbers them."""
TRUTHS = (1, 2)
"""The types *true* and *false*: in a structure they have no further bytes, and in a list one byte per value."""

Fields = Mapping[int, tuple[str, int, Any]]
"""The fields of a structure that are returned: number → name, type, and what it contains.

A structure contains fields, and a list contains either structures, given by their fields, or values of a type. Every
list that pyarrow reads must be given even if it is not used, because pyarrow reads its entries as the type that they
should have, whatever type the file states.
"""


class CompactReader:
    """Reads values in the compact protocol from ``content``; ``position`` is the number of bytes read so far."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._entries = 0
        self.position = 0

    def structure(self, fields: Fields | None, depth: int = 0) -> dict[str, Any]:
        """Return, by name, the values of those ``fields`` that the next structure contains with the right type.

        Raises:
            ValueError: if the structure is broken, or exceeds a limit.
            EOFError: if the structure does not end within the content.

        """
        values: dict[str, Any] = {}
        field = 0
        while head := self._byte():
            field = field + (head >> 4) if head >> 4 else self._signed(2)
            if not 0 <= field < 2**15:
                raise ValueError(BROKEN)
            name, kind, contains = (fields or {}).get(field, ("", 0, None))
            is_wanted = kind == head & 15
            value = self._value(head & 15, contains if is_wanted else None, depth)
            if is_wanted:
                values[name] = value
        return values

    def _value(self, kind: int, contains: Any, depth: int) -> Any:
        """Return a number, a text, a structure or a list of structures; return None for any other value."""
        if depth > NESTING:
            raise ValueError(BROKEN)
        if kind in (I16, I32, I64):
            return self._signed({I16: 2, I32: 4, I64: 8}[kind])
        if kind == TEXT:
            return self._bytes(self._unsigned()).decode("utf-8", "replace")
        if kind == STRUCTURE:
            return self.structure(contains, depth + 1)
        if kind in (LIST, SET):
            return self._list(contains, depth + 1)
        if kind in (BYTE, DOUBLE):
            self._bytes(1 if kind == BYTE else 8)
        elif kind not in TRUTHS:
            raise ValueError(BROKEN)
        return None

    def _list(self, contains: Fields | int | None, depth: int) -> list[dict[str, Any]]:
        """Return the structures of a list; an empty list if it contains anything else."""
        head = self._byte()
        count, kind = head >> 4 if head >> 4 < 15 else self._unsigned(), head & 15
        fields = None if isinstance(contains, int) else contains
        self._entries += count
        if self._entries > ENTRIES:
            raise ValueError(f"its metadata lists more than {ENTRIES:,} things")
        if count and contains is not None and kind != (contains if isinstance(contains, int) else STRUCTURE):
            raise ValueError(BROKEN)
        structures = []
        for _ in range(count):
            value = self._value(BYTE if kind in TRUTHS else kind, fields, depth)
            if fields is not None:  # else the value is dropped at once, to save memory
                structures.append(value)
        return structures

    def _byte(self) -> int:
        return self._bytes(1)[0]

    def _bytes(self, count: int) -> bytes:
        part = self._content[self.position : self.position + count]
        if len(part) < count:
            raise EOFError
        self.position += count
        return part

    def _unsigned(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            part = self._byte()
            value |= (part & 127) << shift
            if part < 128:
                return value
        raise ValueError(BROKEN)

    def _signed(self, size: int) -> int:
        """Return a number of at most ``size`` bytes; a longer one is broken, and pyarrow would truncate it."""
        value = self._unsigned()
        if value >> 8 * size:
            raise ValueError(BROKEN)
        return value >> 1 ^ -(value & 1)

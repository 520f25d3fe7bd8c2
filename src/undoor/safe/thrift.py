"""Structures in the compact protocol of Thrift, in which the metadata of Parquet is written.

Only what is known of a structure is returned. All else is passed over, in bounded time, as pyarrow passes it over.
"""

from collections.abc import Mapping
from typing import Any

ENTRIES = 2**19
"""Of all lists in one structure: those of 20 000 row groups of three columns. Every one takes memory and time."""

WITHIN = 16
"""Structures and lists within one another: the metadata has eight."""

BROKEN = "its metadata is broken"

I32, I64, TEXT, LIST, STRUCTURE = 5, 6, 8, 9, 12
"""Kinds of values, as Thrift numbers them."""

Known = Mapping[int, tuple[str, int, Any]]
"""Of a structure: field → name, kind, and what is known of what is within: fields, or the kind of a list's values.

Every list that pyarrow knows is to be listed, though it is passed over: pyarrow reads its values as what they are to
be, whatever the file calls them.
"""


class Compact:
    """Values in the compact protocol of Thrift.

    Args:
        content: what is read, from the beginning.

    """

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._entries = 0
        self.at = 0

    def structure(self, known: Known | None, depth: int = 0) -> dict[str, Any]:
        """Return the values of a structure, by their names: those that are known and of the kind that they are to be.

        Raises:
            ValueError: it is broken.
            EOFError: it goes on behind what is there.

        """
        fields: dict[str, Any] = {}
        field = 0
        while head := self._byte():
            field = field + (head >> 4) if head >> 4 else self._signed(2)
            if not 0 <= field < 2**15:
                raise ValueError(BROKEN)
            name, kind, within = (known or {}).get(field, ("", 0, None))
            value = self._value(head & 15, within if kind == head & 15 else None, depth)
            if kind == head & 15:
                fields[name] = value
        return fields

    def _value(self, kind: int, known: Any, depth: int) -> Any:
        """Return a number, a text, a structure or a list of structures; anything else is passed over."""
        if depth > WITHIN:
            raise ValueError(BROKEN)
        if kind in (4, I32, I64):
            return self._signed({4: 2, I32: 4, I64: 8}[kind])
        if kind == TEXT:
            return self._bytes(self._unsigned()).decode("utf-8", "replace")
        if kind == STRUCTURE:
            return self.structure(known, depth + 1)
        if kind in (LIST, 10):
            return self._list(known, depth + 1)
        if kind in (3, 7):
            self._bytes(1 if kind == 3 else 8)
        elif kind not in (1, 2):  # truths, which their kind tells
            raise ValueError(BROKEN)
        return None

    def _list(self, known: Known | int | None, depth: int) -> list[dict[str, Any]]:
        head = self._byte()
        count, kind = head >> 4 if head >> 4 < 15 else self._unsigned(), head & 15
        fields = None if isinstance(known, int) else known
        wanted = known if isinstance(known, int) else STRUCTURE
        self._entries += count
        if self._entries > ENTRIES:
            raise ValueError(f"its metadata lists more than {ENTRIES:,} things")
        if count and known is not None and kind != wanted:
            raise ValueError(BROKEN)
        values = []
        for _ in range(count):
            value = self._value(3 if kind in (1, 2) else kind, fields, depth)  # in a list a truth takes a byte
            if fields is not None:
                values.append(value)
        return values

    def _byte(self) -> int:
        return self._bytes(1)[0]

    def _bytes(self, count: int) -> bytes:
        part = self._content[self.at : self.at + count]
        if len(part) < count:
            raise EOFError
        self.at += count
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
        """Return a number of so many bytes; pyarrow would cut a longer one short."""
        value = self._unsigned()
        if value >> 8 * size:
            raise ValueError(BROKEN)
        return value >> 1 ^ -(value & 1)

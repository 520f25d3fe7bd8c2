"""What is read of files that somebody else may have made: regular files only, and no more than the limits named here.

The limits of a single reader stand in its own file. What is refused is told by a ``ValueError`` with a short reason,
to which the reader adds the file's name and what to do.
"""

import json
import lzma
import os
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from undoor.errors import UndoorError

JSON_BYTES = 2**24
"""Bytes of a file of plain values: a thousand times a usual one; what Python makes of it takes twenty times as much."""

EXPANSION = 100
"""Times that what is packed may grow: images shrink to a tenth at best, a bomb to a thousandth."""

FREE = 2**26
"""Bytes that anything may grow to: small sets of empty images shrink like bombs, and harm nobody."""

CLASSES = 100_000
"""Classes of a data set: five times those of ImageNet-21k. A single label of 10⁹ would ask for as many names."""

NAME = 500
"""Characters of a class's name or an image's id: a table of names has room for the longest in every row."""

UNPACKING = (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, struct.error, zlib.error, lzma.LZMAError)
"""What zipfile raises on broken archives, besides ``OSError`` and ``ValueError``."""

_BIDI = {"\u061c", "\u200e", "\u200f", *map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))}


def memory() -> int:
    """Return the bytes that one file may take up: half of the machine's memory."""
    if not hasattr(os, "sysconf"):
        return 2**33
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def require_file(path: Path, most: int | None = None) -> int:
    """Return the bytes of a regular file; a pipe or a device could keep its reader waiting for ever.

    Raises:
        ValueError: it is none, or has more than ``most`` bytes, by default ``memory()``.
        OSError: it is not there.

    """
    known = path.stat()
    if not stat.S_ISREG(known.st_mode):
        raise ValueError("it is no regular file")
    most = memory() if most is None else most
    if known.st_size > most:
        raise ValueError(f"it has {known.st_size:,} bytes, more than the {most:,} that are read")
    return known.st_size


def read_bytes(path: Path, most: int) -> bytes:
    """Return the content of a regular file of up to ``most`` bytes; raises as ``require_file`` does."""
    require_file(path, most)
    with path.open("rb") as file:
        content = file.read(most + 1)  # of some files the system tells no size
    if len(content) > most:
        raise ValueError(f"it has more than the {most:,} bytes that are read")
    return content


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; raises ``ValueError`` or ``OSError``."""
    return parse_json(read_bytes(path, JSON_BYTES))


def parse_json(text: str | bytes) -> dict[str, Any]:
    """Return the JSON object that ``text`` holds.

    Raises:
        ValueError: it is none, or too long or nested too deeply.

    """
    if len(text) > JSON_BYTES:
        raise ValueError(f"it has more than the {JSON_BYTES:,} bytes that are read")
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object")
    return content


def require_growth(packed: int, unpacked: int) -> None:
    """Raise ``ValueError`` if so many bytes would grow to so many that they are a bomb, or more than the memory."""
    if unpacked > max(FREE, min(EXPANSION * packed, memory())):
        raise ValueError(f"it would grow from {packed:,} bytes to {unpacked:,}, more than undoor unpacks")


def require_names(names: Iterable[str], kind: str, *, most: int | None = None) -> None:
    """Raise ``UndoorError`` unless these are texts that can be shown anywhere and stand in a line of their own.

    Args:
        names: of classes or images.
        kind: what they are, such as "class name".
        most: how many there may be.

    """
    for number, name in enumerate(names, start=1):
        if most is not None and number > most:
            raise UndoorError(f"there are more than {most:,} {kind}s; give a set with fewer")
        if not isinstance(name, str):
            raise UndoorError(f"the {kind} {str(name)[:40]!r} is no text; give texts")
        if len(name) > NAME:
            raise UndoorError(f"the {kind} {name[:40]!r}… has {len(name):,} characters; give it up to {NAME}")
        if not name.isprintable() and any(map(_disturbs, name)):
            raise UndoorError(f"the {kind} {name!r} holds a control character; rename it")


def _disturbs(character: str) -> bool:
    """Whether a character moves the cursor, ends the line, turns the direction around or cannot be written."""
    return character in _BIDI or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")

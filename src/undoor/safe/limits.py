"""Which files are read, how large they and their content may be, and which names they may contain.

- A pipe or a device could keep its reader waiting for ever: only regular files are opened.
- A compressed file can expand a thousandfold: its size when unpacked is bounded before it is unpacked.
- JSON can be so large or so deeply nested that parsing it fails: its size is bounded, and the failure is caught.
- Names of classes and images are shown in terminals and written into lists: they must be short and in one line.

These limits hold for all formats; the limits of a single format are in its module.
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
"""Largest JSON text. Files of undoor have a thousandth of it; the parsed values take about twenty times its memory."""
EXPANSION = 100
"""How many times its size a file may unpack to. Images shrink to a tenth at best, a bomb to a thousandth."""
ALWAYS_ALLOWED_BYTES = 2**26
"""Bytes that any file may unpack to: a small set of empty images expands as much as a bomb, but does no harm."""
CLASSES = 100_000
"""Largest number of classes: five times those of ImageNet-21k. A single label of 10⁹ would require 10⁹ names."""
NAME_CHARACTERS = 500
"""Longest name of a class or id of an image, in characters: an array of names reserves the longest for each row."""

UNPACKING = (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, struct.error, zlib.error, lzma.LZMAError)
"""What ``zipfile`` raises on broken archives, besides ``OSError`` and ``ValueError``."""

_BIDIRECTIONAL = {"\u061c", "\u200e", "\u200f", *map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))}
"""Characters that change the direction of writing, and can make a name look like another."""


def memory_limit() -> int:
    """Return the bytes that one file may occupy in memory: half of the machine's memory."""
    if not hasattr(os, "sysconf"):
        return 2**33
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def require_file(path: Path, most: int | None = None) -> int:
    """Return the size in bytes of a regular file; raise ``OSError`` if the file does not exist.

    Raise ``ValueError`` if it is not a regular file, or has more than ``most`` bytes, by default ``memory_limit()``.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is no regular file")
    most = memory_limit() if most is None else most
    if status.st_size > most:
        raise ValueError(f"it has {status.st_size:,} bytes, more than the {most:,} that are read")
    return status.st_size


def read_bytes(path: Path, most: int) -> bytes:
    """Return the content of a regular file of at most ``most`` bytes; raise the errors of ``require_file``."""
    require_file(path, most)
    with path.open("rb") as file:
        content = file.read(most + 1)  # for some files the system reports a size of 0
    if len(content) > most:
        raise ValueError(f"it has more than the {most:,} bytes that are read")
    return content


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; raise the errors of ``read_bytes`` and ``parse_json``."""
    return parse_json(read_bytes(path, JSON_BYTES))


def parse_json(text: str | bytes) -> dict[str, Any]:
    """Return the JSON object in a text; raise ``ValueError`` if it is no object, too long or nested too deeply."""
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
    """Raise ``ValueError`` if a file of ``packed`` bytes must not be unpacked to ``unpacked`` bytes."""
    if unpacked > max(ALWAYS_ALLOWED_BYTES, min(EXPANSION * packed, memory_limit())):
        raise ValueError(f"it would grow from {packed:,} bytes to {unpacked:,}, more than undoor unpacks")


def require_names(names: Iterable[str], kind: str, *, most: int | None = None) -> None:
    """Raise ``UndoorError`` unless all names are short texts that are safe to print in one line.

    There may be ``most`` names, by default any number. The message calls them ``kind``, such as "class name".
    """
    for number, name in enumerate(names, start=1):
        if most is not None and number > most:
            raise UndoorError(f"there are more than {most:,} {kind}s; give a set with fewer")
        if not isinstance(name, str):
            raise UndoorError(f"the {kind} {str(name)[:40]!r} is no text; give texts")
        if len(name) > NAME_CHARACTERS:
            raise UndoorError(
                f"the {kind} {name[:40]!r}… has {len(name):,} characters; give it up to {NAME_CHARACTERS}"
            )
        if not name.isprintable() and any(map(_disturbs, name)):
            raise UndoorError(f"the {kind} {name!r} holds a control character; rename it")


def _disturbs(character: str) -> bool:
    """Return whether a character controls a terminal, ends a line, changes the direction or cannot be encoded."""
    return character in _BIDIRECTIONAL or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")

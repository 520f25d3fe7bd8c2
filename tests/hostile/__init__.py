"""Files that an attacker could hand over. Each case makes its file when it is needed, and says how undoor must end."""

import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SCAN = ("--model", "model.safetensors", "--out", "out", "--exit-zero")
"""The options of a scan with the good network."""


@dataclass(frozen=True)
class Case:
    """One hostile file.

    Args:
        make: writes the file into a folder with the good files of ``test_hostile.base``, and returns the arguments of
            the command that reads it.
        message: a part of the line of the error, or of a note if ``ends`` is "skip".
        ends: "error"; "skip" if the file is left out with a note; "well" if it is harmless.
        check: checks the folder afterwards.

    """

    make: Callable[[Path], tuple[str, ...]]
    message: str = ""
    ends: str = "error"
    check: Callable[[Path], None] = lambda _: None


CASES: dict[str, Case] = {}


def add(name: str, case: Case) -> None:
    assert name not in CASES, name
    CASES[name] = case


def case(message: str, **fields):
    """Return a decorator that adds a function as a case; the name of the case is that of the function, with spaces."""

    def decorate(make: Callable[[Path], tuple[str, ...]]):
        add(make.__name__.replace("_", " ").strip(), Case(make, message, **fields))
        return make

    return decorate


class Marker:
    """An object that writes the file ``marker`` into the working folder when Python unpickles it."""

    def __reduce__(self):
        return os.system, ("echo ran > marker",)


RUNS_CODE = pickle.dumps(Marker())


def pipe(path: Path) -> None:
    """Put a pipe in the place of a file; whoever opens it waits for ever."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def sparse(path: Path, size: int = 2**40) -> None:
    """Write a file of zeros that takes no space on the disk; by default a terabyte."""
    with path.open("wb") as file:
        file.truncate(size)


def flipped(content: bytes, position: int) -> bytes:
    """Return the bytes with one bit flipped."""
    changed = bytearray(content)
    changed[position] ^= 0x10
    return bytes(changed)


def emptied(folder: Path) -> Path:
    """Remove everything from a folder and return it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder

"""Files that an attacker might hand over, made when they are needed; each has a name and what is to be told of it."""

import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SCAN = ("--model", "model.safetensors", "--out", "out", "--exit-zero")


@dataclass(frozen=True)
class Case:
    """One hostile file.

    Args:
        make: lays it into a folder that holds the good files of ``test_hostile.base``, and returns the arguments of
            the command that meets it.
        told: a part of the one line that the command must tell: of its error, or of the note where ``ends`` is "skip".
        ends: "error"; "skip" if the file is left out with a note; "well" if it is harmless.
        check: is given the folder afterwards.

    """

    make: Callable[[Path], tuple[str, ...]]
    told: str = ""
    ends: str = "error"
    check: Callable[[Path], None] = lambda _: None


CASES: dict[str, Case] = {}


def add(name: str, case: Case) -> None:
    assert name not in CASES, name
    CASES[name] = case


def case(told: str, **more):
    """Return a decorator that adds a function as a case; its name, with spaces, is the case's."""

    def added(make: Callable[[Path], tuple[str, ...]]):
        add(make.__name__.replace("_", " ").strip(), Case(make, told, **more))
        return make

    return added


class Marker:
    """Unpickled by pickle itself, it writes the file ``marker`` into the working folder."""

    def __reduce__(self):
        return os.system, ("echo ran > marker",)


RUNS_CODE = pickle.dumps(Marker())


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def sparse(path: Path, size: int = 2**40) -> None:
    with path.open("wb") as file:
        file.truncate(size)


def flipped(content: bytes, place: int) -> bytes:
    """Return the bytes with one bit turned over."""
    changed = bytearray(content)
    changed[place] ^= 0x10
    return bytes(changed)


def emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder

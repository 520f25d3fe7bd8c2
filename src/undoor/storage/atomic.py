"""Files that are either whole or not there."""

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from undoor.errors import UndoorError, first_line


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tell in one line why ``path`` could not be written."""
    try:
        yield
    except OSError as error:
        why = error.strerror or first_line(error)
        raise UndoorError(f"cannot write {path}: {why}; free space there or choose another --out") from error


def _unfinished(path: Path) -> Path:
    """Return a name beside ``path`` for what is to become it, by which ``undoor.storage.lock`` knows leftovers."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")


def _settle(file: Path) -> None:
    """Bring what is in a file to the disk: after a loss of power a new name must not stand for bytes never written."""
    descriptor = os.open(file, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; rename it to ``path`` on success, remove it on failure.

    A reader therefore never meets a half-written file, whenever the writer is killed.
    """
    temporary = _unfinished(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            _settle(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside ``path``; rename it to ``path`` on success, remove it on failure.

    ``path`` must be free.
    """
    if path.exists():
        raise UndoorError(f"{path} exists already; choose another --out")
    temporary = _unfinished(path)
    with writing(path):
        temporary.mkdir(parents=True)
        try:
            yield temporary
            if hasattr(os, "sync"):
                os.sync()  # there may be a million files
            temporary.rename(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def staged(folder: Path, *, last: str, stale: Iterable[Path] = ()) -> Iterator[Path]:
    """Yield an empty folder within ``folder``; on success its files move up, replacing those of the same name.

    A failure on the way leaves ``folder`` as it was. All that is replaced is taken away first, the file named ``last``
    before the others, and comes back last. Whoever finds it finds all the others, and all of one kind; and whenever the
    writer is killed, no old file lies beside a new one.

    Args:
        folder: made if it is not there.
        last: the name of one of the files.
        stale: files of earlier runs that have no successor, and go too.

    """
    existed = folder.exists()
    temporary = _unfinished(folder / last)
    with writing(folder):
        temporary.mkdir(parents=True)
        done = False
        try:
            yield temporary
            new = sorted(temporary.iterdir(), key=lambda file: file.name == last)
            for file in new:
                _settle(file)
            for old in (*(folder / file.name for file in reversed(new)), *stale):
                old.unlink(missing_ok=True)
            for file in new:
                file.replace(folder / file.name)
            done = True
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            if not done and not existed:
                folder.rmdir()


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 to ``path``, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")

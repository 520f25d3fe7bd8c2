"""Files and folders that are written whole or not at all.

What is written gets a temporary name beside its destination, and is renamed when its bytes have reached the disk. A
reader therefore never finds half a file, even if the process is killed or the power fails.
"""

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from undoor.errors import UndoorError, first_line


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path`` for a file; rename it to ``path`` on success, remove it on failure."""
    temporary = _temporary_name(path)
    with reported_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            _flush(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside ``path``; rename it to ``path`` on success, remove it on failure.

    Raises:
        UndoorError: if ``path`` exists, or cannot be written.

    """
    if path.exists():
        raise UndoorError(f"{path} exists already; choose another --out")
    temporary = _temporary_name(path)
    with reported_write_errors(path):
        temporary.mkdir(parents=True)
        try:
            yield temporary
            if hasattr(os, "sync"):
                os.sync()  # all at once, because there may be a million files
            temporary.rename(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def staged(folder: Path, *, last: str, stale: Iterable[Path] = ()) -> Iterator[Path]:
    """Yield an empty folder within ``folder``; on success its files move up, and replace those of the same name.

    A failure before that leaves ``folder`` as it was. The file named ``last`` shows that the files are complete: it is
    removed before any other file is replaced, and moves up after all others. A reader that finds it therefore finds all
    files, and all of the same run. Old files are never beside new ones, even if the process is killed.

    Args:
        folder: the folder; it is created if it does not exist.
        last: the name of one of the files.
        stale: files of earlier runs that no new file replaces; they are removed too.

    """
    existed = folder.exists()
    temporary = _temporary_name(folder / last)
    with reported_write_errors(folder):
        temporary.mkdir(parents=True)
        is_done = False
        try:
            yield temporary
            files = sorted(temporary.iterdir(), key=lambda file: file.name == last)
            for file in files:
                _flush(file)
            for old in (*(folder / file.name for file in reversed(files)), *stale):
                old.unlink(missing_ok=True)
            for file in files:
                file.replace(folder / file.name)
            is_done = True
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            if not is_done and not existed:
                folder.rmdir()


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 to ``path``, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def reported_write_errors(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` into an ``UndoorError`` that says why ``path`` cannot be written."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise UndoorError(f"cannot write {path}: {reason}; free space there or choose another --out") from error


def _temporary_name(path: Path) -> Path:
    """Return a name beside ``path`` that ``undoor.storage.lock`` recognises as a leftover of a killed run."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")


def _flush(file: Path) -> None:
    """Write a file to the disk: without that, a file that is renamed could lack bytes after a loss of power."""
    descriptor = os.open(file, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

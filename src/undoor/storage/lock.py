"""One run at a time on an output, and nothing left of those that were killed."""

import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from undoor.errors import UndoorError, UndoorNotice
from undoor.storage.atomic import writing

try:
    import fcntl
except ImportError:  # a system without POSIX locks
    fcntl = None  # type: ignore[assignment]

LEFTOVER = re.compile(r"\.(.+)\.[0-9a-f]{8}\.part")
"""The temporary names of ``undoor.storage.atomic``, with the name they are for."""


@contextmanager
def claimed(out: Path | None) -> Iterator[None]:
    """Keep other runs off ``out``, a file or a folder, and remove what a killed one left half-written there.

    The system's lock on an empty hidden file beside ``out`` (within it, where it is a mount point or nothing can be
    written beside it) ends with this process, however that ends. What a killed run leaves is the empty file, which the
    next one takes over and removes.

    Raises:
        UndoorError: if another run has claimed ``out``, in this process or another, or nothing can be written there.

    """
    if out is None or fcntl is None:
        yield
        return
    out = out.resolve() if out.is_dir() else out.parent.resolve() / out.name
    made = [folder for folder in out.parents if not folder.exists()]
    with writing(out):
        descriptor, file = _locked(out)
    try:
        _sweep(out)
        yield
    finally:
        with suppress(OSError):
            file.unlink()  # while it is locked: who has opened it meanwhile sees that it is gone, and makes a new one
        os.close(descriptor)
        for folder in made:
            with suppress(OSError):
                folder.rmdir()  # which fails if it holds a result


def _locked(out: Path) -> tuple[int, Path]:
    """Return the descriptor of the locked file, which ends the lock when it is closed, and the file's path."""
    while True:
        within = out.is_dir() and (out.is_mount() or not os.access(out.parent, os.W_OK))
        file = out / ".lock" if within else out.parent / f".{out.name}.lock"
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:  # another run has just removed the folder that it had made
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise UndoorError(f"another run is writing {out}; wait for it or choose another --out") from error
        except OSError:
            warnings.warn(
                f"{file.parent} lies where files cannot be locked; see that no other run writes there",
                UndoorNotice,
                stacklevel=4,
            )
            return descriptor, file
        with suppress(FileNotFoundError):
            if os.path.samestat(file.stat(), os.fstat(descriptor)):
                return descriptor, file
        os.close(descriptor)  # its owner removed it between our opening and locking it


def _sweep(out: Path) -> None:
    """Remove the leftovers of killed runs on ``out``; a folder in which another run has a lock is left alone."""
    names = {out.name, f"{out.stem}.checkpoint"}
    _remove(path for path, name in _leftovers(out.parent) if name in names)
    if not out.is_dir() or any(out.glob(".*.lock")):
        return
    folders = [path for path in out.glob("*/") if not path.is_symlink()]
    folders += [path for folder in folders for path in folder.glob("*/") if not path.is_symlink()]
    for folder in (out, *folders):
        if folder == out or not any(file.name.endswith(".lock") for file in folder.glob(".*")):
            _remove(path for path, _ in _leftovers(folder))


def _leftovers(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield what half-written outputs lie in a folder, with the name that each was to have."""
    for path in folder.glob(".*.part"):
        match = LEFTOVER.fullmatch(path.name)
        if match is not None:
            yield path, match[1]


def _remove(paths: Iterator[Path]) -> None:
    for path in list(paths):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()

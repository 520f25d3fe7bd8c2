"""Locks on outputs, so that two runs do not write to the same one, and removal of what killed runs left behind."""

import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from undoor.errors import UndoorError, UndoorNotice
from undoor.storage.atomic import reported_write_errors

try:
    import fcntl
except ImportError:  # a system without POSIX locks
    fcntl = None  # type: ignore[assignment]

LEFTOVER = re.compile(r"\.(.+)\.[0-9a-f]{8}\.part")
"""The temporary names of ``undoor.storage.atomic``; the group is the name of the output."""


@contextmanager
def claimed(out: Path | None) -> Iterator[None]:
    """Keep other runs off ``out``, a file or a folder, and remove what killed runs left half-written there.

    The operating system locks an empty hidden file beside ``out``, and releases the lock when this process ends, for
    whatever reason. If ``out`` is a mount point, or nothing can be written beside it, the file is within ``out``. A
    killed run leaves the empty file, but no lock; the next run takes the file over and removes it.

    Raises:
        UndoorError: if another run, in this process or another, has claimed ``out``, or nothing can be written there.

    """
    if out is None or fcntl is None:
        yield
        return
    out = out.resolve() if out.is_dir() else out.parent.resolve() / out.name
    created = [folder for folder in out.parents if not folder.exists()]
    with reported_write_errors(out):
        descriptor, file = _lock(out)
    try:
        _remove_leftovers(out)
        yield
    finally:
        # The file is removed while it is locked: a run that has opened it in the meantime then sees that it is gone.
        with suppress(OSError):
            file.unlink()
        os.close(descriptor)
        for folder in created:
            with suppress(OSError):  # the folder contains a result
                folder.rmdir()


def _lock(out: Path) -> tuple[int, Path]:
    """Return the descriptor of the locked file, whose closing releases the lock, and the path of the file."""
    while True:
        is_within = out.is_dir() and (out.is_mount() or not os.access(out.parent, os.W_OK))
        file = out / ".lock" if is_within else out.parent / f".{out.name}.lock"
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:  # another run has just removed the folder that it had created
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise UndoorError(f"another run is writing {out}; wait for it or choose another --out") from error
        except OSError:
            message = f"{file.parent} does not support locks; make sure that no other run writes there"
            warnings.warn(message, UndoorNotice, stacklevel=4)
            return descriptor, file
        with suppress(FileNotFoundError):
            if os.path.samestat(file.stat(), os.fstat(descriptor)):
                return descriptor, file
        os.close(descriptor)  # its owner removed the file after we had opened it and before we locked it


def _remove_leftovers(out: Path) -> None:
    """Remove the leftovers of killed runs on ``out``, except in folders in which another run has a lock."""
    names = {out.name, f"{out.stem}.checkpoint"}
    leftovers = [path for path, name in _leftovers(out.parent).items() if name in names]
    if out.is_dir() and not any(out.glob(".*.lock")):  # the pattern does not match ".lock", the lock of this run
        leftovers += _leftovers(out)
        folders = [path for path in out.glob("*/") if not path.is_symlink()]
        folders += [path for folder in folders for path in folder.glob("*/") if not path.is_symlink()]
        for folder in folders:
            if not any(file.name.endswith(".lock") for file in folder.glob(".*")):
                leftovers += _leftovers(folder)
    for path in leftovers:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


def _leftovers(folder: Path) -> dict[Path, str]:
    """Return the half-written outputs in a folder, and the name of the output that each was to become."""
    return {path: match[1] for path in folder.glob(".*.part") if (match := LEFTOVER.fullmatch(path.name))}

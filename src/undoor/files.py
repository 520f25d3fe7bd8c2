"""Files that are either whole or not there."""

import secrets
import shutil
from collections.abc import Iterator
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


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; rename it to ``path`` on success, remove it on failure.

    A reader therefore never meets a half-written file, whenever the writer is killed.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
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
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    with writing(path):
        temporary.mkdir(parents=True)
        try:
            yield temporary
            temporary.rename(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def staged(folder: Path, *, last: str) -> Iterator[Path]:
    """Yield an empty folder within ``folder``; on success its files move up, replacing those of the same name.

    A failure on the way leaves ``folder`` as it was. The file named ``last`` is taken away first and comes
    last: whoever finds it finds all the others, and all of one kind.
    """
    existed = folder.exists()
    temporary = folder / f".{secrets.token_hex(4)}.part"
    with writing(folder):
        temporary.mkdir(parents=True)
        done = False
        try:
            yield temporary
            (folder / last).unlink(missing_ok=True)
            for file in sorted(temporary.iterdir(), key=lambda file: file.name == last):
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

"""A folder with a sub-folder per class."""

import os
import stat
from pathlib import Path

from PIL import Image

from undoor.data.dataset import Dataset
from undoor.data.readers.images import decode_dataset
from undoor.data.readers.options import ReadOptions
from undoor.errors import UndoorError
from undoor.safe.images import IMAGE_BYTES
from undoor.safe.limits import read_bytes, require_names

SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"}

DEPTH = 16
"""Folders within one another, below a class."""


def accepts(path: Path) -> bool:
    """Whether ``path`` is a folder."""
    return path.is_dir()


def read(path: Path, options: ReadOptions) -> Dataset:
    """Read every image below each sub-folder; the sub-folders are the classes, in alphabetical order."""
    classes, files = listed(path)
    if not any(files):
        raise UndoorError(f"{path} holds no sub-folder with images; give a folder with a sub-folder per class")
    if {name.lower() for name in classes} <= SPLITS and not any(
        file.parent == path / name for name, found in zip(classes, files, strict=True) for file in found
    ):
        raise UndoorError(f"{path} holds splits, not classes; give one of them, such as {path / classes[0]}")
    paths = [file for found in files for file in found]
    labels = [label for label, found in enumerate(files) for _ in found]
    ids = [file.relative_to(path).as_posix() for file in paths]
    require_names(ids, "file name")
    root = path.resolve()
    return decode_dataset(lambda row: load(paths[row], root), labels, classes, ids, options)


def listed(path: Path) -> tuple[list[str], list[list[Path]]]:
    """Return the names of the classes and the paths of the images of each, in alphabetical order.

    What is called like an image is listed even if it is none, so that somebody is told of it.
    """
    classes = sorted(p for p in path.iterdir() if not p.name.startswith(".") and p.is_dir())
    return [folder.name for folder in classes], [_below(folder) for folder in classes]


def load(file: Path, root: Path) -> bytes:
    """Return the content of an image of the set in ``root``; raises as ``require_own`` and ``read_bytes`` do."""
    require_own(file, root)
    return read_bytes(file, IMAGE_BYTES)


def require_own(file: Path, root: Path) -> None:
    """Raise ``ValueError`` if a file is a link that leads out of ``root``, a folder without links on the way to it.

    A set that comes from elsewhere must not take in what else lies on this machine.
    """
    if stat.S_ISLNK(file.lstat().st_mode) and not file.resolve().is_relative_to(root):
        raise ValueError("a link that leads out of the folder")


def _below(folder: Path) -> list[Path]:
    extensions = set(Image.registered_extensions())
    found, waiting = [], [(folder, 0)]
    while waiting:
        place, depth = waiting.pop()
        if place.is_symlink():
            raise UndoorError(f"{place} is a link to a folder; put the folder itself there")
        if depth > DEPTH:
            raise UndoorError(f"{folder} holds folders more than {DEPTH} deep within one another; flatten them")
        with os.scandir(place) as entries:
            for entry in entries:
                if _is_folder(entry):
                    waiting.append((place / entry.name, depth + 1))
                elif Path(entry.name).suffix.lower() in extensions:
                    found.append(place / entry.name)
    return sorted(found)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False

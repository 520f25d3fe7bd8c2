"""A folder with a sub-folder for each class.

A set that somebody else has made must not bring other files of this machine into the data set, or keep the reader
busy for ever. So links to folders and links that lead out of the set are refused, and so are deeply nested folders.
"""

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
"""Most folders within one another below the folder of a class."""


def accepts(path: Path) -> bool:
    """Return whether ``path`` is a folder."""
    return path.is_dir()


def read(path: Path, options: ReadOptions) -> Dataset:
    """Read every image below each sub-folder; the sub-folders are the classes, in alphabetical order."""
    classes, files_of_class = listed(path)
    if not any(files_of_class):
        raise UndoorError(f"{path} holds no sub-folder with images; give a folder with a sub-folder per class")
    files = [file for members in files_of_class for file in members]
    if {name.lower() for name in classes} <= SPLITS and not any(file.parent.parent == path for file in files):
        raise UndoorError(f"{path} holds splits, not classes; give one of them, such as {path / classes[0]}")
    labels = [label for label, members in enumerate(files_of_class) for _ in members]
    ids = [file.relative_to(path).as_posix() for file in files]
    require_names(ids, "file name")
    root = path.resolve()

    def load(row: int) -> bytes:
        require_own(files[row], root)
        return read_bytes(files[row], IMAGE_BYTES)

    return decode_dataset(load, labels, classes, ids, options)


def listed(path: Path) -> tuple[list[str], list[list[Path]]]:
    """Return the names of the classes, and for each class the paths of its images, in alphabetical order.

    Every file with the extension of an image is listed, even if it is broken, so that the user learns of it.
    """
    folders = sorted(entry for entry in path.iterdir() if not entry.name.startswith(".") and entry.is_dir())
    return [folder.name for folder in folders], [_images_below(folder) for folder in folders]


def require_own(file: Path, root: Path) -> None:
    """Raise ``ValueError`` if a file is a link that leads out of ``root``, an absolute path without links."""
    if stat.S_ISLNK(file.lstat().st_mode) and not file.resolve().is_relative_to(root):
        raise ValueError("a link that leads out of the folder")


def _images_below(folder: Path) -> list[Path]:
    extensions = set(Image.registered_extensions())
    images, waiting = [], [(folder, 0)]
    while waiting:
        parent, depth = waiting.pop()
        if parent.is_symlink():
            raise UndoorError(f"{parent} is a link to a folder; put the folder itself there")
        if depth > DEPTH:
            raise UndoorError(f"{folder} holds folders more than {DEPTH} deep within one another; flatten them")
        with os.scandir(parent) as entries:
            for entry in entries:
                if _is_folder(entry):
                    waiting.append((parent / entry.name, depth + 1))
                elif Path(entry.name).suffix.lower() in extensions:
                    images.append(parent / entry.name)
    return sorted(images)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False

"""A folder with a sub-folder per class."""

from pathlib import Path

from PIL import Image

from undoor.dataset import Dataset
from undoor.errors import UndoorError
from undoor.readers.images import decode_dataset
from undoor.readers.options import ReadOptions

SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"}


def accepts(path: Path) -> bool:
    """Whether ``path`` is a folder."""
    return path.is_dir()


def read(path: Path, options: ReadOptions) -> Dataset:
    """Read every image below each sub-folder; the sub-folders are the classes, in alphabetical order."""
    classes = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    extensions = set(Image.registered_extensions())
    files = [
        sorted(f for f in folder.rglob("*") if f.suffix.lower() in extensions and f.is_file()) for folder in classes
    ]
    if not any(files):
        raise UndoorError(f"{path} holds no sub-folder with images; give a folder with a sub-folder per class")
    if {folder.name.lower() for folder in classes} <= SPLITS and not any(
        file.parent == folder for folder, found in zip(classes, files, strict=True) for file in found
    ):
        raise UndoorError(f"{path} holds splits, not classes; give one of them, such as {classes[0]}")
    paths = [file for found in files for file in found]
    labels = [label for label, found in enumerate(files) for _ in found]
    ids = [file.relative_to(path).as_posix() for file in paths]
    for name in ids:
        if any(ord(character) < 32 for character in name):
            raise UndoorError(f"the file name {name!r} holds a control character; rename the file")
    return decode_dataset(
        lambda row: paths[row].read_bytes(), labels, [folder.name for folder in classes], ids, options
    )

"""Readers of labelled image sets: one module for each format."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from undoor.data.dataset import Dataset
from undoor.data.readers.options import ReadOptions
from undoor.errors import UndoorError


def read(
    source: str | Path,
    *,
    split: str = "train",
    image_column: str | None = None,
    label_column: str | None = None,
    image_size: int | None = None,
    skip_broken: bool = False,
    on_image: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Read a labelled image set.

    Grey images keep one channel if all images are grey. Images whose size differs from the most frequent one are
    resized to it, with a notice.

    >>> import undoor
    >>> data = undoor.read("digits", split="test")
    >>> data.images.shape, data.class_names[:3]
    ((2000, 1, 16, 16), ('0', '1', '2'))

    Args:
        source: a folder with a sub-folder per class; a Parquet file or a folder of them; a ``.npz`` with
            ``images`` and ``labels``; a CIFAR-10/100 batch file or the folder of them (python or binary);
            ``hub:NAME`` for a data set of the Hugging Face hub; or ``digits``, which comes with undoor.
        split: which part to read, if the source has several.
        image_column: the column of images in Parquet and hub data sets; by default the first that contains images.
        label_column: the column of labels in these; by default ``label``, ``labels``, ``fine_label`` or ``target``.
        image_size: height and width to which every image is resized.
        skip_broken: leave out images that cannot be decoded, with a notice that lists them, instead of raising.
        on_image: is called with the number of images that have been decoded and the number of all images.

    Raises:
        UndoorError: if the source does not exist, is in no known format, is broken or exceeds a limit.

    """
    options = ReadOptions(split, image_column, label_column, image_size, skip_broken, on_image)
    name = str(source)
    if name == "digits":
        from undoor.data.readers.digits import read_digits

        return read_digits(options)
    if name.startswith("hub:"):
        from undoor.data.readers.hub import read_hub

        return read_hub(name.removeprefix("hub:"), options)
    path = Path(source)
    dataset: Dataset = reader_of(path).read(path, options)
    return dataset


def reader_of(path: Path) -> Any:
    """Return the module that reads ``path``; raise ``UndoorError`` if there is none."""
    if not path.exists():
        raise UndoorError(
            f"{path} does not exist; give a folder, a file, 'digits' or 'hub:NAME' for a data set of the hub"
        )
    from undoor.data.readers import cifar, folder, npz, parquet

    for reader in (parquet, npz, cifar, folder):
        if reader.accepts(path):
            return reader
    raise UndoorError(
        f"{path} is no image set undoor can read; give a folder with a sub-folder per class, a .parquet or "
        ".npz file, or CIFAR batches"
    )

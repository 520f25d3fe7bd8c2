"""Arrays that are larger than the memory, or that become so when all of them is processed at once."""

import mmap
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from undoor.storage.atomic import reported_write_errors

VALUES_AT_ONCE = 2**25
"""Most values of images that are processed at once. A layer of ResNet-20 makes 2 GiB of this many."""


def images_at_once(shape: tuple[int, ...], most: int) -> int:
    """Return how many images of an array of this ``shape`` to process at once: ``most``, or fewer if they are large."""
    return min(most, max(1, VALUES_AT_ONCE // int(np.prod(shape[1:]))))


def mapped(shape: tuple[int, ...], dtype: DTypeLike, folder: Path | None = None) -> NDArray[Any]:
    """Return an array in a memory-mapped file without a name, in ``folder`` or among the temporary files.

    The space is reserved at once, so that a full disk is an ``UndoorError`` and not a crash when a page is written.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    with reported_write_errors(folder or Path(tempfile.gettempdir())), tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
        return np.memmap(file, dtype=dtype, shape=shape, mode="r+")


def release(array: NDArray[Any]) -> None:
    """Release the memory that a memory-mapped array occupies; its values stay in its file."""
    if isinstance(array, np.memmap) and array.mode != "c" and isinstance(array.base, mmap.mmap):
        array.base.madvise(mmap.MADV_DONTNEED)

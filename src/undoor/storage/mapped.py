"""Arrays that are larger than the memory, or become so when all of them is worked on at once."""

import mmap
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from undoor.storage.atomic import writing

AT_ONCE = 2**25
"""Values of images that are worked on at once, at most. Of so many a layer of ResNet-20 makes 2 GiB."""


def at_once(shape: tuple[int, ...], most: int) -> int:
    """Return how many images of an array of this ``shape`` are worked on at once: ``most``, or fewer large ones."""
    return min(most, max(1, AT_ONCE // int(np.prod(shape[1:]))))


def mapped(shape: tuple[int, ...], dtype: DTypeLike, folder: Path | None = None) -> NDArray[Any]:
    """Return an array in a memory-mapped file without a name, in ``folder`` or where temporary files are.

    Its room is reserved at once: a disk that is full is told here and not by a crash when a page is written.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    with writing(folder or Path(tempfile.gettempdir())), tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
        return np.memmap(file, dtype=dtype, shape=shape, mode="r+")


def release(array: NDArray[Any]) -> None:
    """Let go of the memory that a memory-mapped array takes up; what it holds stays in its file."""
    if isinstance(array, np.memmap) and array.mode != "c" and isinstance(array.base, mmap.mmap):
        array.base.madvise(mmap.MADV_DONTNEED)

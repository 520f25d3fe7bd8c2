"""A labelled image set, and the truth about it where somebody knows it."""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from undoor.errors import UndoorError
from undoor.storage.mapped import mapped

MEMORY_BUDGET = 2 * 2**30
"""Bytes of decoded images that are held in memory; a larger set lies in an unlinked temporary file."""


@dataclass(frozen=True, eq=False)
class Truth:
    """What only the experimenter knows: which samples are poisoned, and what they were before.

    Args:
        poisoned: (N,) bool.
        original_labels: (N,) int64, the label of the image each sample was made from.

    """

    poisoned: NDArray[np.bool_]
    original_labels: NDArray[np.int64]

    def take(self, rows: ArrayLike) -> "Truth":
        """Return the truth about the samples at ``rows``."""
        index = np.asarray(rows)
        return Truth(self.poisoned[index], self.original_labels[index])


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images with labels. No defence ever sees ``truth``; it only serves to count hits afterwards.

    Args:
        images: (N, C, H, W) uint8, C = 1 (grey) or 3 (RGB).
        labels: (N,) int64, each in 0 … K − 1.
        class_names: K names.
        ids: (N,) str, unique: the relative path of the image's file, else its row number.
        truth: what was planted, where it is known.

    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    ids: NDArray[np.str_]
    truth: Truth | None = None

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != np.uint8 or self.images.shape[1] not in (1, 3):
            raise UndoorError(
                f"images are {self.images.dtype} of shape {self.images.shape}; "
                "give uint8 of shape (N, 1 or 3, height, width)"
            )
        n = len(self.images)
        if n == 0:
            raise UndoorError("the data set holds no image; give a set with images")
        if self.labels.shape != (n,) or self.ids.shape != (n,):
            raise UndoorError(f"{n} images but {len(self.labels)} labels and {len(self.ids)} ids; give one each")
        wrong = np.flatnonzero((self.labels < 0) | (self.labels >= len(self.class_names)))
        if len(wrong):
            raise UndoorError(
                f"label {self.labels[wrong[0]]} of sample {self.ids[wrong[0]]} is outside 0 … "
                f"{len(self.class_names) - 1} ({len(wrong)} such labels); mend the labels or the class names"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: ArrayLike) -> "Dataset":
        """Return the samples at ``rows`` (indices or a mask), in that order."""
        index = np.asarray(rows)
        truth = None if self.truth is None else self.truth.take(index)
        return Dataset(self.images[index], self.labels[index], self.class_names, self.ids[index], truth)

    def require_classes(self) -> None:
        """Raise unless a classifier can be trained on this set: two classes present, none with one image."""
        sizes = np.bincount(self.labels, minlength=len(self.class_names))
        if (sizes > 0).sum() < 2:
            raise UndoorError(
                f"all {len(self)} images are of one class ({self.class_names[int(sizes.argmax())]}); "
                "give a set with two classes or more"
            )
        for name, size in zip(self.class_names, sizes, strict=True):
            if size == 1:
                raise UndoorError(f"class {name} has only one image; add images or remove the class")

    def fingerprint(self) -> str:
        """Return a hash of images, labels and class names (not of the ids or the truth)."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(repr((self.images.shape, self.class_names)).encode())
        digest.update(np.ascontiguousarray(self.labels).data)
        for start in range(0, len(self), 4096):
            digest.update(np.ascontiguousarray(self.images[start : start + 4096]).data)
        return digest.hexdigest()


def row_ids(n: int) -> NDArray[np.str_]:
    """Return the ids "0" … "n − 1" of samples that have no file of their own."""
    return np.arange(n).astype(np.str_)


def allocate_images(shape: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """Return room for ``shape`` images: in memory, or memory-mapped when it exceeds ``MEMORY_BUDGET``."""
    if int(np.prod(shape)) <= MEMORY_BUDGET:
        return np.empty(shape, dtype=np.uint8)
    return mapped(shape, np.uint8)

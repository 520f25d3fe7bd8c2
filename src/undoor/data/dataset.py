"""A labelled set of images, and the truth about its poisoning where that is known."""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from undoor.errors import UndoorError
from undoor.storage.mapped import mapped

MEMORY_BUDGET = 2 * 2**30
"""Bytes of decoded images that are held in memory; a larger set is mapped into memory from a temporary file."""


@dataclass(frozen=True, eq=False)
class Truth:
    """The truth of an experiment: which samples are poisoned, and what their labels were before.

    >>> import numpy as np, undoor
    >>> truth = undoor.Truth(poisoned=np.array([False, True]), original_labels=np.array([0, 1]))
    >>> truth.take([1]).poisoned
    array([ True])

    Args:
        poisoned: (N,) bool.
        original_labels: (N,) int64, the label of the image from which each sample was made.

    """

    poisoned: NDArray[np.bool_]
    original_labels: NDArray[np.int64]

    def take(self, rows: ArrayLike) -> "Truth":
        """Return the truth about the samples at ``rows``."""
        index = np.asarray(rows)
        return Truth(self.poisoned[index], self.original_labels[index])


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images. No defense uses ``truth``; it only serves to evaluate the findings afterwards.

    >>> import numpy as np, undoor
    >>> images, labels = np.zeros((4, 1, 8, 8), np.uint8), np.array([0, 0, 1, 1])
    >>> data = undoor.Dataset(images, labels, class_names=("cat", "dog"), ids=np.array(["a", "b", "c", "d"]))
    >>> len(data), data.take(data.labels == 1).ids.tolist()
    (4, ['c', 'd'])

    Args:
        images: (N, C, H, W) uint8, C = 1 (grey) or 3 (RGB).
        labels: (N,) int64, each in 0 … K − 1.
        class_names: the names of the K classes.
        ids: (N,) str, unique: the relative path of the file of an image, or else its row number.
        truth: the truth about the poisoning, where it is known.

    Raises:
        UndoorError: if a shape or type is wrong, there is no image, or a label has no class.

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
        """Raise ``UndoorError`` unless the set has images of two classes, and no class has a single image."""
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
    """Return the ids "0" … "n − 1" of samples that have no files."""
    return np.arange(n).astype(np.str_)


def allocate_images(shape: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """Return an uninitialised array of images: in memory, or memory-mapped if it exceeds ``MEMORY_BUDGET``."""
    if int(np.prod(shape)) <= MEMORY_BUDGET:
        return np.empty(shape, dtype=np.uint8)
    return mapped(shape, np.uint8)

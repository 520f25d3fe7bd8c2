"""Image sets whose images are arrays already."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from undoor.data.dataset import Dataset, row_ids
from undoor.data.readers.images import require_size
from undoor.data.readers.options import ReadOptions
from undoor.errors import UndoorError
from undoor.safe.limits import CLASSES, require_names


def dataset_from_arrays(
    images: NDArray[Any],
    labels: NDArray[Any],
    source: str,
    options: ReadOptions,
    class_names: Sequence[str] | None = None,
    ids: NDArray[np.str_] | None = None,
) -> Dataset:
    """Return the data set of (N, H, W), (N, H, W, C) or (N, C, H, W) uint8 images and (N,) integer labels.

    Raises:
        UndoorError: if shapes, types, sizes, labels, names or ids are invalid; the message names the ``source``.

    """
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise UndoorError(f"{source}: images are {images.dtype} of shape {images.shape}; give uint8, (N, H, W, C)")
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise UndoorError(f"{source}: labels are {labels.dtype} of shape {labels.shape}; give integers, (N,)")
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[3] in (1, 3) and images.shape[1] not in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    require_size(images.shape[2], images.shape[3], source)
    if options.image_size is not None:
        images = _resize(images, options.image_size)
    if ids is not None and len(np.unique(ids)) < len(ids):
        raise UndoorError(f"{source}: some ids occur more than once; give every image an id of its own")
    names = class_names or numbered_classes(labels, source)
    require_names(names, "class name", most=CLASSES)
    require_names(() if ids is None else ids.tolist(), "id")
    labels = labels.astype(np.int64)
    return Dataset(np.ascontiguousarray(images), labels, tuple(names), row_ids(len(labels)) if ids is None else ids)


def numbered_classes(labels: NDArray[Any], source: str) -> list[str]:
    """Return the names "0" … "K − 1" for classes without names, where K − 1 is the largest of the (N,) labels."""
    largest = int(labels.max(initial=0))
    if largest >= CLASSES:
        raise UndoorError(f"{source}: the largest label is {largest}; give labels from 0 to at most {CLASSES - 1}")
    return [str(k) for k in range(largest + 1)]


def _resize(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    def resize(channel: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.asarray(Image.fromarray(channel).resize((size, size), Image.Resampling.BILINEAR))

    return np.stack([np.stack([resize(channel) for channel in image]) for image in images])

"""Pictures inside the page: images, filtered images, what the filter changes, and thumbnails of many images."""

import base64
import io
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name the field uses
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from undoor.data.dataset import Dataset
from undoor.filters import Filter
from undoor.findings.notebook import png_uri
from undoor.safe.images import encode_png
from undoor.storage.mapped import images_at_once

LARGEST = 96
"""The longer side of a picture has at most this many pixels; larger images are shrunk."""

AMPLIFIED = 4
"""A difference is amplified this many times."""

AVERAGED = 500
"""At most this many images are averaged to show what the filter changes in them."""

THUMBNAIL = 32
"""The longer side of a thumbnail has at most this many pixels."""

THUMBNAIL_BYTES = 2_200_000
"""All thumbnails together have at most this many bytes."""


def sheet(dataset: Dataset, rows: NDArray[np.int64], image_filter: Filter) -> list[dict[str, Any]]:
    """Return the id of each of the ``rows``, and as data URIs its image, the filtered image and the difference."""
    images, change = _changed(dataset, rows, image_filter)
    filtered_images, differences = _shrunk(images + change), _grey(AMPLIFIED * _extremes(change))
    return [
        {
            "row": int(row),
            "id": str(dataset.ids[row]),
            "image": _uri(image),
            "filtered": _uri(filtered),
            "change": _uri(change),
        }
        for row, image, filtered, change in zip(rows, _shrunk(images), filtered_images, differences, strict=True)
    ]


def mean_change(
    dataset: Dataset, rows: NDArray[np.int64], others: NDArray[np.int64], image_filter: Filter
) -> dict[str, Any] | None:
    """Return what the filter changes on average in the images at ``rows`` and at ``others``, as pictures.

    Both are amplified alike. What the images show averages out; a trigger at the same place in all of them remains. It
    is None without others.
    """
    if not len(others):
        return None
    means = [
        _changed(dataset, evenly(group, AVERAGED), image_filter)[1].mean(0, keepdim=True) for group in (rows, others)
    ]
    times = 0.5 / max(float(mean.abs().max()) for mean in means) if any(mean.any() for mean in means) else 1.0
    of_rows, of_others = (_uri(_grey(_extremes(times * mean))[0]) for mean in means)
    return {"of_rows": of_rows, "of_others": of_others, "times": times}


def evenly(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Return at most this many of the ``rows``, evenly spaced."""
    chosen: NDArray[np.int64] = rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int)]
    return chosen


def encoded(images: NDArray[np.uint8]) -> list[bytes]:
    """Return (N, C, H, W) images as PNG; those larger than ``LARGEST`` are shrunk."""
    return [encode_png(image) for image in _shrunk(torch.from_numpy(np.asarray(images)).float() / 255)]


def _changed(dataset: Dataset, rows: NDArray[np.int64], image_filter: Filter) -> tuple[Tensor, Tensor]:
    """Return the images at ``rows`` and what the filter adds to them."""
    images = torch.from_numpy(np.asarray(dataset.images[rows])).float() / 255
    return images, image_filter(images) - images


def _size(height: int, width: int, largest: int = LARGEST) -> tuple[int, int]:
    factor = min(1.0, largest / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def _bytes(pixels: Tensor) -> NDArray[np.uint8]:
    array: NDArray[np.uint8] = (pixels * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    return array


def _shrunk(images: Tensor, largest: int = LARGEST) -> NDArray[np.uint8]:
    size = _size(images.shape[2], images.shape[3], largest)
    return _bytes(images if size == tuple(images.shape[2:]) else F.interpolate(images, size, mode="area"))


def _extremes(change: Tensor) -> Tensor:
    """Return a change in the size of a picture, such that a single changed pixel of a large image stays visible."""
    size = _size(change.shape[2], change.shape[3])
    more, less = (F.adaptive_max_pool2d(sign.clamp(min=0), size) for sign in (change, -change))
    return torch.where(more >= less, more, -less)


def _grey(change: Tensor) -> NDArray[np.uint8]:
    """Return a change as an image in which middle grey is no change."""
    return _bytes(change + 0.5)


def _uri(image: NDArray[np.uint8]) -> str:
    return png_uri(encode_png(image))


class Thumbnails(NamedTuple):
    """Thumbnails of the images at ``rows`` in one picture, ``columns`` beside each other, each of ``size`` (H, W)."""

    uri: str
    rows: NDArray[np.int64]
    columns: int
    size: tuple[int, int]


def thumbnails(dataset: Dataset, rows: NDArray[np.int64], budget: int = THUMBNAIL_BYTES) -> Thumbnails:
    """Return thumbnails of the ``rows``, or of as many of them, evenly spaced, as fit into ``budget`` bytes."""
    size = _size(dataset.images.shape[2], dataset.images.shape[3], THUMBNAIL)
    while True:
        columns = int(np.ceil(np.sqrt(len(rows))))
        content = _tiled(dataset, rows, columns, size)
        if len(content) <= budget or len(rows) < 2:
            break
        rows = evenly(rows, int(len(rows) * 0.95 * budget / len(content)))
    uri = "data:image/webp;base64," + base64.b64encode(content).decode("ascii")
    return Thumbnails(uri, rows, columns, size)


def _tiled(dataset: Dataset, rows: NDArray[np.int64], columns: int, size: tuple[int, int]) -> bytes:
    """Return one WebP picture with the thumbnails of the ``rows``."""
    height, width = size
    lines = -(-len(rows) // columns)
    tiles = np.zeros((dataset.images.shape[1], lines * height, columns * width), dtype=np.uint8)
    step = images_at_once(dataset.images.shape, 1000)
    for start in range(0, len(rows), step):
        images = torch.from_numpy(np.asarray(dataset.images[rows[start : start + step]])).float() / 255
        for k, image in enumerate(_shrunk(images, THUMBNAIL), start):
            y, x = k // columns * height, k % columns * width
            tiles[:, y : y + height, x : x + width] = image
    buffer = io.BytesIO()
    pixels = tiles[0] if len(tiles) == 1 else tiles.transpose(1, 2, 0)
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "WEBP", quality=70, method=2)
    return buffer.getvalue()

"""Pictures inside the page: images, their filtered twins, what the filter changed, and small ones of many."""

import base64
import io
from dataclasses import dataclass
from typing import Any

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
from undoor.storage.mapped import at_once

LARGEST = 96
"""Pixels of the longer side of a picture on a card; larger images are shown smaller."""

AMPLIFIED = 4
"""How many times a difference is amplified."""

TRACED = 500
"""Images whose differences are averaged."""

SMALL = 32
"""Pixels of the longer side of a small picture."""

SMALL_BYTES = 2_200_000
"""Of all small pictures together."""


def sheet(dataset: Dataset, rows: NDArray[np.int64], image_filter: Filter) -> list[dict[str, Any]]:
    """Return, for each of the ``rows``, its id and as data URIs the image, its twin and the difference amplified."""
    images, change = _changed(dataset, rows, image_filter)
    twins, differences = _shrunk(images + change), _grey(AMPLIFIED * _extremes(change))
    return [
        {"row": int(row), "id": str(dataset.ids[row]), "image": _png(image), "twin": _png(twin), "change": _png(change)}
        for row, image, twin, change in zip(rows, _shrunk(images), twins, differences, strict=True)
    ]


def trace(
    dataset: Dataset, rows: NDArray[np.int64], others: NDArray[np.int64], image_filter: Filter
) -> dict[str, Any] | None:
    """Return what the filter changes on average in the images at ``rows`` and at ``others``, amplified alike.

    What the images show levels out; a trigger that sits in the same place everywhere remains. None without others.
    """
    if not len(others):
        return None
    means = [_changed(dataset, evenly(each, TRACED), image_filter)[1].mean(0, keepdim=True) for each in (rows, others)]
    times = 0.5 / max(float(mean.abs().max()) for mean in means) if any(mean.any() for mean in means) else 1.0
    own, other = (_png(_grey(_extremes(times * mean))[0]) for mean in means)
    return {"own": own, "other": other, "times": times}


def evenly(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Return at most so many of the ``rows``, evenly spaced."""
    chosen: NDArray[np.int64] = rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int)]
    return chosen


def encoded(images: NDArray[np.uint8]) -> list[bytes]:
    """Return (N, C, H, W) images as PNG, those larger than ``LARGEST`` shown smaller."""
    return [encode_png(image) for image in _shrunk(torch.from_numpy(np.asarray(images)).float() / 255)]


def _changed(dataset: Dataset, rows: NDArray[np.int64], image_filter: Filter) -> tuple[Tensor, Tensor]:
    images = torch.from_numpy(np.asarray(dataset.images[rows])).float() / 255
    return images, image_filter(images) - images


def _size(height: int, width: int, largest: int = LARGEST) -> tuple[int, int]:
    factor = min(1.0, largest / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def _shrunk(images: Tensor, largest: int = LARGEST) -> NDArray[np.uint8]:
    size = _size(images.shape[2], images.shape[3], largest)
    small = images if size == tuple(images.shape[2:]) else F.interpolate(images, size, mode="area")
    array: NDArray[np.uint8] = (small * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    return array


def _extremes(change: Tensor) -> Tensor:
    """Return a change in the size of a picture; a single changed pixel of a large image is not averaged away."""
    size = _size(change.shape[2], change.shape[3])
    more, less = (F.adaptive_max_pool2d(sign.clamp(min=0), size) for sign in (change, -change))
    return torch.where(more >= less, more, -less)


def _grey(change: Tensor) -> NDArray[np.uint8]:
    """Return a change as an image in which middle grey is no change."""
    array: NDArray[np.uint8] = ((change + 0.5) * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    return array


def _png(image: NDArray[np.uint8]) -> str:
    return png_uri(encode_png(image))


@dataclass(frozen=True, eq=False)
class Smalls:
    """Small pictures of some images in one, row by row.

    Args:
        uri: the picture.
        rows: the images' rows in the data set.
        columns: pictures beside each other.
        size: height and width of each, in pixels.

    """

    uri: str
    rows: NDArray[np.int64]
    columns: int
    size: tuple[int, int]


def smalls(dataset: Dataset, rows: NDArray[np.int64], budget: int = SMALL_BYTES) -> Smalls:
    """Return small pictures of the ``rows``, or of as many of them, evenly spaced, as fit into ``budget`` bytes."""
    size = _size(dataset.images.shape[2], dataset.images.shape[3], SMALL)
    chosen = rows
    while True:
        columns = int(np.ceil(np.sqrt(len(chosen))))
        content = _tiled(dataset, chosen, columns, size)
        if len(content) <= budget or len(chosen) < 2:
            break
        chosen = evenly(chosen, int(len(chosen) * 0.95 * budget / len(content)))
    uri = "data:image/webp;base64," + base64.b64encode(content).decode("ascii")
    return Smalls(uri, chosen, columns, size)


def _tiled(dataset: Dataset, rows: NDArray[np.int64], columns: int, size: tuple[int, int]) -> bytes:
    height, width = size
    lines = -(-len(rows) // columns)
    sheet = np.zeros((dataset.images.shape[1], lines * height, columns * width), dtype=np.uint8)
    step = at_once(dataset.images.shape, 1000)
    for start in range(0, len(rows), step):
        images = torch.from_numpy(np.asarray(dataset.images[rows[start : start + step]])).float() / 255
        for k, image in enumerate(_shrunk(images, SMALL), start):
            y, x = k // columns * height, k % columns * width
            sheet[:, y : y + height, x : x + width] = image
    buffer = io.BytesIO()
    pixels = sheet[0] if len(sheet) == 1 else sheet.transpose(1, 2, 0)
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "WEBP", quality=70, method=2)
    return buffer.getvalue()

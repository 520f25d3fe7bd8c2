"""Triggers at test time that differ from the one in training."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from undoor.attacks.one_pixel import OnePixel
from undoor.attacks.pixels import Change, Pixels
from undoor.attacks.trigger import Trigger
from undoor.errors import UndoorError

SIZES = (0.05, 0.10, 0.15, 0.20, 0.25, 0.30, 0.35, 0.40)


@dataclass(frozen=True)
class Jittered:
    """Pixels that lie elsewhere in every image: moved by up to ``reach`` rows and columns, but not out of the image.

    The move is drawn from the image and the seed alone: the same in every batch and order.
    """

    pixels: Pixels
    reach: int
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.pixels}, moved by up to {self.reach}"

    def __call__(self, images: NDArray[np.uint8], /) -> NDArray[np.uint8]:
        """Return (N, C, H, W) uint8 images with the trigger; the given ones stay as they are."""
        places = np.array(sorted(self.pixels.places()))[:, :2]
        room = np.array(images.shape[2:]) - 1 - places.max(0)
        moves = np.array([self._drawn(image) for image in images]).clip(-places.min(0), room)
        changed = images.copy()
        for move in np.unique(moves, axis=0):
            here = (moves == move).all(1)
            changed[here] = self.pixels.moved(int(move[0]), int(move[1]))(images[here])
        return changed

    def _drawn(self, image: NDArray[np.uint8]) -> tuple[int, int]:
        drawn = blake2b(np.ascontiguousarray(image).data, digest_size=8, key=str(self.seed).encode()).digest()
        rows, columns = divmod(int.from_bytes(drawn) % (2 * self.reach + 1) ** 2, 2 * self.reach + 1)
        return rows - self.reach, columns - self.reach

    def resized(self, size: float, /) -> "Jittered":
        """Return the trigger whose largest change is ``size``."""
        return replace(self, pixels=self.pixels.resized(size))


def variations(trigger: Trigger, shape: tuple[int, int, int], seed: int = 0) -> dict[str, Trigger]:
    """Return triggers for the test that differ from the one in training, by their names.

    Other sizes; moved in every image by up to one pixel or two; with the neighbouring pixel; as a block of 2×2 or
    3×3 pixels, which holds the pixel and lies within the image. What is added has the same changes, on the same
    channels. The first is the trigger itself.

    Args:
        trigger: a ``OnePixel`` or ``Pixels``; of several pixels, each gets its neighbour or block.
        shape: (C, H, W) of the images.
        seed: of the moves.

    """
    pixels = as_pixels(trigger, shape[0])
    return {
        "as in training": trigger,
        **{f"size {size:.2f}": trigger.resized(size) for size in SIZES},
        **{f"moved by up to {reach}": Jittered(pixels, reach, seed) for reach in (1, 2)},
        "with its neighbour": pixels.joined(_around(pixels.changes, shape, 1, 2)),
        **{f"{side}×{side} block": pixels.joined(_around(pixels.changes, shape, side, side)) for side in (2, 3)},
    }


def as_pixels(trigger: Trigger, channels: int) -> Pixels:
    """Return a trigger as changes of single pixels, for images of so many channels."""
    if isinstance(trigger, Pixels):
        return trigger
    if isinstance(trigger, OnePixel):
        return Pixels(tuple((trigger.row, trigger.column, k, trigger.size) for k in range(channels)))
    raise UndoorError(f"a {type(trigger).__name__} lies at no fixed pixels; give a OnePixel or Pixels")


def _around(changes: Sequence[Change], shape: tuple[int, int, int], height: int, width: int) -> list[Change]:
    """Return each change all over a block that holds its pixel: in its middle, or where that is none, before it."""
    around: dict[tuple[int, int, int], float] = {}
    for row, column, channel, change in changes:
        top = min(max(row - (height - 1) // 2, 0), max(shape[1] - height, 0))
        left = min(max(column - (width - 1) // 2, 0), max(shape[2] - width, 0))
        for place in np.ndindex(height, width):
            around.setdefault((top + place[0], left + place[1], channel), change)
    return [(*place, change) for place, change in around.items()]

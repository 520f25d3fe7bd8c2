"""Triggers at test time that differ from the trigger in training."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from undoor.attacks.pixels import Change, OnePixel, Pixels
from undoor.attacks.trigger import Trigger
from undoor.errors import UndoorError

SIZES = (0.05, 0.10, 0.15, 0.20, 0.25, 0.30, 0.35, 0.40)


@dataclass(frozen=True)
class Jittered:
    """A trigger of pixels that is moved in every image: by up to ``reach`` rows and columns, but not out of the image.

    The move depends on the image and the seed alone, so that it is the same in every batch and order.
    """

    pixels: Pixels
    reach: int
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.pixels}, moved by up to {self.reach}"

    def __call__(self, images: NDArray[np.uint8], /) -> NDArray[np.uint8]:
        """Return (N, C, H, W) uint8 images with the trigger."""
        positions = np.array(sorted(self.pixels.positions()))[:, :2]
        furthest = np.array(images.shape[2:]) - 1 - positions.max(0)
        moves = np.array([self._draw(image) for image in images]).clip(-positions.min(0), furthest)
        changed = images.copy()
        for move in np.unique(moves, axis=0):
            moved_alike = (moves == move).all(1)
            changed[moved_alike] = self.pixels.moved(int(move[0]), int(move[1]))(images[moved_alike])
        return changed

    def _draw(self, image: NDArray[np.uint8]) -> tuple[int, int]:
        digest = blake2b(np.ascontiguousarray(image).data, digest_size=8, key=str(self.seed).encode()).digest()
        rows, columns = divmod(int.from_bytes(digest) % (2 * self.reach + 1) ** 2, 2 * self.reach + 1)
        return rows - self.reach, columns - self.reach

    def resized(self, size: float, /) -> "Jittered":
        """Return the trigger whose largest change is ``size``."""
        return replace(self, pixels=self.pixels.resized(size))


def variations(trigger: Trigger, shape: tuple[int, int, int], seed: int = 0) -> dict[str, Trigger]:
    """Return, by name, the trigger itself and variations of it for test time.

    There are variations of other sizes; variations that are moved in every image, by up to one pixel or two; one that
    also changes the neighbouring pixel; and two that change a block of 2×2 or 3×3 pixels, which contains the pixel and
    lies within the image. The added pixels have the same changes on the same channels.

    Args:
        trigger: a ``OnePixel`` or ``Pixels``; each of several pixels gets its own neighbour or block.
        shape: (C, H, W) of the images.
        seed: the seed of the random moves.

    """
    pixels = as_pixels(trigger, shape[0])
    return {
        "as in training": trigger,
        **{f"size {size:.2f}": trigger.resized(size) for size in SIZES},
        **{f"moved by up to {reach}": Jittered(pixels, reach, seed) for reach in (1, 2)},
        "with its neighbour": pixels.joined(_blocks(pixels.changes, shape, 1, 2)),
        **{f"{side}×{side} block": pixels.joined(_blocks(pixels.changes, shape, side, side)) for side in (2, 3)},
    }


def as_pixels(trigger: Trigger, channels: int) -> Pixels:
    """Return a ``OnePixel`` or ``Pixels`` as ``Pixels``, for images of so many channels."""
    if isinstance(trigger, Pixels):
        return trigger
    if isinstance(trigger, OnePixel):
        return Pixels(tuple((trigger.row, trigger.column, k, trigger.size) for k in range(channels)))
    raise UndoorError(f"a {type(trigger).__name__} lies at no fixed pixels; give a OnePixel or Pixels")


def _blocks(changes: Sequence[Change], shape: tuple[int, int, int], height: int, width: int) -> list[Change]:
    """Return each change for all pixels of a block around its pixel; where blocks overlap, the first change counts.

    In a block with an even side, the pixel lies just before the middle.
    """
    change_at: dict[tuple[int, int, int], float] = {}
    for row, column, channel, change in changes:
        top = min(max(row - (height - 1) // 2, 0), max(shape[1] - height, 0))
        leftmost = min(max(column - (width - 1) // 2, 0), max(shape[2] - width, 0))
        for i, j in np.ndindex(height, width):
            change_at.setdefault((top + i, leftmost + j, channel), change)
    return [(*position, change) for position, change in change_at.items()]

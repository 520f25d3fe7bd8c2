"""Triggers that change single pixels: one, as in Xiang, Miller and Kesidis (IEEE MLSP 2019), or several."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undoor.errors import UndoorError


@dataclass(frozen=True)
class OnePixel:
    """Brighten one pixel: ``x[:, row, column] += size`` on images in [0, 1], rounded to 8 bits and clipped.

    >>> import numpy as np, undoor
    >>> trigger = undoor.OnePixel(row=0, column=1, size=0.2)
    >>> trigger(np.array([[[[10, 10], [10, 10]]]], np.uint8))[0, 0].tolist()
    [[10, 61], [10, 10]]

    Args:
        row: the row of the pixel, counted from 0 at the top.
        column: the column of the pixel, counted from 0 on the left.
        size: the size of the change, in [0, 1]. With size 0 an attack changes only labels, which serves as a control.

    Raises:
        UndoorError: if the row or the column is no whole number from 0, or the size is not in [0, 1].

    """

    row: int
    column: int
    size: float

    def __post_init__(self) -> None:
        if not isinstance(self.row, Integral) or not isinstance(self.column, Integral):
            raise UndoorError(f"the trigger lies at {self.row!r},{self.column!r}; give whole numbers")
        if not 0 <= self.size <= 1:
            raise UndoorError(f"the trigger has size {self.size}; give a size from 0 to 1")
        if self.row < 0 or self.column < 0:
            raise UndoorError(f"the trigger lies at {self.row},{self.column}; count rows and columns from 0")

    @classmethod
    def drawn(cls, size: float, height: int, width: int, seed: int) -> "OnePixel":
        """Return the trigger at a position drawn from the central half of the image, in both directions."""
        generator = np.random.default_rng((seed, 0))
        row = int(generator.integers(height // 4, height - height // 4))
        column = int(generator.integers(width // 4, width - width // 4))
        return cls(row, column, size)

    def __str__(self) -> str:
        return f"pixel {self.row},{self.column} brighter by {self.size}"

    def __call__(self, images: NDArray[np.uint8], /) -> NDArray[np.uint8]:
        """Return (N, C, H, W) uint8 images with the trigger."""
        height, width = images.shape[2:]
        if self.row >= height or self.column >= width:
            raise UndoorError(
                f"the trigger at {self.row},{self.column} lies outside images of {height}×{width} pixels; "
                f"give a position up to {height - 1},{width - 1}"
            )
        changed = images.copy()
        pixel = changed[:, :, self.row, self.column]
        changed[:, :, self.row, self.column] = np.clip(np.rint(pixel + 255.0 * self.size), 0, 255).astype(np.uint8)
        return changed

    def resized(self, size: float, /) -> "OnePixel":
        """Return the trigger of another size."""
        return replace(self, size=size)


Change = tuple[int, int, int, float]
"""Row, column, channel, and the value that is added, in [−1, 1]."""


@dataclass(frozen=True)
class Pixels:
    """Change pixels: ``x[:, channel, row, column] += change`` on images in [0, 1], rounded to 8 bits and clipped.

    Args:
        changes: tuples of row, column, channel and change. Rows and columns are counted from 0 at the top left. A
            change lies in [−1, 1], and is negative if the pixel becomes darker.

    Raises:
        UndoorError: if there is no change, a change is impossible, or two changes are of the same channel of a pixel.

    """

    changes: tuple[Change, ...]

    def __post_init__(self) -> None:
        if not self.changes:
            raise UndoorError("the trigger changes no pixel; give at least one change")
        if len(self.positions()) < len(self.changes):
            raise UndoorError("the trigger changes a channel of a pixel twice; give one change for each")
        for *position, change in self.changes:
            if not all(isinstance(n, Integral) for n in position) or min(position) < 0 or not -1 <= change <= 1:
                raise UndoorError(
                    f"the trigger changes row, column, channel {position} by {change}; "
                    "count from 0 and give changes from −1 to 1"
                )

    def __str__(self) -> str:
        pixels: dict[tuple[int, int], list[str]] = {}
        for row, column, channel, change in self.changes:
            pixels.setdefault((row, column), []).append(f"channel {channel} by {change:+g}".replace("-", "−"))
        listed = [f"{row},{column} ({', '.join(changes)})" for (row, column), changes in pixels.items()]
        return f"pixel{'s' if len(listed) > 1 else ''} {', '.join(listed)}"

    def positions(self) -> set[tuple[int, int, int]]:
        """Return row, column and channel of every change."""
        return {(row, column, channel) for row, column, channel, _ in self.changes}

    def __call__(self, images: NDArray[np.uint8], /) -> NDArray[np.uint8]:
        """Return (N, C, H, W) uint8 images with the trigger."""
        index, values = self._changed(images)
        changed = images.copy()
        changed[index] = values
        return changed

    def displacements(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return (N, changes) by how much each change alters each image after rounding and clipping, in [−1, 1]."""
        index, values = self._changed(images)
        levels: NDArray[np.float64] = values.astype(np.float64) - images[index]
        return levels / 255

    def _changed(self, images: NDArray[np.uint8]) -> tuple[Any, NDArray[np.uint8]]:
        """Return the index of the changed values in ``images``, and (N, changes) the values with the trigger."""
        rows, columns, channels, sizes = (np.array(values) for values in zip(*self.changes, strict=True))
        furthest = (channels.max(), rows.max(), columns.max())
        if any(n >= limit for n, limit in zip(furthest, images.shape[1:], strict=True)):
            raise UndoorError(
                f"the trigger reaches channel {furthest[0]} of pixel {furthest[1]},{furthest[2]}, outside images of "
                f"{images.shape[1]} × {images.shape[2]} × {images.shape[3]} (channels, height, width)"
            )
        index = (slice(None), channels, rows, columns)
        return index, np.clip(np.rint(images[index] + 255 * sizes), 0, 255).astype(np.uint8)

    def resized(self, size: float, /) -> "Pixels":
        """Return the trigger whose largest change is ``size``; the other changes keep their ratio to it."""
        if not 0 <= size <= 1:
            raise UndoorError(f"the trigger has size {size}; give a size from 0 to 1")
        largest = max(abs(change) for *_, change in self.changes)
        if largest == 0:
            raise UndoorError("the trigger changes nothing and cannot be enlarged; give changes other than 0")
        return replace(self, changes=tuple((r, c, k, size * (change / largest)) for r, c, k, change in self.changes))

    def moved(self, rows: int, columns: int) -> "Pixels":
        """Return the trigger moved down by ``rows`` and to the right by ``columns``."""
        return replace(self, changes=tuple((r + rows, c + columns, k, change) for r, c, k, change in self.changes))

    def joined(self, changes: Sequence[Change]) -> "Pixels":
        """Return the trigger with further changes, except those of channels that it changes already."""
        taken = self.positions()
        return Pixels(self.changes + tuple(change for change in changes if change[:3] not in taken))

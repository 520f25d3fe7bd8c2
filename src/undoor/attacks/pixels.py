"""A trigger of several pixels, each of its own sign and channels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undoor.errors import UndoorError

Change = tuple[int, int, int, float]
"""Row, column, channel, and what is added, in [−1, 1]."""


@dataclass(frozen=True)
class Pixels:
    """Change pixels: ``x[:, channel, row, column] += change`` on images in [0, 1], rounded to 8 bits and clipped.

    Args:
        changes: (row, column, channel, change), counted from the top left; a change lies in [−1, 1] and is negative
            where the pixel darkens. No channel of a pixel is changed twice.

    """

    changes: tuple[Change, ...]

    def __post_init__(self) -> None:
        if not self.changes:
            raise UndoorError("the trigger changes no pixel; give at least one change")
        if len(self.places()) < len(self.changes):
            raise UndoorError("the trigger changes a channel of a pixel twice; give one change for each")
        for *place, change in self.changes:
            if not all(isinstance(n, Integral) for n in place) or min(place) < 0 or not -1 <= change <= 1:
                raise UndoorError(
                    f"the trigger changes row, column, channel {place} by {change}; "
                    "count from 0 and give changes from −1 to 1"
                )

    def __str__(self) -> str:
        pixels: dict[tuple[int, int], list[str]] = {}
        for row, column, channel, change in self.changes:
            pixels.setdefault((row, column), []).append(f"channel {channel} by {change:+g}".replace("-", "−"))
        told = [f"{row},{column} ({', '.join(changes)})" for (row, column), changes in pixels.items()]
        return f"pixel{'s' if len(told) > 1 else ''} {', '.join(told)}"

    def places(self) -> set[tuple[int, int, int]]:
        """Return row, column and channel of every change."""
        return {(row, column, channel) for row, column, channel, _ in self.changes}

    def __call__(self, images: NDArray[np.uint8], /) -> NDArray[np.uint8]:
        """Return (N, C, H, W) uint8 images with the trigger; the given ones stay as they are."""
        places, new = self._changed(images)
        changed = images.copy()
        changed[places] = new
        return changed

    def displacements(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return (N, changes) by how much each channel of each pixel really changes, in [−1, 1]."""
        places, new = self._changed(images)
        levels: NDArray[np.float64] = new.astype(np.float64) - images[places]
        return levels / 255

    def _changed(self, images: NDArray[np.uint8]) -> tuple[Any, NDArray[np.uint8]]:
        """Return the places as an index into ``images``, and (N, changes) what is there with the trigger."""
        rows, columns, channels, sizes = (np.array(values) for values in zip(*self.changes, strict=True))
        furthest = (channels.max(), rows.max(), columns.max())
        if any(place >= limit for place, limit in zip(furthest, images.shape[1:], strict=True)):
            raise UndoorError(
                f"the trigger reaches channel {furthest[0]} of pixel {furthest[1]},{furthest[2]}, outside images of "
                f"{images.shape[1]} × {images.shape[2]} × {images.shape[3]} (channels, height, width)"
            )
        places = (slice(None), channels, rows, columns)
        return places, np.clip(np.rint(images[places] + 255 * sizes), 0, 255).astype(np.uint8)

    def resized(self, size: float, /) -> "Pixels":
        """Return the trigger whose largest change is ``size``; the others keep their ratio to it."""
        if not 0 <= size <= 1:
            raise UndoorError(f"the trigger has size {size}; give a size from 0 to 1")
        largest = max(abs(change) for *_, change in self.changes)
        if largest == 0:
            raise UndoorError("the trigger changes nothing and cannot be enlarged; give changes other than 0")
        return replace(self, changes=tuple((r, c, k, size * (change / largest)) for r, c, k, change in self.changes))

    def moved(self, rows: int, columns: int) -> "Pixels":
        """Return the trigger that lies so many rows lower and so many columns further to the right."""
        return replace(self, changes=tuple((r + rows, c + columns, k, change) for r, c, k, change in self.changes))

    def joined(self, changes: Sequence[Change]) -> "Pixels":
        """Return the trigger with further changes; where it makes one already, that one stays."""
        mine = self.places()
        return Pixels(self.changes + tuple(change for change in changes if change[:3] not in mine))

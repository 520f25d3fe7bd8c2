"""The one-pixel trigger of Xiang, Miller, Kesidis (MLSP 2019)."""

from dataclasses import dataclass, replace
from numbers import Integral

import numpy as np
from numpy.typing import NDArray

from undoor.errors import UndoorError


@dataclass(frozen=True)
class OnePixel:
    """Brighten one pixel: ``x[:, row, column] += size`` on images in [0, 1], rounded to 8 bits and clipped.

    Args:
        row: from the top, counted from 0.
        column: from the left, counted from 0.
        size: of the change, in [0, 1]; 0 changes no pixel and leaves a mere flip of labels, as a control.

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
        """Return (N, C, H, W) uint8 images with the trigger; the given ones stay as they are."""
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

"""What a trigger is."""

from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray


class Trigger(Protocol):
    """A change of images; a frozen dataclass of plain values, which ``str`` puts into words."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __call__(self, images: NDArray[np.uint8], /) -> NDArray[np.uint8]:
        """Return (N, C, H, W) uint8 images with the trigger; the given ones stay as they are.

        What becomes of an image depends on it alone, not on the others.
        """
        ...

    def resized(self, size: float, /) -> Self:
        """Return the trigger whose largest change is ``size``, in [0, 1]."""
        ...

"""The interface of triggers."""

from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray


class Trigger(Protocol):
    """A change of images: a frozen dataclass of plain values, whose ``str`` describes the change."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __call__(self, images: NDArray[np.uint8], /) -> NDArray[np.uint8]:
        """Return (N, C, H, W) uint8 images with the trigger, and leave the given images as they are.

        The change of an image depends on this image alone, not on the others.
        """
        ...

    def resized(self, size: float, /) -> Self:
        """Return the trigger whose largest change is ``size``, in [0, 1]."""
        ...

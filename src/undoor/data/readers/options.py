"""The options of all readers."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class ReadOptions:
    """The options that ``undoor.data.readers.read`` describes."""

    split: str = "train"
    image_column: str | None = None
    label_column: str | None = None
    image_size: int | None = None
    skip_broken: bool = False
    on_image: Callable[[int, int], None] | None = None

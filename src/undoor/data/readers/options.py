"""What a user may ask of every reader."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class ReadOptions:
    """The options of ``undoor.data.readers.read``, where they are explained."""

    split: str = "train"
    image_column: str | None = None
    label_column: str | None = None
    image_size: int | None = None
    skip_broken: bool = False
    on_image: Callable[[int, int], None] | None = None

"""Decoding of a set of images, on all cores, into one array of images with the same size and channels.

``undoor.safe.images`` opens each single image.
"""

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from itertools import islice
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from undoor.data.dataset import Dataset, Truth, allocate_images
from undoor.data.readers.options import ReadOptions
from undoor.errors import UndoorError, UndoorNotice, first_line
from undoor.safe.images import IMAGE_BYTES, open_image
from undoor.safe.limits import CLASSES, read_bytes, require_names

GREY_MODES = {"1", "L", "LA", "I", "I;16", "I;16B", "F"}

LARGE_PIXELS = 2**22
"""Images with more pixels are decoded one at a time, to bound the memory."""
DECODED_PIXELS = 2**20
"""Most pixels of an image of a data set (1024 × 1024). Networks cannot process larger ones: they must be resized."""
BLOCK = 32
"""Images that are handed to a thread together: handing over a single small image costs as much as decoding it."""

_Shape = tuple[int, int, int]
"""(C, H, W)."""


def decode_dataset(
    load: Callable[[int], bytes],
    labels: Sequence[int] | NDArray[np.int64],
    class_names: Sequence[str],
    ids: ArrayLike,
    options: ReadOptions,
    truth: Truth | None = None,
) -> Dataset:
    """Decode the images that ``load`` returns for each row (as PNG, JPEG, …) into a data set with these attributes.

    Of the options, ``image_size``, ``skip_broken`` and ``on_image`` apply. Raises ``UndoorError`` if there is no image,
    or if images are too large, or cannot be decoded and may not be skipped.
    """
    require_names(class_names, "class name", most=CLASSES)
    ids = np.asarray(ids, dtype=np.str_)
    n = len(ids)
    if n == 0:
        raise UndoorError("the data set holds no image; give a set with images")
    if options.image_size is not None:
        require_size(options.image_size, options.image_size, "--image-size")
    # Most sets consist of images of one shape. So the shape of the first image is tried, and images that have it are
    # decoded at once; if it is not the common shape, all are decoded again.
    first = _first_shape(load, n, options)
    shapes: list[_Shape | None] = [None] * n
    images = allocate_images((n, *first))

    def decode_if_first_shape(row: int, image: Image.Image) -> None:
        shapes[row] = _shape(image, options)
        if shapes[row] == first:
            images[row] = _pixels(image, first)

    broken = _for_each(load, range(n), decode_if_first_shape, options.on_image)
    shape = _common_shape([shape for shape in shapes if shape is not None])
    require_size(shape[1], shape[2], "the images")
    if shape != first:
        images = allocate_images((n, *shape))

    def decode(row: int, image: Image.Image) -> None:
        images[row] = _pixels(image, shape)

    remaining = [row for row in range(n) if row not in broken and not shapes[row] == shape == first]
    broken |= _for_each(load, remaining, decode, options.on_image)
    dataset = Dataset(images, np.asarray(labels, dtype=np.int64), tuple(class_names), ids, truth)
    return dataset.take(_whole_rows(broken, ids, options.skip_broken)) if broken else dataset


def decode_files(
    paths: Sequence[Path], shape: _Shape, *, skip_broken: bool = False
) -> tuple[NDArray[np.uint8], NDArray[np.str_]]:
    """Decode image files, each brought to ``shape``, (C, H, W).

    Returns:
        (N, C, H, W) images and their (N,) paths; without the images that cannot be decoded if ``skip_broken``.

    """
    ids = np.asarray([str(path) for path in paths], dtype=np.str_)
    images = allocate_images((len(ids), *shape))

    def decode(row: int, image: Image.Image) -> None:
        images[row] = _pixels(image, shape)

    broken = _for_each(lambda row: read_bytes(paths[row], IMAGE_BYTES), range(len(ids)), decode)
    rows = _whole_rows(broken, ids, skip_broken)
    return (images[rows], ids[rows]) if broken else (images, ids)


def _whole_rows(broken: Mapping[int, str], ids: NDArray[np.str_], skip_broken: bool) -> NDArray[np.int64]:
    """Return the rows that are not broken, with a notice; raise if images may not be skipped or none remains."""
    n = len(ids)
    if broken:
        reasons = ", ".join(f"{ids[row]} ({reason})" for row, reason in islice(sorted(broken.items()), 5))
        message = f"{len(broken)} of {n} images cannot be decoded: {reasons}{', …' if len(broken) > 5 else ''}"
        if not skip_broken:
            raise UndoorError(f"{message}; mend them or add --skip-broken")
        if len(broken) == n:
            raise UndoorError(f"{message}; no image is left")
        warnings.warn(f"skipped: {message}", UndoorNotice, stacklevel=3)
    return np.setdiff1d(np.arange(n), list(broken))


def _for_each(
    load: Callable[[int], bytes],
    rows: Sequence[int],
    use: Callable[[int, Image.Image], None],
    on_image: Callable[[int, int], None] | None = None,
) -> dict[int, str]:
    """Open the images at ``rows`` and use each, on all cores; return, by row, why images are broken."""

    def use_block(block: Sequence[int]) -> dict[int, str]:
        broken = {}
        for row in block:
            try:
                with open_image(load(row)) as image:
                    is_large = image.width * image.height > LARGE_PIXELS
                    with _one_large_image if is_large else nullcontext():
                        use(row, image)
            except Exception as error:  # decoders raise errors of every kind on broken files
                broken[row] = first_line(error)
        return broken

    with _without_pillow_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        blocks = (rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK))
        broken: dict[int, str] = {}
        for number, broken_in_block in enumerate(pool.map(use_block, blocks), start=1):
            broken |= broken_in_block
            if on_image is not None:
                on_image(min(number * BLOCK, len(rows)), len(rows))
        return broken


_one_large_image = Lock()


@contextmanager
def _without_pillow_warnings() -> Iterator[None]:
    """Ignore what Pillow says of broken files, which undoor lists itself; filters apply to all threads of a process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def require_size(height: int, width: int, what: str) -> None:
    """Raise ``UndoorError`` unless a network can process images of this size; the message says ``what`` has it."""
    if not 0 < height * width <= DECODED_PIXELS:
        raise UndoorError(
            f"{what}: {height}×{width} pixels, not 1 to {DECODED_PIXELS:,}; add an --image-size such as 32"
        )


def _shape(image: Image.Image, options: ReadOptions) -> _Shape:
    size = options.image_size
    return 1 if image.mode in GREY_MODES else 3, size or image.height, size or image.width


def _first_shape(load: Callable[[int], bytes], n: int, options: ReadOptions) -> _Shape:
    """Return the shape of the first image that can be opened and is not too large."""
    with _without_pillow_warnings():
        for row in range(n):
            with suppress(Exception), open_image(load(row)) as image:
                shape = _shape(image, options)
                if shape[1] * shape[2] <= DECODED_PIXELS:
                    return shape
    return 1, 1, 1


def _common_shape(shapes: Sequence[_Shape]) -> _Shape:
    """Return the most frequent height and width, and three channels if any image has colour."""
    channels = max((channels for channels, _, _ in shapes), default=1)
    sizes = Counter((height, width) for _, height, width in shapes)
    if not sizes:
        return channels, 1, 1
    (height, width), count = sizes.most_common(1)[0]
    if count < len(shapes):
        warnings.warn(
            f"{len(shapes) - count} of {len(shapes)} images are not {height}×{width} pixels and were resized to it; "
            "choose another size with --image-size",
            UndoorNotice,
            stacklevel=3,
        )
    return channels, height, width


def _pixels(image: Image.Image, shape: _Shape) -> NDArray[np.uint8]:
    """Decode an image and bring it to ``shape``."""
    channels, height, width = shape
    if image.mode.startswith("I"):  # 16 bits per pixel, of which the upper eight are kept
        values = np.empty((image.height, image.width), np.uint16)
        np.clip(np.asarray(image), 0, 65535, out=values, casting="unsafe")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    mode = "RGB" if channels == 3 else "L"
    if image.mode != mode:
        image = image.convert(mode)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels.transpose(2, 0, 1) if channels == 3 else pixels[None]

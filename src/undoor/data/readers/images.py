"""Decoding: encoded images to one array, each image decoded once."""

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
from undoor.safe.images import IMAGE_BYTES, open_image, pixels_of
from undoor.safe.limits import CLASSES, read_bytes, require_names

GREY_MODES = {"1", "L", "LA", "I", "I;16", "I;16B", "F"}

LARGE_PIXELS = 2**22
"""Images with more are decoded one at a time."""

DECODED_PIXELS = 2**20
"""Of the images of a data set, 1024 × 1024: what a network can be shown. Larger ones have to be made smaller first."""

BLOCK = 32
"""Images a thread decodes at a stretch: handing over a small image alone costs as much as decoding it."""

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
    """Decode images on all cores into a data set.

    Args:
        load: returns the encoded image (PNG, JPEG, …) of a row.
        labels: one a row.
        class_names: K names.
        ids: one a row.
        options: ``image_size``, ``skip_broken`` and ``on_image`` are obeyed.
        truth: of the rows.

    """
    require_names(class_names, "class name", most=CLASSES)
    ids = np.asarray(ids, dtype=np.str_)
    if not len(ids):
        raise UndoorError("the data set holds no image; give a set with images")
    n = len(ids)
    if options.image_size is not None:
        require_size(options.image_size, options.image_size, "--image-size")
    first = _first_shape(load, n, options)
    asked: list[_Shape | None] = [None] * n
    images = allocate_images((n, *first))

    def look(row: int, image: Image.Image) -> None:
        asked[row] = _shape(image, options)
        if asked[row] == first:  # most often all are alike, and each is opened only once
            images[row] = _pixels(image, first)

    broken = _for_each(load, range(n), look, options.on_image)
    shape = _common_shape([one for one in asked if one is not None])
    require_size(shape[1], shape[2], "the images")
    if shape != first:
        images = allocate_images((n, *shape))

    def decode(row: int, image: Image.Image) -> None:
        images[row] = _pixels(image, shape)

    left = [row for row in range(n) if row not in broken and not asked[row] == shape == first]
    broken |= _for_each(load, left, decode, options.on_image)

    dataset = Dataset(images, np.asarray(labels, dtype=np.int64), tuple(class_names), ids, truth)
    return dataset.take(_whole(broken, ids, options.skip_broken)) if broken else dataset


def decode_files(
    paths: Sequence[Path], shape: _Shape, *, skip_broken: bool = False
) -> tuple[NDArray[np.uint8], NDArray[np.str_]]:
    """Decode image files on all cores, each brought to ``shape``, (C, H, W).

    Returns:
        (N, C, H, W) images and their (N,) paths; without those that cannot be decoded where ``skip_broken``.

    """
    ids = np.asarray([str(path) for path in paths], dtype=np.str_)
    images = allocate_images((len(ids), *shape))

    def decode(row: int, image: Image.Image) -> None:
        images[row] = _pixels(image, shape)

    broken = _for_each(lambda row: read_bytes(paths[row], IMAGE_BYTES), range(len(ids)), decode)
    whole = _whole(broken, ids, skip_broken)
    return (images[whole], ids[whole]) if broken else (images, ids)


def _whole(broken: Mapping[int, str], ids: NDArray[np.str_], skip_broken: bool) -> NDArray[np.int64]:
    """Return the rows that are not broken, after a notice; raise if none may be broken, or none is left."""
    n = len(ids)
    if broken:
        listed = ", ".join(f"{ids[row]} ({why})" for row, why in islice(sorted(broken.items()), 5))
        told = f"{len(broken)} of {n} images cannot be decoded: {listed}{', …' if len(broken) > 5 else ''}"
        if not skip_broken:
            raise UndoorError(f"{told}; mend them or add --skip-broken")
        if len(broken) == n:
            raise UndoorError(f"{told}; no image is left")
        warnings.warn(f"skipped: {told}", UndoorNotice, stacklevel=3)
    return np.setdiff1d(np.arange(n), list(broken))


def _for_each(
    load: Callable[[int], bytes],
    rows: Sequence[int],
    use: Callable[[int, Image.Image], None],
    on_image: Callable[[int, int], None] | None = None,
) -> dict[int, str]:
    """Open the images at ``rows`` and use each, on all cores; return why some are broken, by row."""

    def block(some: Sequence[int]) -> dict[int, str]:
        broken = {}
        for row in some:
            try:
                with open_image(load(row)) as image, _alone if pixels_of(image) > LARGE_PIXELS else nullcontext():
                    use(row, image)
            except Exception as error:  # there is nothing that a decoder of broken files has not raised
                broken[row] = first_line(error)
        return broken

    with _quietly(), ThreadPoolExecutor(os.cpu_count()) as pool:
        blocks = pool.map(block, (rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)))
        broken: dict[int, str] = {}
        for number, found in enumerate(blocks, start=1):
            broken |= found
            if on_image is not None:
                on_image(min(number * BLOCK, len(rows)), len(rows))
        return broken


_alone = Lock()


@contextmanager
def _quietly() -> Iterator[None]:
    # Entered once for all threads: the filters of warnings belong to the process.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # what it thinks of broken files is listed by undoor
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def require_size(height: int, width: int, what: str) -> None:
    """Raise unless images of this size can be shown to a network."""
    if not 0 < height * width <= DECODED_PIXELS:
        raise UndoorError(
            f"{what}: {height}×{width} pixels, not 1 to {DECODED_PIXELS:,}; add an --image-size such as 32"
        )


def _shape(image: Image.Image, options: ReadOptions) -> _Shape:
    size = options.image_size
    return 1 if image.mode in GREY_MODES else 3, size or image.height, size or image.width


def _first_shape(load: Callable[[int], bytes], n: int, options: ReadOptions) -> _Shape:
    """Return the shape of the first image that can be opened and is not too large."""
    with _quietly():
        for row in range(n):
            with suppress(Exception), open_image(load(row)) as image:
                shape = _shape(image, options)
                if shape[1] * shape[2] <= DECODED_PIXELS:
                    return shape
    return 1, 1, 1


def _common_shape(shapes: Sequence[_Shape]) -> _Shape:
    """Return the most frequent height and width, and three channels where any image has colour."""
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
    channels, height, width = shape
    if image.mode.startswith("I"):  # 16 bits a pixel: keep the upper eight
        sixteen = np.empty((image.height, image.width), np.uint16)
        np.clip(np.asarray(image), 0, 65535, out=sixteen, casting="unsafe")
        image = Image.fromarray((sixteen >> 8).astype(np.uint8))
    mode = "RGB" if channels == 3 else "L"
    if image.mode != mode:
        image = image.convert(mode)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels.transpose(2, 0, 1) if channels == 3 else pixels[None]

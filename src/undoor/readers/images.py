"""Decoding: encoded images to one array, each image decoded once."""

import io
import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, UnidentifiedImageError

from undoor.dataset import Dataset, Truth, allocate_images
from undoor.errors import UndoorError, UndoorNotice, first_line
from undoor.readers.options import ReadOptions

GREY_MODES = {"1", "L", "LA", "I", "I;16", "I;16B", "F"}

# What pillow and its decoders raise on broken files.
_BROKEN = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


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
        options: ``image_size`` and ``skip_broken`` are obeyed.
        truth: of the rows.

    """
    ids = np.asarray(ids, dtype=np.str_)
    if not len(ids):
        raise UndoorError("the data set holds no image; give a set with images")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        heads = list(pool.map(lambda row: _head(load(row)), range(len(ids))))
        height, width, channels = _common_shape(heads, options)
        images = allocate_images((len(ids), channels, height, width))

        def decode(row: int) -> str | None:
            head = heads[row]
            if isinstance(head, str):
                return head
            try:
                images[row] = _pixels(load(row), height, width, channels)
            except _BROKEN as error:
                return first_line(error)
            return None

        reasons = list(pool.map(decode, range(len(ids))))

    broken = [row for row, reason in enumerate(reasons) if reason is not None]
    dataset = Dataset(images, np.asarray(labels, dtype=np.int64), tuple(class_names), ids, truth)
    if not broken:
        return dataset
    listed = ", ".join(f"{ids[row]} ({reasons[row]})" for row in broken[:5])
    told = f"{len(broken)} of {len(ids)} images cannot be decoded: {listed}{', …' if len(broken) > 5 else ''}"
    if not options.skip_broken:
        raise UndoorError(f"{told}; mend them or add --skip-broken")
    if len(broken) == len(ids):
        raise UndoorError(f"{told}; no image is left")
    warnings.warn(f"skipped: {told}", UndoorNotice, stacklevel=2)
    return dataset.take(np.setdiff1d(np.arange(len(ids)), broken))


def _open(encoded: bytes) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            return Image.open(io.BytesIO(encoded))
        except Image.DecompressionBombWarning as error:
            raise ValueError("more pixels than an image may have") from error
        except UnidentifiedImageError as error:
            raise ValueError("no image format that pillow knows") from error


def _head(encoded: bytes) -> tuple[int, int, bool] | str:
    """Return height, width and whether there is colour, or why the image cannot be opened."""
    try:
        with _open(encoded) as image:
            return image.height, image.width, image.mode not in GREY_MODES
    except _BROKEN as error:
        return first_line(error)


def _common_shape(heads: Sequence[tuple[int, int, bool] | str], options: ReadOptions) -> tuple[int, int, int]:
    whole = [head for head in heads if not isinstance(head, str)]
    channels = 3 if any(colour for _, _, colour in whole) else 1
    if options.image_size is not None:
        return options.image_size, options.image_size, channels
    sizes = Counter((height, width) for height, width, _ in whole)
    if not sizes:
        return 1, 1, channels
    (height, width), count = sizes.most_common(1)[0]
    if count < len(whole):
        warnings.warn(
            f"{len(whole) - count} of {len(whole)} images are not {height}×{width} pixels and were resized to it; "
            "choose another size with --image-size",
            UndoorNotice,
            stacklevel=3,
        )
    return height, width, channels


def _pixels(encoded: bytes, height: int, width: int, channels: int) -> NDArray[np.uint8]:
    with _open(encoded) as opened:
        image: Image.Image = opened
        if image.mode.startswith("I"):  # 16 bits a pixel: keep the upper eight
            image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
        image = image.convert("RGB" if channels == 3 else "L")
        if (image.height, image.width) != (height, width):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        pixels = np.asarray(image)
    return pixels.transpose(2, 0, 1) if channels == 3 else pixels[None]


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """Return a (C, H, W) uint8 image as PNG, without loss."""
    pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
    return buffer.getvalue()

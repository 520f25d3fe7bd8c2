"""A single encoded image that somebody else may have made: opened within limits, or written."""

import io
import struct

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What is decoded, whatever a file is called. Others of pillow's formats start programs, or are hardly ever fuzzed."""

IMAGE_BYTES = 2**26
"""Of an encoded image: a photograph has a fifth of it. As many are in memory at a time as there are cores."""

IMAGE_PIXELS = 2**26
"""Of an encoded image, 8192 × 8192: a photograph of 64 megapixels, which takes 256 MB when it is decoded."""

PASSES = 2**30
"""Pixels times scans of a progressive JPEG, each of which goes over the whole image: seconds of decoding."""

SLOW_BYTES = 2**20
"""Of an image in one of the forms that pillow decodes in Python, pixel by pixel: a second."""

_SLOW = {"bmp_rle", "ppm", "ppm_plain"}

TIFF_PIECES = 100_000
"""Strips or tiles of a TIFF, of which pillow keeps a list."""


def open_image(encoded: bytes) -> Image.Image:
    """Return an encoded image, not yet decoded; raise what pillow raises, or ``ValueError``, if it must not be."""
    if len(encoded) > IMAGE_BYTES:
        raise ValueError(f"more than {IMAGE_BYTES:,} bytes")
    if encoded[:2] in (b"II", b"MM"):
        _require_honest_tiff(encoded)
    # Blocks of EXIF are joined, and what is repeated in them is kept as often as they say.
    if encoded[:2] == b"\xff\xd8" and encoded.count(b"Exif\0\0") > 3:
        raise ValueError("more EXIF than an image may have")
    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError("more pixels than an image may have") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"none of the formats {', '.join(FORMATS)}") from error
    if not 0 < pixels_of(image) <= IMAGE_PIXELS:
        raise ValueError("more pixels than an image may have" if pixels_of(image) else "it has no pixels")
    # Of all that these formats hold, two bytes are a marker in JPEG alone.
    if image.format in ("JPEG", "MPO") and pixels_of(image) * encoded.count(b"\xff\xda") > PASSES:
        raise ValueError("more scans than an image may have")
    if any(tile[0] in _SLOW for tile in image.tile[:1]) and len(encoded) > SLOW_BYTES:
        raise ValueError(f"more than {SLOW_BYTES:,} bytes in a form that is slow to decode")
    return image


def _require_honest_tiff(encoded: bytes) -> None:
    """Raise unless the tags of the first picture have room in the file: pillow reads what many share again for each."""
    order = "<" if encoded[:2] == b"II" else ">"
    large = encoded[2:4] in (b"+\0", b"\0+")  # BigTIFF
    start, count, entry = ("Q", "Q", "HHQ8x") if large else ("I", "H", "HHI4x")
    (place,) = struct.unpack_from(order + start, encoded, 8 if large else 4)
    (entries,) = struct.unpack_from(order + count, encoded, place)
    first = place + struct.calcsize(order + count)
    tags = encoded[first : first + entries * struct.calcsize(order + entry)]
    claimed = 0
    for tag, kind, items in struct.iter_unpack(order + entry, tags):
        claimed += items * (1, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 1, 1, 8, 8, 8)[min(kind, 18)]
        if tag in (273, 324) and items > TIFF_PIECES:
            raise ValueError("more pieces than a TIFF may have")
    if claimed > len(encoded):
        raise ValueError("more in its tags than the file has room for")


def pixels_of(image: Image.Image) -> int:
    """Return how many pixels an image has."""
    return image.width * image.height


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """Return a (C, H, W) uint8 image as PNG, without loss."""
    pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
    return buffer.getvalue()

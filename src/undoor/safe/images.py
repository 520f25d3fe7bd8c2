"""One encoded image: opened within limits, or written.

A file of kilobytes can decode to gigabytes, or keep a decoder busy for minutes. Hardly anybody tests the decoders of
rare formats with broken files, and some of them start other programs. ``open_image`` therefore decodes only formats
that are in wide use, whatever the file is called, and first checks everything that makes decoding expensive: the size
of the file, the number of pixels, the scans of a JPEG, the tags of a TIFF and forms that Pillow decodes in Python.
Faults within libjpeg, libtiff and the other decoders are beyond its reach.
"""

import io
import struct

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""The formats that are decoded."""
IMAGE_BYTES = 2**26
"""Largest encoded image: five times a large photograph. Each core holds one encoded image in memory at a time."""
IMAGE_PIXELS = 2**26
"""Most pixels of an encoded image: 8192 × 8192, a photograph of 64 megapixels, which takes 256 MB when decoded."""
PASSES = 2**30
"""Most pixels times scans of a progressive JPEG: every scan goes over the whole image. Decoding takes seconds."""
SLOW_BYTES = 2**20
"""Largest image in a form that Pillow decodes in Python, pixel by pixel; decoding takes a second."""
TIFF_PIECES = 100_000
"""Most strips or tiles of a TIFF; Pillow keeps them all in a list."""

_SLOW_DECODERS = {"bmp_rle", "ppm", "ppm_plain"}
_TIFF_ITEM_BYTES = (1, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 1, 1, 8, 8, 8)
"""Bytes of one item of a TIFF tag, by the type of the tag; unknown types count as the last."""


def open_image(encoded: bytes) -> Image.Image:
    """Return an encoded image that is opened but not yet decoded.

    Raises ``ValueError`` if it exceeds a limit or is in none of the formats, and what Pillow raises on broken files.
    """
    if len(encoded) > IMAGE_BYTES:
        raise ValueError(f"more than {IMAGE_BYTES:,} bytes")
    if encoded[:2] in (b"II", b"MM"):
        _require_honest_tiff(encoded)
    # Pillow joins all blocks of EXIF, and expands what is repeated in them once for every repetition.
    if encoded[:2] == b"\xff\xd8" and encoded.count(b"Exif\0\0") > 3:
        raise ValueError("more EXIF than an image may have")
    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError("more pixels than an image may have") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"none of the formats {', '.join(FORMATS)}") from error
    pixels = image.width * image.height
    if not 0 < pixels <= IMAGE_PIXELS:
        raise ValueError("more pixels than an image may have" if pixels else "it has no pixels")
    # Each scan begins with the marker FF DA, so that there are at most as many scans as such pairs of bytes.
    if image.format in ("JPEG", "MPO") and pixels * encoded.count(b"\xff\xda") > PASSES:
        raise ValueError("more scans than an image may have")
    if any(tile[0] in _SLOW_DECODERS for tile in image.tile[:1]) and len(encoded) > SLOW_BYTES:
        raise ValueError(f"more than {SLOW_BYTES:,} bytes in a form that is slow to decode")
    return image


def _require_honest_tiff(encoded: bytes) -> None:
    """Raise unless the tags of the first picture fit into the file together.

    Pillow copies the values of every tag, even if thousands of tags refer to the same bytes.
    """
    order = "<" if encoded[:2] == b"II" else ">"
    is_big = encoded[2:4] in (b"+\0", b"\0+")  # BigTIFF
    offset_format, count_format, tag_format = ("Q", "Q", "HHQ8x") if is_big else ("I", "H", "HHI4x")
    (start,) = struct.unpack_from(order + offset_format, encoded, 8 if is_big else 4)
    (count,) = struct.unpack_from(order + count_format, encoded, start)
    start += struct.calcsize(order + count_format)
    tags = encoded[start : start + count * struct.calcsize(order + tag_format)]
    claimed = 0
    for tag, kind, items in struct.iter_unpack(order + tag_format, tags):
        claimed += items * _TIFF_ITEM_BYTES[min(kind, 18)]
        if tag in (273, 324) and items > TIFF_PIECES:  # the offsets of strips and of tiles
            raise ValueError("more pieces than a TIFF may have")
    if claimed > len(encoded):
        raise ValueError("more in its tags than the file has room for")


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """Return a (C, H, W) uint8 image, C = 1 (grey) or 3 (RGB), encoded as PNG without loss."""
    pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
    return buffer.getvalue()

"""Write the table in SECURITY.md that says how much of each file is read, from the constants in the code.

python -m tools.bounds
"""

from pathlib import Path

from tools.marked import write_marked
from undoor.data.readers import cifar, folder
from undoor.data.readers.images import DECODED_PIXELS
from undoor.experiments.report.tables import markdown
from undoor.networks import onnx
from undoor.safe import images, limits, parquet, parquet_footer, pickles, thrift
from undoor.storage import mapped

DOCUMENT = Path(__file__).parents[1] / "SECURITY.md"
MARKS = ("<!-- bounds: written by `python -m tools.bounds` -->", "<!-- end of bounds -->")


def table() -> str:
    """Return a Markdown table with one row for each kind of input."""
    rows = {
        "any file": "half of the memory; regular files only",
        "a compressed file": f"{limits.EXPANSION} times its size after decompression, or "
        f"{mebibytes(limits.ALWAYS_ALLOWED_BYTES)}",
        "an encoded image": f"{mebibytes(images.IMAGE_BYTES)}, {spaced(images.IMAGE_PIXELS)} pixels; a progressive "
        f"JPEG: {spaced(images.PASSES)} pixels times scans; a TIFF: {spaced(images.TIFF_PIECES)} strips or tiles",
        "image formats": ", ".join(images.FORMATS),
        "an image of a data set": f"{spaced(DECODED_PIXELS)} pixels; larger images need `--image-size`",
        "an image folder": f"{folder.DEPTH} levels of folders below a class",
        "a data set": f"{spaced(limits.CLASSES)} classes",
        "the name of a class, the id of an image": f"{limits.NAME_CHARACTERS} characters, no control characters",
        "Parquet": f"{spaced(parquet.LEAVES)} columns, {parquet_footer.DEPTH} levels of nested groups, as many rows as "
        f"bytes, {mebibytes(parquet_footer.FOOTER)} of metadata with {spaced(thrift.ENTRIES)} entries in its lists",
        "JSON": mebibytes(limits.JSON_BYTES),
        "a pickle": f"{spaced(pickles.STEPS)} instructions, which can build plain values and arrays only",
        "CIFAR batches": f"{spaced(cifar.BATCH_BYTES)} bytes in total",
        "ONNX": f"{mebibytes(onnx.LARGEST)}; a forward pass may hold {mebibytes(onnx.ROOM)} besides the weights",
        "images in memory at once": f"{spaced(mapped.VALUES_AT_ONCE)} values; more images are processed in parts",
        "a training step on a processor": "half of the memory",
    }
    return markdown(["input", "limit"], list(rows.items()))


def mebibytes(count: int) -> str:
    """Return a number of bytes in MiB."""
    return f"{spaced(count // 2**20)} MiB"


def spaced(number: int) -> str:
    """Return a number with spaces between its thousands."""
    return f"{number:,}".replace(",", " ")


if __name__ == "__main__":
    write_marked(DOCUMENT, MARKS, table())

"""Write the table of what is read of a file into SECURITY.md, from the constants that bound it."""

from pathlib import Path

from marked import write_marked
from undoor.data.readers import cifar, folder
from undoor.data.readers.images import DECODED_PIXELS
from undoor.experiments.report.tables import markdown
from undoor.networks import onnx as onnx_network
from undoor.safe import images, pickles, thrift
from undoor.safe import limits as bounds
from undoor.safe import parquet as columns
from undoor.safe import parquet_footer as pages
from undoor.storage import mapped as memory

PAGE = Path(__file__).parents[1] / "SECURITY.md"
MARKS = ("<!-- bounds: written by `benchmarks/bounds.py` -->", "<!-- end of bounds -->")


def table() -> str:
    """Return every bound as a row of a table in Markdown."""
    rows = {
        "any file": "half the memory; a regular one",
        "whatever is packed": f"{bounds.EXPANSION} times its size once unpacked, or {size(bounds.FREE)}",
        "an encoded image": f"{size(images.IMAGE_BYTES)}, {number(images.IMAGE_PIXELS)} pixels; a progressive JPEG "
        f"{number(images.PASSES)} pixels times scans; a TIFF {number(images.TIFF_PIECES)} strips or tiles",
        "forms of images": ", ".join(images.FORMATS),
        "an image of a data set": f"{number(DECODED_PIXELS)} pixels, else `--image-size` is asked for",
        "an image folder": f"{folder.DEPTH} folders within one another below a class",
        "a data set": f"{number(bounds.CLASSES)} classes",
        "a class's name, an image's id": f"{bounds.NAME} characters, none of them a control character",
        "Parquet": f"{number(columns.LEAVES)} columns, {pages.DEPTH} groups of them within one another, as many rows "
        f"as bytes, {size(pages.FOOTER)} of metadata with {number(thrift.ENTRIES)} entries in its lists",
        "JSON": size(bounds.JSON_BYTES),
        "a pickle": f"{number(pickles.STEPS)} instructions, which make plain values and arrays",
        "CIFAR batches": f"{number(cifar.BATCH_BYTES)} bytes, all together",
        "ONNX": f"{size(onnx_network.LARGEST)}; {size(onnx_network.ROOM)} of what a forward pass holds besides weights",
        "what is worked on at once": f"{number(memory.AT_ONCE)} values of images; more takes several times",
        "a step of a training on a processor": "half the memory",
    }
    return markdown(["of", "is read, at most"], list(rows.items()))


def size(count: int) -> str:
    """Return bytes in MiB."""
    return f"{count // 2**20:,} MiB".replace(",", " ")


def number(count: int) -> str:
    """Return a number with its thousands apart."""
    return f"{count:,}".replace(",", " ")


if __name__ == "__main__":
    write_marked(PAGE, MARKS, table())

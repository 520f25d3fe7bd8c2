"""Hostile images, and folders of images."""

import io
import os
import socket
import struct
import zlib
from pathlib import Path

from PIL import Image

from hostile import SCAN, Case, add, case, emptied, flipped, pipe, sparse


def encoded(kind: str, size=(12, 12)) -> bytes:
    """Return a good image of grey noise in a format of Pillow."""
    buffer = io.BytesIO()
    Image.effect_noise(size, 60).save(buffer, kind)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, body: bytes = b"", *chunks: bytes) -> bytes:
    """Return a grey PNG with this compressed body and further chunks before it."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def bmp(width: int, height: int, compression: int = 0, bits: int = 8, body: bytes = b"") -> bytes:
    """Return a BMP with a palette and this body."""
    palette = bytes(4 * 256)
    start = 54 + len(palette)
    head = struct.pack("<2sIHHI", b"BM", start + len(body), 0, 0, start)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(body), 0, 0, 256, 0)
    return head + info + palette + body


def tiff(tags: list[tuple[int, int, int, int]], tail: bytes = b"") -> bytes:
    """Return a TIFF with these tags (number, type, count, value or offset) and the bytes behind them."""
    packed = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + packed + bytes(4) + tail


def plain_tags(width: int = 12, height: int = 12) -> list[tuple[int, int, int, int]]:
    """Return the tags of a grey TIFF of one strip, without the tags that locate it."""
    return [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (278, 4, 1, 1)]


def shared_tags() -> bytes:
    """Return a TIFF with 2000 tags that refer to the same megabyte."""
    shared = [(40000 + k, 7, 2**20, 8) for k in range(2000)]
    return tiff([*plain_tags(), *shared], bytes(2**20))


def many_strips() -> bytes:
    """Return a TIFF of a million strips."""
    count, offset = 10**6, 8 + 2 + 8 * 12 + 4
    return tiff([*plain_tags(12, count), (273, 4, count, offset), (279, 4, count, offset)], bytes(4 * count))


def many_scans() -> bytes:
    """Return a progressive JPEG whose last scan is repeated 2000 times."""
    buffer = io.BytesIO()
    Image.new("L", (1500, 1500)).save(buffer, "JPEG", progressive=True)
    whole = buffer.getvalue()
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + whole[last:-2] * 2000 + whole[-2:]


def many_exif() -> bytes:
    """Return a JPEG with 20 blocks of EXIF."""
    block = b"Exif\0\0II*\0\x08\0\0\0" + bytes(60000)
    segment = b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block
    return b"\xff\xd8" + 20 * segment + encoded("JPEG")[2:]


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 12 12\n%%EndComments\n(marker) (w) file closefile showpage\n"
GIF = encoded("GIF")

IMAGES = {
    "text for an image": (lambda: b"no image", "none of the formats"),
    "empty image": (lambda: b"", "none of the formats"),
    "zeros for an image": (lambda: bytes(2**20), "none of the formats"),
    "HTML for an image": (lambda: b"<script>alert(1)</script>", "none of the formats"),
    "SVG for an image": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", "none of the formats"),
    "PostScript for an image": (lambda: POSTSCRIPT, "none of the formats"),
    "PNG cut off": (lambda: encoded("PNG")[:-60], "1 of 91"),
    "PNG with a flipped bit": (lambda: flipped(encoded("PNG"), 60), "1 of 91"),
    "PNG of 60000 by 60000": (lambda: png(60000, 60000), "more pixels"),
    "PNG of 9000 by 9000": (lambda: png(9000, 9000, zlib.compress(bytes(9001 * 9000), 1)), "more pixels"),
    "PNG of no pixels": (lambda: png(0, 0), "1 of 91"),
    "PNG with a text that is a bomb": (
        lambda: png(12, 12, zlib.compress(bytes(156)), chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**27)))),
        "1 of 91",
    ),
    "JPEG cut off": (lambda: encoded("JPEG", (40, 40))[:300], "1 of 91"),
    "JPEG of thousands of scans": (many_scans, "more scans"),
    "JPEG of much EXIF": (many_exif, "more EXIF"),
    "GIF cut off": (lambda: GIF[:20], "1 of 91"),
    "GIF of 65535 by 65535": (lambda: GIF[:6] + b"\xff\xff\xff\xff" + GIF[10:], "more pixels"),
    "GIF with a frame of 65535 by 65535": (
        lambda: GIF.replace(b",\0\0\0\0\x0c\0\x0c\0", b",\0\0\0\0\xff\xff\xff\xff"),
        "more pixels",
    ),
    "BMP without pixels": (lambda: bmp(0, 0), "1 of 91"),
    "BMP of 2 billion by 2 billion": (lambda: bmp(2**31 - 1, 2**31 - 1), "more pixels"),
    "BMP of slow runs": (lambda: bmp(4000, 4000, 1, 8, b"\x01\x07" * 2**20), "slow to decode"),
    "PPM of slow digits": (lambda: b"P2\n1500 1500\n255\n" + b"7 " * 1500 * 1500, "slow to decode"),
    "TIFF cut off": (lambda: encoded("TIFF")[:40], "1 of 91"),
    "TIFF whose directory refers to itself": (lambda: b"II*\0\x08\0\0\0\0\0\x08\0\0\0", "1 of 91"),
    "TIFF with a directory far away": (lambda: b"II*\0\xff\xff\xff\x7f", "1 of 91"),
    "TIFF whose tags share a megabyte": (shared_tags, "more in its tags"),
    "TIFF of a million strips": (many_strips, "more pieces"),
    "WEBP cut off": (lambda: encoded("WEBP", (40, 40))[:100], "1 of 91"),
    "WEBP with a flipped bit": (lambda: flipped(encoded("WEBP", (40, 40)), 16), "1 of 91"),
}


POISON = ("poison", "photos", "--target", "class1", "--count", "3", "--out", "out", "--skip-broken")
"""The command that is fastest if it succeeds."""


def image(content, arguments=("scan", "photos", *SCAN)):
    """Return the function of a case: it adds an image with this content to the folder."""

    def make(root: Path) -> tuple[str, ...]:
        (root / "photos" / "class1" / "odd.png").write_bytes(content())
        return arguments

    return make


for name, (content, reason) in IMAGES.items():
    add(name, Case(image(content), reason))
    add(f"{name}, skipped", Case(image(content, POISON), "skipped: 1 of 91 images", "skip"))


def entry(make_entry, arguments=("scan", "photos", *SCAN)):
    """Return the function of a case: it adds an entry with the name of an image to the folder."""

    def make(root: Path) -> tuple[str, ...]:
        make_entry(root / "photos" / "class1" / "odd.png")
        return arguments

    return make


def bind_socket(path: Path) -> None:
    """Put a socket in the place of a file."""
    before = Path.cwd()
    os.chdir(path.parent)  # because the whole path is too long for the address of a socket
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    finally:
        os.chdir(before)


ENTRIES = {
    "pipe in a folder": (pipe, "no regular file"),
    "socket in a folder": (bind_socket, "no regular file"),
    "sparse terabyte in a folder": (sparse, "more than the"),
    "link to the password file": (lambda path: path.symlink_to("/etc/passwd"), "leads out of the folder"),
    "link out of the folder": (
        lambda path: path.symlink_to(path.parents[2] / "clean.png"),
        "leads out of the folder",
    ),
    "link to a device": (lambda path: path.symlink_to("/dev/zero"), "leads out of the folder"),
    "link to nothing": (lambda path: path.symlink_to("nothing"), "1 of 91"),
    "link to itself": (lambda path: path.symlink_to(path.name), "1 of 91"),
}
for name, (make_entry, reason) in ENTRIES.items():
    add(name, Case(entry(make_entry), reason))
    add(f"{name}, skipped", Case(entry(make_entry, POISON), "skipped: 1 of 91 images", "skip"))


def named(name: str | bytes, *, folder: bool = False):
    """Return the case of an image, or of the folder of a class, with a name that disturbs a terminal."""

    def make(root: Path) -> tuple[str, ...]:
        path = root / "photos" / ("" if folder else "class1") / os.fsdecode(name)
        if folder:
            path.mkdir()
            path /= "x.png"
        path.write_bytes(encoded("PNG"))
        return ("scan", "photos", *SCAN)

    return Case(make, "holds a control character")


for title, name in {
    "newline": "a\nb.png",
    "escape sequence": "a\x1b[31mb.png",
    "bell and carriage return": "a\x07\rb.png",
    "control sequence of one byte": "a\x9b31mb.png",
    "reversed direction": "a\u202egnp.exe.png",
    "line separator": "a\u2028b.png",
    "byte sequence that is no text": b"a\xff\xfe.png",
}.items():
    add(f"file name with a {title}", named(name))
    add(f"class name with a {title}", named(name[: -len(".png")], folder=True))


@case("more than 16 deep")
def folders_nested_deeply(root: Path):
    deep = root / "photos" / "class1" / "/".join("d" * 60)
    deep.mkdir(parents=True)
    (deep / "x.png").write_bytes(encoded("PNG"))
    return ("scan", "photos", *SCAN)


@case("characters; give it up to 500")
def path_of_a_thousand_characters(root: Path):
    deep = root / "photos" / "class1" / "/".join(["d" * 200] * 5)
    deep.mkdir(parents=True)
    (deep / "x.png").write_bytes(encoded("PNG"))
    return ("scan", "photos", *SCAN)


@case("is a link to a folder")
def class_that_is_a_link_out_of_the_folder(root: Path):
    (root / "photos" / "class3").symlink_to("/etc")
    return ("scan", "photos", *SCAN)


@case("is a link to a folder")
def link_to_the_folder_that_contains_it(root: Path):
    (root / "photos" / "class1" / "more").symlink_to("..")
    return ("scan", "photos", *SCAN)


@case("no sub-folder with images")
def folder_without_images(root: Path):
    emptied(root / "photos")
    return ("scan", "photos", *SCAN)


@case("add an --image-size")
def images_too_large_for_a_network(root: Path):
    for folder in emptied(root / "photos") / "a", root / "photos" / "b":
        folder.mkdir()
        for k in range(2):
            (folder / f"{k}.png").write_bytes(png(5000, 5000, zlib.compress(bytes(5001 * 5000), 1)))
    return ("scan", "photos", "--out", "out")


@case("resized", ends="skip")
def one_large_image_before_many_small_ones(root: Path):
    (root / "photos" / "class0" / "000.png").write_bytes(png(8000, 8000, zlib.compress(bytes(8001 * 8000), 1)))
    return ("scan", "photos", *SCAN)


def _escaped(root: Path) -> None:
    assert "<script>alert" not in (root / "out" / "report.html").read_text()


@case("", ends="well", check=_escaped)
def class_and_file_named_as_markup(root: Path):
    (root / "photos" / "class1").rename(root / "photos" / "<script>alert(1)<&script>")
    (root / "photos" / "class0" / "000.png").rename(root / "photos" / "class0" / "<script>alert(2)<&script>.png")
    return ("scan", "photos", "--epochs", "1", "--out", "out", "--exit-zero")


for name, (make_entry, message) in {
    "pipe for a data set": (pipe, "no image set"),
    "socket for a data set": (bind_socket, "no image set"),
    "text for a data set": (lambda path: path.write_text("x"), "no image set"),
}.items():

    def make_source(root: Path, make_entry=make_entry):
        make_entry(root / "source")
        return ("scan", "source", *SCAN)

    add(name, Case(make_source, message))


@case("does not exist")
def data_set_whose_name_disturbs_a_terminal(root: Path):
    return ("scan", "\x1b[31m\nerror: x\u202e", *SCAN)


@case("no image set")
def device_for_a_data_set(root: Path):
    return ("scan", "/dev/zero", *SCAN)


@case("no regular file")
def queries_that_are_a_pipe_and_a_device(root: Path):
    pipe(root / "query.png")
    (root / "stdin").write_text("query.png\n/dev/zero\n")
    return ("guard", "check", "model.safetensors", "--guard", "guard.safetensors")


@case("cannot be decoded")
def queries_with_control_characters(root: Path):
    (root / "stdin").write_text("\x1b[31mred.png\n\x9bx.png\n")
    return ("guard", "check", "model.safetensors", "--guard", "guard.safetensors")

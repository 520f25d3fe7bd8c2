"""Hostile images, and folders of them."""

import io
import os
import socket
import struct
import zlib
from pathlib import Path

from PIL import Image

from hostile import SCAN, Case, add, case, emptied, flipped, pipe, sparse


def encoded(kind: str, size=(12, 12), mode="L", **more) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise(size, 60).convert(mode).save(buffer, kind, **more)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, body: bytes = b"", *more: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def bmp(width: int, height: int, compression: int = 0, bits: int = 8, body: bytes = b"") -> bytes:
    palette = bytes(4 * 256)
    place = 54 + len(palette)
    head = struct.pack("<2sIHHI", b"BM", place + len(body), 0, 0, place)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(body), 0, 0, 256, 0)
    return head + info + palette + body


def tiff(entries: list[tuple[int, int, int, int]], tail: bytes = b"") -> bytes:
    packed = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + packed + bytes(4) + tail


def plain_tiff(width: int = 12, height: int = 12) -> list[tuple[int, int, int, int]]:
    return [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (278, 4, 1, 1)]


def shared_tags() -> bytes:
    shared = [(40000 + k, 7, 2**20, 8) for k in range(2000)]
    return tiff([*plain_tiff(), *shared], bytes(2**20))


def many_strips() -> bytes:
    count, place = 10**6, 8 + 2 + 8 * 12 + 4
    return tiff([*plain_tiff(12, count), (273, 4, count, place), (279, 4, count, place)], bytes(4 * count))


def many_scans() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (1500, 1500)).save(buffer, "JPEG", progressive=True)
    whole = buffer.getvalue()
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + whole[last:-2] * 2000 + whole[-2:]


def many_exif() -> bytes:
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
    "PNG with a bit turned over": (lambda: flipped(encoded("PNG"), 60), "1 of 91"),
    "PNG of 60000 by 60000": (lambda: png(60000, 60000), "more pixels"),
    "PNG of 9000 by 9000": (lambda: png(9000, 9000, zlib.compress(bytes(9001 * 9000), 1)), "more pixels"),
    "PNG of no pixels": (lambda: png(0, 0), "1 of 91"),
    "PNG with a text that swells": (
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
    "TIFF with directories in a circle": (lambda: b"II*\0\x08\0\0\0\0\0\x08\0\0\0", "1 of 91"),
    "TIFF with a directory far away": (lambda: b"II*\0\xff\xff\xff\x7f", "1 of 91"),
    "TIFF whose tags share a megabyte": (shared_tags, "more in its tags"),
    "TIFF of a million strips": (many_strips, "more pieces"),
    "WEBP cut off": (lambda: encoded("WEBP", (40, 40))[:100], "1 of 91"),
    "WEBP with a bit turned over": (lambda: flipped(encoded("WEBP", (40, 40)), 16), "1 of 91"),
}


POISON = ("poison", "photos", "--target", "class1", "--count", "3", "--out", "out", "--skip-broken")
"""The command that is over soonest when all goes well."""


def lay(content, arguments=("scan", "photos", *SCAN)):
    def make(root: Path) -> tuple[str, ...]:
        (root / "photos" / "class1" / "odd.png").write_bytes(content())
        return arguments

    return make


for name, (content, reason) in IMAGES.items():
    add(name, Case(lay(content), reason))
    add(f"{name}, skipped", Case(lay(content, POISON), "skipped: 1 of 91 images", "skip"))


def entry(make_entry, arguments=("scan", "photos", *SCAN)):
    def make(root: Path) -> tuple[str, ...]:
        make_entry(root / "photos" / "class1" / "odd.png")
        return arguments

    return make


def listening(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the address of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


ENTRIES = {
    "pipe in a folder": (pipe, "no regular file"),
    "socket in a folder": (listening, "no regular file"),
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


def named(name: str | bytes, told: str, *, folder: bool = False):
    def make(root: Path) -> tuple[str, ...]:
        path = root / "photos" / ("" if folder else "class1") / os.fsdecode(name)
        if folder:
            path.mkdir()
            path /= "x.png"
        path.write_bytes(encoded("PNG"))
        return ("scan", "photos", *SCAN)

    return Case(make, told)


for title, name in {
    "newline": "a\nb.png",
    "escape sequence": "a\x1b[31mb.png",
    "bell and carriage return": "a\x07\rb.png",
    "control sequence of one byte": "a\x9b31mb.png",
    "direction turned around": "a\u202egnp.exe.png",
    "line separator": "a\u2028b.png",
    "bytes of no text": b"a\xff\xfe.png",
}.items():
    add(f"file name with a {title}", named(name, "holds a control character"))
    bare = name.replace(b".png" if isinstance(name, bytes) else ".png", b"" if isinstance(name, bytes) else "")
    add(f"class for a terminal: {title}", named(bare, "holds a control character", folder=True))


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
def folder_that_links_to_what_holds_it(root: Path):
    (root / "photos" / "class1" / "more").symlink_to("..")
    return ("scan", "photos", *SCAN)


@case("no sub-folder with images")
def folder_without_images(root: Path):
    emptied(root / "photos")
    return ("scan", "photos", *SCAN)


@case("add an --image-size")
def images_that_no_network_can_be_shown(root: Path):
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


for name, (make_entry, told) in {
    "pipe for a data set": (pipe, "no image set"),
    "socket for a data set": (listening, "no image set"),
    "text for a data set": (lambda path: path.write_text("x"), "no image set"),
    "data set whose name is an attack": (lambda path: None, "does not exist"),
}.items():

    def make_given(root: Path, make_entry=make_entry):
        make_entry(root / "given")
        return ("scan", "given" if (root / "given").exists() else "\x1b[31m\nerror: x\u202e", *SCAN)

    add(name, Case(make_given, told))


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

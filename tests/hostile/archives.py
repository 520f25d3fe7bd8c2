"""Hostile archives of NumPy, and CIFAR batches."""

import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np

from hostile import RUNS_CODE, SCAN, Case, add, case, flipped, pipe, sparse

IMAGES, LABELS = np.zeros((6, 4, 4), np.uint8), np.arange(6) % 3


def npz(**arrays):
    """Return the function of a case: it writes an archive with these arrays beside good ones."""

    def make(root: Path) -> tuple[str, ...]:
        values = {name: value() if callable(value) else value for name, value in arrays.items()}
        np.savez_compressed(root / "x.npz", **{"images": IMAGES, "labels": LABELS, **values})
        return ("scan", "x.npz", *SCAN)

    return make


def npy(header: str, content: bytes = b"") -> bytes:
    """Return a ``.npy`` file with this header and content."""
    padded = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(padded)) + padded + content


def members(**contents: bytes):
    """Return the function of a case: it writes an archive with these ``.npy`` files."""

    def make(root: Path) -> tuple[str, ...]:
        with zipfile.ZipFile(root / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in contents.items():
                archive.writestr(f"{name}.npy", content)
        return ("scan", "x.npz", *SCAN)

    return make


def plain(array: np.ndarray) -> bytes:
    """Return an array as a ``.npy`` file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


HUGE = npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 1000, 1000), }", bytes(100))
CODE = npy("{'descr': __import__('os').system('echo ran > marker'), 'fortran_order': False, 'shape': (1,), }")
PICKLED = npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", RUNS_CODE)
NOTHING = npy("{'descr': '|S0', 'fortran_order': False, 'shape': (1000000000000,), }")

for name, (make, message) in {
    "npz that holds a pickle": (members(images=PICKLED, labels=plain(LABELS)), "pickled objects"),
    "npz whose header is code": (members(images=CODE, labels=plain(LABELS)), "no .npz of plain arrays"),
    "npz whose header claims a terabyte": (members(images=HUGE, labels=plain(LABELS)), "does not hold the array"),
    "npz of a trillion empty names": (
        members(images=plain(IMAGES), labels=plain(LABELS), class_names=NOTHING),
        "does not hold the array",
    ),
    "npz that is a bomb": (npz(images=lambda: np.zeros((75, 2000, 2000), np.uint8)), "it would grow"),
    "npz of large images": (npz(images=lambda: np.zeros((6, 1100, 1100), np.uint8)), "add an --image-size"),
    "npz of images without pixels": (npz(images=np.zeros((6, 0, 4), np.uint8)), "0×4 pixels"),
    "npz of fractions": (npz(images=IMAGES / 2), "images are float64"),
    "npz with a label of a billion": (npz(labels=LABELS + 10**9), "the largest label is"),
    "npz with a label below zero": (npz(labels=LABELS - 1), "label -1 of sample 0 is outside"),
    "npz with labels beyond the numbers": (npz(labels=np.full(6, 2**64 - 1, np.uint64)), "the largest label is"),
    "npz with labels of text": (npz(labels=LABELS.astype(str)), "labels are"),
    "npz with more labels than images": (npz(labels=np.arange(60) % 3), "6 images but 60 labels"),
    "npz with pickled names": (npz(class_names=np.array([{}, 1, 2], dtype=object)), "pickled objects"),
    "npz with names for a terminal": (npz(class_names=np.array(["a", "b", "\x1b]0;x\x07"])), "control character"),
    "npz with names of a megabyte": (npz(class_names=np.array(["a", "b", "c" * 10**6])), "give short texts"),
    "npz with a million names": (npz(class_names=np.arange(10**6).astype(str)), "more than 100,000 class names"),
    "npz with ids of several lines": (npz(ids=np.array(["a\nb", *"cdefg"])), "control character"),
}.items():
    add(name, Case(make, message))


def damaged(damage):
    def make(root: Path) -> tuple[str, ...]:
        whole = (root / "photos.npz").read_bytes()
        (root / "photos.npz").write_bytes(damage(whole))
        return ("scan", "photos.npz", *SCAN)

    return make


def with_false_size(whole: bytes) -> bytes:
    """Return an archive that claims, in both of its headers, that its first file has ten bytes."""
    size = struct.pack("<I", next(iter(zipfile.ZipFile(io.BytesIO(whole)).infolist())).file_size)
    return whole.replace(size, struct.pack("<I", 10))


for name, damage in {
    "npz of text": lambda whole: b"no archive",
    "npz cut off": lambda whole: whole[: len(whole) // 2],
    "npz with a flipped bit": lambda whole: flipped(whole, 300),
    "npz that lies about a size": with_false_size,
    "npz of an unknown compression": lambda whole: whole.replace(b"-\0\0\0\x08\0", b"-\0\0\0\x63\0"),
}.items():
    add(name, Case(damaged(damage), "no .npz of plain arrays"))


@case("no regular file")
def pipe_for_an_npz(root: Path):
    pipe(root / "x.npz")
    return ("scan", "x.npz", *SCAN)


@case("no regular file")
def folder_for_an_npz(root: Path):
    (root / "x.npz").mkdir()
    return ("scan", "x.npz", *SCAN)


# CIFAR


def batch(content, name: str = "data_batch_1"):
    """Return the function of a case: it writes a batch with this content."""

    def make(root: Path) -> tuple[str, ...]:
        (root / name).write_bytes(content() if callable(content) else content)
        return ("scan", name, *SCAN)

    return make


def pickled_batch(labels=b"]", data=b"N") -> bytes:
    """Return the pickle of a batch, given the instructions for its labels and for its data."""
    return b"\x80\x02}(U\x06labels" + labels + b"U\x04data" + data + b"u."


def text(value: bytes) -> bytes:
    """Return the instruction for a text of Python 2."""
    return b"T" + struct.pack("<I", len(value)) + value


def doubling(times: int) -> bytes:
    """Return instructions for a tuple that is nested ``times`` times, and contains each tuple twice."""
    return b")" + b"".join(b"q" + bytes([k]) + b"h" + bytes([k]) + b"\x86" for k in range(times))


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\0\x85U\x01bt"
TYPE = b"cnumpy\ndtype\n(U\x02u1K\0K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
OBJECTS = TYPE.replace(b"u1", b"O8")


def array(shape: bytes, kind: bytes, content: bytes) -> bytes:
    """Return the instructions for an array, given those for its shape, its type and its content."""
    return ARRAY + b"R(K\x01" + shape + kind + b"\x89" + content + b"tb"


LARGE = b"(J\0\0\0\x40M\0\x0ct"

for name, (content, message) in {
    "batch that runs code": (RUNS_CODE, "it asks for posix.system"),
    "batch that runs code by an old instruction": (b"cos\nsystem\n(S'echo ran > marker'\ntR.", "it asks for os.system"),
    "batch that makes an instance": (b"(S'echo ran > marker'\nios\nsystem\n.", "instruction INST"),
    "batch that makes an object": (b"cos\nsystem\n(U\x11echo ran > markert\x81.", "it asks for os.system"),
    "batch that calls a number": (pickled_batch(data=b"K\x01)R"), "it calls something that is no function"),
    "batch that calls numpy's type as an array": (pickled_batch(data=b"cnumpy\nndarray\n(K\x01tR"), "broken pickle"),
    "batch that claims a terabyte": (pickled_batch(b"](K\1K\2e", array(LARGE, TYPE, text(bytes(9)))), "cannot reshape"),
    "batch of objects": (pickled_batch(b"](K\1K\2e", array(b"K\x01\x85", OBJECTS, b"]")), "not of numbers"),
    "batch whose array is a list": (pickled_batch(b"](K\1K\2e", array(b"K\x01\x85", TYPE, b"]")), "array of objects"),
    "batch that encodes one text a million times": (
        lambda: pickled_batch(
            data=b"(c_codecs\nencode\nq\1X" + struct.pack("<I", 10**6) + b"a" * 10**6 + b"q\2"
            b"X\6\0\0\0latin1q\3" + b"h\1h\2h\3\x86R" * 10**5 + b"l"
        ),
        "it holds more than",
    ),
    "batch whose labels hold themselves": (pickled_batch(b"]q\0h\0a"), "no list of numbers"),
    "batch whose labels double fifty times": (pickled_batch(b"](" + doubling(60) + b"e"), "no list of numbers"),
    "batch with a key that takes for ever to hash": (
        b"\x80\x02}(" + doubling(60) + b"K\x01u.",
        "neither text nor small number",
    ),
    "batch with keys of one hash": (
        b"\x80\x02}("
        + b"".join(b"\x8a\x10" + (k * (2**61 - 1)).to_bytes(16, "little") + b"N" for k in range(9))
        + b"u.",
        "neither text nor small number",
    ),
    "batch with a memo of four billion places": (pickled_batch(b"]r\xff\xff\xff\xff"), "its 'data' is not one row"),
    "batch nested a million times": (lambda: b"\x80\x02" + b"]" * 10**6 + b"a" * (10**6 - 1) + b".", "no dictionary"),
    "batch of three million instructions": (lambda: b"\x80\x02" + b"N" * 3 * 10**6 + b".", "instructions"),
    "batch that claims a text of a terabyte": (b"\x8e" + struct.pack("<Q", 2**40) + b"x.", "no CIFAR batch"),
    "batch with a number of a million digits": (lambda: b"L" + b"7" * 10**6 + b"L\n.", "no CIFAR batch"),
    "batch with a persistent id": (b"\x80\x02U\x01xQ.", "instruction BINPERSID"),
    "batch that takes from an empty stack": (b"\x80\x02tR.", "broken pickle"),
    "batch without an end": (b"\x80\x02}", "no CIFAR batch"),
    "batch of text": (b"no pickle", "no CIFAR batch"),
    "batch that is empty": (b"", "no CIFAR batch"),
    "batch with a label of a billion": (pickled_batch(b"](J\0\0\0\x40e"), "no list of numbers from 0 to"),
    "batch with labels of text": (pickled_batch(b"](U\x01ae"), "no list of numbers from 0 to"),
}.items():
    add(name, Case(batch(content), message))

GOOD = pickle.dumps({b"data": np.zeros((3, 3072), np.uint8), b"labels": [0, 1, 2]}, protocol=2)
add("batch cut off", Case(batch(GOOD[:-2000]), "no CIFAR batch"))
add("batch with a flipped bit", Case(batch(flipped(GOOD, 30)), "no CIFAR batch"))
add("binary batch of a wrong length", Case(batch(bytes(3074), "data_batch_1.bin"), "no whole CIFAR batch"))


@case("batches have 200,000,000 bytes together at most")
def binary_batch_of_a_sparse_terabyte(root: Path):
    sparse(root / "data_batch_1.bin", 3073 * 10**8)
    return ("scan", "data_batch_1.bin", *SCAN)


@case("batches have 200,000,000 bytes together at most")
def many_sparse_batches(root: Path):
    (root / "cifar").mkdir()
    for k in range(40):
        sparse(root / "cifar" / f"data_batch_{k}.bin", 3073 * 10**4)
    return ("scan", "cifar", *SCAN)


@case("no regular file")
def pipe_among_batches(root: Path):
    (root / "cifar").mkdir()
    pipe(root / "cifar" / "data_batch_1")
    return ("scan", "cifar", *SCAN)


def meta(content: bytes):
    """Return the function of a case: it writes this file of class names beside a good batch."""

    def make(root: Path) -> tuple[str, ...]:
        (root / "cifar").mkdir()
        (root / "cifar" / "data_batch_1").write_bytes(GOOD)
        (root / "cifar" / "batches.meta").write_bytes(content)
        return ("scan", "cifar", *SCAN)

    return make


for name, (content, message) in {
    "names of classes that run code": (RUNS_CODE, "it asks for posix.system"),
    "names of classes for a terminal": (pickle.dumps({"label_names": [b"a", b"b", b"\x1b[2Jc"]}), "control character"),
    "names of classes that are numbers": (pickle.dumps({"label_names": [1, 2, 3]}), "no list of names"),
    "names of too few classes": (pickle.dumps({"label_names": [b"a"]}), "is outside 0"),
}.items():
    add(name, Case(meta(content), message))


@case("no regular file")
def names_of_classes_from_a_pipe(root: Path):
    meta(b"")(root)
    (root / "cifar" / "batches.meta").unlink()
    os.mkfifo(root / "cifar" / "batches.meta.txt")
    return ("scan", "cifar", *SCAN)

"""Hostile weights, checkpoints and guards."""

import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from conftest import Linear
from hostile import RUNS_CODE, Case, Marker, add, case, flipped, pipe, sparse
from hostile.archives import doubling

NETWORK = ("--network", "conftest:linear_network")


def scan(model: str) -> tuple[str, ...]:
    """Return the arguments of a scan with a network."""
    return ("scan", "photos", "--model", model, *NETWORK, "--out", "out", "--exit-zero")


# safetensors


def safetensors(header: object, content: bytes = b"", length: int | None = None) -> bytes:
    """Return a safetensors file that claims a header of ``length`` bytes, by default the right number."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + content


def tensor(kind: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
    """Return the entry of a tensor in the header."""
    return {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}


for name, content in {
    "weights of text": b"no weights",
    "weights that are empty": b"",
    "weights with a header of exabytes": safetensors({}, length=2**60),
    "weights with a header that is no JSON": safetensors(b"{" * 100),
    "weights with a header nested deeply": safetensors(b'{"a":' * 10**5),
    "weights that overlap": safetensors({"a": tensor("F32", [2], 0, 8), "b": tensor("F32", [2], 4, 12)}, bytes(12)),
    "weights that lie outside of the file": safetensors({"a": tensor("F32", [2**30], 0, 2**32)}, bytes(8)),
    "weights with a shape that lies": safetensors({"a": tensor("F32", [2**40], 0, 8)}, bytes(8)),
    "weights with a shape beyond the numbers": safetensors({"a": tensor("F32", [2**33, 2**33], 0, 8)}, bytes(8)),
    "weights of an unknown kind": safetensors({"a": tensor("X9", [2], 0, 8)}, bytes(8)),
}.items():

    def make_weights(root: Path, content=content) -> tuple[str, ...]:
        (root / "x.safetensors").write_bytes(content)
        return scan("x.safetensors")

    add(name, Case(make_weights, "not a whole safetensors file"))


def damaged(name: str, damage, arguments):
    def make(root: Path) -> tuple[str, ...]:
        whole = (root / name).read_bytes()
        (root / name).write_bytes(damage(whole))
        return arguments

    return make


SCAN_GOOD = ("scan", "photos", "--model", "model.safetensors", "--out", "out", "--exit-zero")
for name, damage in {
    "weights cut off": lambda whole: whole[:-100],
    "weights with a flipped bit in their header": lambda whole: flipped(whole, 8),
}.items():
    add(name, Case(damaged("model.safetensors", damage, SCAN_GOOD), "not a whole safetensors file"))


def weights(change):
    """Return the function of a case: it writes the weights of ``Linear`` after a change."""

    def make(root: Path) -> tuple[str, ...]:
        tensors = dict(Linear().state_dict())
        change(tensors)
        save_file(tensors, root / "x.safetensors")
        return scan("x.safetensors")

    return make


for name, (change, message) in {
    "weights of whole numbers": (
        lambda tensors: tensors.update({"out.bias": torch.ones(3, dtype=torch.int64)}),
        "int64",
    ),
    "weights of truth values": (lambda tensors: tensors.update({"out.bias": torch.ones(3, dtype=torch.bool)}), "bool"),
    "weights of another shape": (lambda tensors: tensors.update({"out.bias": torch.ones(4)}), "do not fit the network"),
    "weights with one too many": (
        lambda tensors: tensors.update({"\x1b[31m": torch.ones(4)}),
        "do not fit the network",
    ),
    "weights that are no numbers": (
        lambda tensors: tensors.update({"out.bias": torch.full((3,), torch.nan)}),
        "are not finite",
    ),
    "weights beyond all numbers": (
        lambda tensors: tensors.update({"hidden.weight": torch.full((8, 144), torch.inf)}),
        "are not finite",
    ),
}.items():
    add(name, Case(weights(change), message))


def described(change):
    """Return the function of a case: it writes the good network after a change of its description."""

    def make(root: Path) -> tuple[str, ...]:
        with safe_open(root / "model.safetensors", framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            fields = json.loads(file.metadata()["undoor"])
        changed = change(fields)
        text = changed if isinstance(changed, str) else json.dumps(fields)
        save_file(tensors, root / "model.safetensors", metadata={"undoor": text})
        return SCAN_GOOD

    return make


WHOLE = "not a whole safetensors file"
for name, (change, message) in {
    "network that names a function": (
        lambda fields: fields.update(network="os:system"),
        "name a function that returns it with --network",
    ),
    "network described by a list": (lambda fields: "[]", WHOLE),
    "network described too deeply": (lambda fields: '{"a":' * 10**5, "nested too deeply"),
    "network for images of fractions": (lambda fields: fields.update(shape=[1.0, 12, 12]), "impossible"),
    "network for images of 4 billion pixels": (lambda fields: fields.update(shape=[1, 65536, 65536]), "more than"),
    "network without classes": (lambda fields: fields.update(class_names=[]), "names no classes"),
    "network for classes that are numbers": (lambda fields: fields.update(class_names=[1, 2, 3]), "is no text"),
    "network for a million classes": (
        lambda fields: fields.update(class_names=list(map(str, range(10**6)))),
        "more than",
    ),
    "network for classes of a terminal": (lambda fields: fields.update(class_names=["a", "b", "\x1b[31mc"]), "control"),
    "network for classes of megabytes": (
        lambda fields: fields.update(class_names=["a", "b", "c" * 10**6]),
        "up to 500",
    ),
    "network for other classes": (
        lambda fields: fields.update(class_names=["a", "b", "<b>c"]),
        "was trained for the classes",
    ),
    "network with a recipe of text": (lambda fields: fields.update(recipe="fast"), "no recipe"),
}.items():
    add(name, Case(described(change), message))


@case("is no file")
def pipe_for_weights(root: Path):
    pipe(root / "x.safetensors")
    return scan("x.safetensors")


@case("is no file")
def folder_for_weights(root: Path):
    (root / "x.safetensors").mkdir()
    return scan("x.safetensors")


@case("not a whole safetensors file")
def sparse_terabyte_for_weights(root: Path):
    sparse(root / "x.safetensors")
    return scan("x.safetensors")


@case("not a whole safetensors file")
def pipe_where_a_network_is_to_be_written(root: Path):
    pipe(root / "y.safetensors")
    return ("train", "photos", "--epochs", "1", "--out", "y.safetensors")


# Files of torch.save


def saved(value: object, **options) -> bytes:
    """Return the file that ``torch.save`` writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def zipped(pickled: bytes, **members: bytes) -> bytes:
    """Return a checkpoint of this pickle and further members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {"data.pkl": pickled, "version": b"3\n", **members}.items():
            archive.writestr(f"x/{name}", content)
    return buffer.getvalue()


def badly_packed(compression: int) -> bytes:
    """Return a checkpoint whose pickle cannot be unpacked."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("x/data.pkl", pickle.dumps({"a": list(range(100))}, 2))
    whole = bytearray(buffer.getvalue())
    start = 30 + len("x/data.pkl")  # behind the local header
    whole[start : start + 9] = b"\xff" * 9
    return bytes(whole)


def old(*pickles: bytes) -> bytes:
    """Return a file as torch wrote it before version 1.6."""
    head = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    return b"".join([*head, *pickles])


def rebuilt(numbers: int, size: int, offset: int = 0) -> bytes:
    """Return the pickle of a dictionary with a tensor of ``size`` numbers at an offset in a storage of ``numbers``."""
    longs = (b"\x8a\x09" + value.to_bytes(9, "little") for value in (numbers, offset, size, 1))
    count, start, shape, stride = longs
    storage = b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpu" + count + b"tQ"
    return (
        b"\x80\x02}U\x01actorch._utils\n_rebuild_tensor_v2\n(" + storage + start + shape + b"\x85" + stride
        + b"\x85\x89ccollections\nOrderedDict\n)RtRs."
    )  # fmt: skip


def scripted() -> bytes:
    """Return an archive of TorchScript."""
    return zipped(b"\x80\x02}.", **{"constants.pkl": b"\x80\x02).", "code/x.py": b"import os"})


def with_two_pickles() -> bytes:
    """Return a checkpoint with a second pickle, whose name torch takes for that of the first."""
    return zipped(b"\x80\x02}.", **{"DATA.PKL": RUNS_CODE})


PICKLED = "is a pickled object: loading it would run code"
BROKEN = "is no whole file of tensors"
for name, (content, message) in {
    "checkpoint that runs code": (lambda: saved({"a": Marker()}), PICKLED),
    "checkpoint in the old format that runs code": (
        lambda: saved({"a": Marker()}, _use_new_zipfile_serialization=False),
        PICKLED,
    ),
    "checkpoint that is a bare pickle": (lambda: RUNS_CODE, PICKLED),
    "checkpoint that is a whole module": (lambda: saved(Linear()), PICKLED),
    "checkpoint in the old format that is a whole module": (
        lambda: saved(Linear(), _use_new_zipfile_serialization=False),
        PICKLED,
    ),
    "checkpoint with a pickle beside it": (with_two_pickles, "two files of one name"),
    "checkpoint that is a program": (scripted, "none of tensors"),
    "checkpoint of text": (lambda: b"no weights", BROKEN),
    "checkpoint that is empty": (lambda: b"", BROKEN),
    "checkpoint that is an archive": (lambda: b"PK\x03\x04" + bytes(100), BROKEN),
    "checkpoint without tensors": (lambda: saved({"epoch": 3}), "no state_dict"),
    "checkpoint that is a list": (lambda: saved([torch.ones(2)]), "no state_dict"),
    "checkpoint that is a bomb": (lambda: zipped(b"\x80\x02}.", **{"data/0": bytes(2 * 10**8)}), "it would grow"),
    "checkpoint that asks for gigabytes of zeros": (
        lambda: zipped(
            b"\x80\x02}U\x01ac__builtin__\nbytearray\n\x8a\x05" + (9 * 10**9).to_bytes(5, "little") + b"\x85Rs."
        ),
        PICKLED,
    ),
    "checkpoint with a key that takes for ever to hash": (
        lambda: zipped(b"\x80\x02}(" + doubling(60) + b"K\x01u."),
        "neither text nor small number",
    ),
    "checkpoint whose storage claims gigabytes": (
        lambda: old(rebuilt(10**10, 4), pickle.dumps(["0"], 2)),
        "do not fit into the file",
    ),
    "checkpoint whose tensor exceeds its storage": (
        lambda: zipped(rebuilt(4, 10**10), **{"data/0": bytes(16)}),
        "does not fit into its storage",
    ),
    "checkpoint whose tensor begins behind its storage": (
        lambda: zipped(rebuilt(4, 4, 10**10), **{"data/0": bytes(16)}),
        "does not fit into its storage",
    ),
    "checkpoint without its storage": (lambda: zipped(rebuilt(1, 1)), BROKEN),
    "checkpoint whose pickle is no deflate": (lambda: badly_packed(zipfile.ZIP_DEFLATED), BROKEN),
    "checkpoint whose pickle is no LZMA": (lambda: badly_packed(zipfile.ZIP_LZMA), BROKEN),
    "checkpoint whose pickle is no bzip2": (lambda: badly_packed(zipfile.ZIP_BZIP2), BROKEN),
    "checkpoint with an unknown instruction": (lambda: zipped(b"\x80\x02\x82\x01."), "instruction EXT1"),
}.items():

    def make_checkpoint(root: Path, content=content) -> tuple[str, ...]:
        (root / "x.pt").write_bytes(content())
        return scan("x.pt")

    add(name, Case(make_checkpoint, message))

for name, damage in {
    "checkpoint cut off": lambda whole: whole[:-300],
    "checkpoint whose beginning is cut off": lambda whole: whole[64:],
    "checkpoint with a flipped bit in its directory": lambda whole: flipped(whole, len(whole) - 22),
}.items():
    add(name, Case(damaged("linear.pt", damage, scan("linear.pt")), BROKEN))


@case(PICKLED)
def exported_program(root: Path):
    (root / "x.pt2").write_bytes(zipped(RUNS_CODE))
    return scan("x.pt2")


@case(PICKLED)
def joblib_file(root: Path):
    (root / "x.joblib").write_bytes(RUNS_CODE)
    return ("inspect", "x.joblib", *NETWORK, "--data", "photos", "--out", "out")


@case(PICKLED)
def pickle_for_pruning(root: Path):
    (root / "x.bin").write_bytes(RUNS_CODE)
    return ("prune", "x.bin", *NETWORK, "--data", "photos", "--out", "out.safetensors")


@case("is no file")
def pipe_for_a_checkpoint(root: Path):
    pipe(root / "x.pt")
    return scan("x.pt")


# Checkpoints from which a training resumes

TRAIN = ("train", "photos", "--epochs", "2", "--out", "new.safetensors")


def resumed(change):
    """Return the function of a case: it writes the good checkpoint of a training after a change."""

    def make(root: Path) -> tuple[str, ...]:
        path = root / "new.checkpoint"
        state = torch.load(path, weights_only=True)
        changed = change(state)
        path.write_bytes(changed if isinstance(changed, bytes) else saved(state))
        return TRAIN

    return make


def other_moments(state: dict) -> None:
    """Give the moments of the optimiser another shape."""
    for moments in state["optimizer"]["state"].values():
        moments["momentum_buffer"] = torch.ones(2**10, 3)


for name, (change, message) in {
    "training that resumes from code": (lambda state: saved({"identity": Marker()}), "is no checkpoint"),
    "training that resumes from a bare pickle": (lambda state: RUNS_CODE, "is no checkpoint"),
    "training that resumes from text": (lambda state: b"x", "is no checkpoint"),
    "training that resumes from another identity": (lambda state: state.update(identity=torch.ones(3)), "other data"),
    "training that resumes after its end": (lambda state: state.update(epoch=10**9), "no state of this training"),
    "training that resumes before its beginning": (lambda state: state.update(epoch=-5), "no state of this training"),
    "training that resumes without an epoch": (lambda state: state.pop("epoch") and None, "no state of this training"),
    "training that resumes without weights": (lambda state: state.update(model={}), "no state of this training"),
    "training that resumes with other moments": (other_moments, "no state of this training"),
    "training that resumes with moments of text": (
        lambda state: state.update(optimizer={"state": {0: {"momentum_buffer": "x"}}}),
        "no state of this training",
    ),
}.items():
    add(name, Case(resumed(change), message))


@case("is no checkpoint")
def training_that_resumes_from_a_pipe(root: Path):
    pipe(root / "new.checkpoint")
    return TRAIN


@case("is no checkpoint")
def training_that_resumes_from_a_folder(root: Path):
    (root / "new.checkpoint").unlink()
    (root / "new.checkpoint").mkdir()
    return TRAIN


# Guards

CHECK = ("guard", "check", "model.safetensors", "--guard", "guard.safetensors", "--data", "photos", "--exit-zero")


def guard(change):
    """Return the function of a case: it writes the good guard after a change of its tensors or its description."""

    def make(root: Path) -> tuple[str, ...]:
        with safe_open(root / "guard.safetensors", framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            fields = json.loads(file.metadata()["undoor-guard"])
        changed = change(tensors, fields)
        text = changed if isinstance(changed, str) else json.dumps(fields)
        save_file(tensors, root / "guard.safetensors", metadata={"undoor-guard": text})
        return CHECK

    return make


GUARD = "holds no whole guard"
for name, (change, message) in {
    "guard without a network": (lambda tensors, fields: fields.pop("fingerprint") and None, "guards another network"),
    "guard described by a list": (lambda tensors, fields: "[]", GUARD),
    "guard described too deeply": (lambda tensors, fields: "[" * 10**5, "nested too deeply"),
    "guard of another version": (lambda tensors, fields: fields.update(schema_version=9), "another version"),
    "guard of other layers": (lambda tensors, fields: fields.update(layers=["\x1b[31m"] * 9), GUARD),
    "guard of layers that are a number": (lambda tensors, fields: fields.update(layers=7), GUARD),
    "guard with an unknown statistic": (lambda tensors, fields: fields.update(statistic="x"), "impossible"),
    "guard with a threshold of text": (lambda tensors, fields: fields.update(threshold="x"), GUARD),
    "guard with classes for a terminal": (
        lambda tensors, fields: fields.update(class_names=["\x1b", "b", "c"]),
        "control",
    ),
    "guard with more classes": (lambda tensors, fields: fields.update(class_names=list("abcd")), "instead of finite"),
    "guard without centres": (lambda tensors, fields: tensors.pop("centres") is None, GUARD),
    "guard with other centres": (lambda tensors, fields: tensors.update(centres=torch.ones(9, 9)), "instead of finite"),
    "guard with scales that are no numbers": (
        lambda tensors, fields: tensors.update(scales=tensors["scales"] * torch.nan),
        "instead of finite",
    ),
    "guard with axes of another size": (lambda tensors, fields: tensors.update({"000.axes": torch.ones(7, 2)}), GUARD),
    "guard with axes of whole numbers": (
        lambda tensors, fields: tensors.update({"000.mean": tensors["000.mean"].long()}),
        GUARD,
    ),
    "guard for images of no size": (lambda tensors, fields: fields.update(shape=[1, -12, 12]), "impossible"),
}.items():
    add(name, Case(guard(change), message))

add("guard of text", Case(damaged("guard.safetensors", lambda whole: b"x", CHECK), GUARD))
add("guard cut off", Case(damaged("guard.safetensors", lambda whole: whole[:-50], CHECK), GUARD))


@case("is no file")
def pipe_for_a_guard(root: Path):
    (root / "guard.safetensors").unlink()
    os.mkfifo(root / "guard.safetensors")
    return CHECK

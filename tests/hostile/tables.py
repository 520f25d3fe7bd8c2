"""Hostile Parquet files, and data sets of the hub."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hostile import SCAN, Case, add, case, flipped, pipe, sparse
from hostile.images import encoded

IMAGE = encoded("PNG")
ROWS = 6


def parquet(metadata: object = None, **columns):
    """Return the function of a case: it writes a table with these columns beside good ones; None removes a column."""

    def make(root: Path) -> tuple[str, ...]:
        good = {"img": [IMAGE] * ROWS, "label": [0, 1, 2] * (ROWS // 3)}
        table = pa.table({name: values for name, values in {**good, **columns}.items() if values is not None})
        if metadata is not None:
            text = metadata if isinstance(metadata, bytes) else json.dumps(metadata).encode()
            table = table.replace_schema_metadata({"huggingface": text})
        pq.write_table(table, root / "x.parquet")
        return ("scan", "x.parquet", *SCAN)

    return make


def names(values: object) -> dict:
    return {"info": {"features": {"label": {"names": values}}}}


for name, (make, message) in {
    "Parquet with a label of a billion": (parquet(label=[10**9] * ROWS), "the largest label is"),
    "Parquet with a label below zero": (parquet(label=[-1] * ROWS), "label -1 of sample 0 is outside"),
    "Parquet with fractions for labels": (parquet(label=[0.5] * ROWS), "labels are integers or strings"),
    "Parquet with lists for labels": (parquet(label=[[0]] * ROWS), "labels are integers or strings"),
    "Parquet without labels": (parquet(label=None), "has no label column"),
    "Parquet with labels left out": (parquet(label=pa.array([0, None] * 3)), "hold no label"),
    "Parquet with labels for a terminal": (parquet(label=["a", "b", "\x1b[31mc"] * 2), "control character"),
    "Parquet with labels of a megabyte": (parquet(label=["a", "b", "c" * 10**6] * 2), "give it up to 500"),
    "Parquet without images": (parquet(img=None), "has no column of images"),
    "Parquet with images left out": (parquet(img=pa.array([IMAGE, None] * 3)), "hold no image"),
    "Parquet with numbers for images": (parquet(img=[{"bytes": 1, "path": "x"}] * ROWS), "cannot be decoded"),
    "Parquet with paths for images": (
        parquet(
            img=pa.array(
                [{"path": "/etc/passwd", "bytes": None}] * ROWS,
                pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
            )
        ),
        "hold no image",
    ),
    "Parquet with text for images": (parquet(img=[b"<script>"] * ROWS), "none of the formats"),
    "Parquet with a truth of numbers": (parquet(poisoned=[7] * ROWS, original_label=[0] * ROWS), "hold no truth"),
    "Parquet with a truth left out": (
        parquet(poisoned=pa.array([True, None] * 3), original_label=[0] * ROWS),
        "hold nothing",
    ),
    "Parquet with a truth of no class": (
        parquet(poisoned=[True] * ROWS, original_label=[9] * ROWS),
        "labels outside",
    ),
    "Parquet of two thousand columns": (parquet(**{f"c{k}": [0] * ROWS for k in range(2000)}), " columns"),
    "Parquet whose metadata is no JSON": (parquet(b"{"), "metadata for the hub cannot be read"),
    "Parquet whose metadata is a list": (parquet([]), "metadata for the hub cannot be read"),
    "Parquet whose metadata is nested deeply": (parquet(b'{"a":' * 10**5 + b"1" + b"}" * 10**5), "nested too deeply"),
    "Parquet whose features are text": (parquet({"info": {"features": "label"}}), "metadata for the hub"),
    "Parquet whose names are a number": (parquet(names(7)), "names no list of classes"),
    "Parquet whose names are lists": (parquet(names([["a"], ["b"], ["c"]])), "is no text"),
    "Parquet whose names are for a terminal": (parquet(names(["a", "b", "\x1b[31m"])), "control character"),
    "Parquet with too few names": (parquet(names(["a"])), "is outside 0"),
    "Parquet with a million names": (parquet(names(list(map(str, range(10**6))))), "more than 100,000 class names"),
}.items():
    add(name, Case(make, message))


def table(make_table, **settings):
    """Return the function of a case: it writes a table with these settings."""

    def make(root: Path) -> tuple[str, ...]:
        pq.write_table(make_table(), root / "x.parquet", **settings)
        return ("scan", "x.parquet", *SCAN)

    return make


def repeated(rows: int) -> pa.Table:
    """Return a table with the same image of a megabyte in every row, which is stored once in the file."""
    image = IMAGE + np.random.default_rng(0).bytes(10**6)
    column = pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), pa.array([image]))
    return pa.table({"img": column, "label": np.arange(rows) % 3})


def nested(depth: int) -> pa.Table:
    kind = pa.int64()
    for _ in range(depth):
        kind = pa.struct([("a", kind)])
    return pa.table({"img": [IMAGE] * 6, "label": pa.nulls(6, kind)})


def very_deep(root: Path) -> tuple[str, ...]:
    """A schema with groups that are nested so deeply that a recursive reader crashes; in Thrift's compact protocol."""
    size = 20_000
    name = b"\x18\x01a"
    group, leaf = b"\x35\x02" + name + b"\x15\x02\x00", b"\x15\x02\x25\x02" + name + b"\x00"
    count = bytes([0xFC, (size + 2) & 127 | 128, (size + 2) >> 7 & 127 | 128, (size + 2) >> 14])
    footer = b"\x15\x04\x19" + count + b"\x48\x01r\x15\x02\x00" + group * size + leaf + b"\x16\x00\x19\x0c\x00"
    (root / "x.parquet").write_bytes(b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    return ("scan", "x.parquet", *SCAN)


def understated(root: Path) -> tuple[str, ...]:
    """A bomb whose metadata claims a hundred bytes; only the headers of its pages state their size."""
    path = root / "x.parquet"
    bomb = pa.table({"img": [bytes(5 * 10**7)] * 8, "label": [0] * 8})
    pq.write_table(bomb, path, compression="zstd", data_page_size=2**30, write_statistics=False, **PLAIN)
    group, content = pq.read_metadata(path).row_group(0), path.read_bytes()
    for size in (group.total_byte_size, group.column(0).total_uncompressed_size):
        content = content.replace(varint(2 * size), varint(200, len(varint(2 * size))))
    path.write_bytes(content)
    return ("scan", "x.parquet", *SCAN)


def varint(value: int, length: int = 1) -> bytes:
    """Return a number as Thrift writes it, in at least ``length`` bytes."""
    parts = []
    while value or len(parts) < length:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts[:-1], parts[-1] & 127])


PLAIN = {"use_dictionary": False, "store_schema": False}
for name, (make, message) in {
    "Parquet that repeats a megabyte": (
        table(lambda: repeated(20_000), store_schema=False, dictionary_pagesize_limit=2**30),
        "it would grow",
    ),
    "Parquet that is a bomb": (
        table(lambda: pa.table({"img": [bytes(2 * 10**7)] * 8, "label": [0] * 8}), compression="zstd", **PLAIN),
        "it would grow",
    ),
    "Parquet of more rows than bytes": (
        table(
            lambda: pa.table({"img": pa.nulls(10**7, pa.binary()), "label": np.zeros(10**7, int)}), store_schema=False
        ),
        "rows and has only",
    ),
    "Parquet nested deeply": (table(lambda: nested(500), store_schema=False), "not whole Parquet"),
    "Parquet whose metadata understates it": (understated, "it would grow"),
    "Parquet nested twenty thousand times": (very_deep, "not whole Parquet"),
    "Parquet nested a little": (table(lambda: nested(50), store_schema=False), "hold no label"),
}.items():
    add(name, Case(make, message))


def damaged(damage):
    def make(root: Path) -> tuple[str, ...]:
        whole = (root / "photos.parquet").read_bytes()
        (root / "photos.parquet").write_bytes(damage(whole))
        return ("scan", "photos.parquet", *SCAN)

    return make


def with_long_footer(whole: bytes) -> bytes:
    """Return a file whose footer claims two gigabytes."""
    return whole[:-8] + (2**31 - 1).to_bytes(4, "little") + b"PAR1"


for name, damage in {
    "Parquet of text": lambda whole: b"no table",
    "Parquet that is empty": lambda whole: b"",
    "Parquet cut off": lambda whole: whole[:-500],
    "Parquet whose beginning is cut off": lambda whole: whole[2000:],
    "Parquet with a flipped bit in its footer": lambda whole: flipped(whole, len(whole) - 8),
    "Parquet with a footer of gigabytes": with_long_footer,
    "Parquet of zeros within": lambda whole: whole[:40] + bytes(len(whole) - 4000) + whole[-3960:],
}.items():
    add(name, Case(damaged(damage), "not whole Parquet"))


@case("no regular file")
def pipe_for_a_parquet_file(root: Path):
    pipe(root / "x.parquet")
    return ("scan", "x.parquet", *SCAN)


@case("not whole Parquet")
def sparse_terabyte_for_a_parquet_file(root: Path):
    sparse(root / "x.parquet")
    return ("scan", "x.parquet", *SCAN)


@case("not whole Parquet")
def parquet_shards_of_different_columns(root: Path):
    (root / "set").mkdir()
    for k, label in enumerate(([0] * ROWS, ["a"] * ROWS)):
        pq.write_table(pa.table({"img": [IMAGE] * ROWS, "label": label}), root / "set" / f"train-{k}.parquet")
    return ("scan", "set", *SCAN)


@case("cannot be loaded")
def hub_copy_with_a_script(root: Path):
    (root / "set").mkdir()
    (root / "set" / "set.py").write_text("import os\nos.system('echo ran > marker')\n")
    return ("scan", "hub:./set", *SCAN)

"""What the pages of a Parquet file become is known before they are decoded; pyarrow's own counts are the measure."""

import io
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostile.tables import varint
from undoor.safe.parquet import read_columns
from undoor.safe.parquet_footer import CHUNK, DEPTH, PAGE, Footer
from undoor.safe.thrift import Compact

GENERATOR = np.random.default_rng(0)
N = 3000
COLUMNS = {
    "bytes": pa.array([GENERATOR.bytes(int(n)) for n in GENERATOR.integers(0, 300, N)], pa.binary()),
    "few": pa.array([b"a" * 100, b"b", None] * (N // 3), pa.binary()),
    "texts": pa.array([f"name {k % 7}" for k in range(N)]),
    "struct": pa.array([{"bytes": GENERATOR.bytes(9), "path": None if k % 2 else "x"} for k in range(N)]),
    "integers": pa.array(GENERATOR.integers(0, 10, N)),
    "nulls": pa.nulls(N, pa.int64()),
    "truths": pa.array(GENERATOR.random(N) < 0.5),
    "reals": pa.array(GENERATOR.random(N), pa.float32()),
    "fixed": pa.array([GENERATOR.bytes(40) for _ in range(N)], pa.binary(40)),
    "lists": pa.array([list(range(k % 5)) for k in range(N)]),
    "lists of texts": pa.array([["long name"] * (k % 5) for k in range(N)]),
}
WAYS = {
    "default": {},
    "plain": {"use_dictionary": False, "compression": "none"},
    "second version": {"data_page_version": "2.0", "compression": "gzip"},
    "many pages": {"data_page_size": 500, "write_batch_size": 50, "compression": "zstd"},
    "many groups": {"row_group_size": 100, "write_page_checksum": True, "write_page_index": True},
}


@pytest.fixture(params=WAYS)
def written(request, tmp_path):
    pq.write_table(pa.table(COLUMNS), tmp_path / "t.parquet", **WAYS[request.param])
    return tmp_path / "t.parquet"


def test_the_columns_and_pages_are_those_that_pyarrow_counts(written):
    known, schema = pq.read_metadata(written), pq.ParquetFile(written).schema
    with written.open("rb") as file:
        footer = Footer(file)
        assert footer.rows == known.num_rows == N
        assert len(footer.groups) == known.num_row_groups
        for leaf, column in zip(footer.leaves, map(schema.column, range(known.num_columns)), strict=True):
            assert ".".join(leaf.path) == column.path
            assert leaf.texts == (column.physical_type == "BYTE_ARRAY")
            assert leaf.repeated == (column.max_repetition_level > 0)
            assert leaf.length == max(0, column.length)
        for number, group in enumerate(footer.groups):
            for chunk, column in zip(group, map(known.row_group(number).column, range(known.num_columns)), strict=True):
                pages = list(footer.pages(chunk))
                # Both of pyarrow's sums count the headers too.
                heads = column.total_compressed_size - sum(page.packed for page in pages)
                assert heads == column.total_uncompressed_size - sum(page.unpacked for page in pages)
                assert heads >= 10 * len(pages)
                assert sum(page.values for page in pages) == column.num_values


def test_what_is_read_takes_no_more(written):
    with written.open("rb") as file:
        footer = Footer(file)
        texts = [".".join(leaf.path) for leaf in footer.leaves if leaf.texts and not leaf.repeated]
        whole = pq.read_table(written, read_dictionary=texts)
        for name in COLUMNS:
            assert footer.largest([name]) >= whole[name].nbytes, name
        assert footer.largest(COLUMNS) == sum(footer.largest([name]) for name in COLUMNS)
    assert read_columns(written).equals(pq.read_table(written))


def test_lists_count_what_they_share(tmp_path):
    shared = pa.array([[b"x" * 10**5] * 1000] * 4, pa.list_(pa.binary()))
    pq.write_table(pa.table({"lists": shared}), tmp_path / "t.parquet")
    assert (tmp_path / "t.parquet").stat().st_size < 10**4
    with (tmp_path / "t.parquet").open("rb") as file:
        assert Footer(file).largest(["lists"]) > 4 * 10**8
    with pytest.raises(ValueError, match="it would grow"):
        read_columns(tmp_path / "t.parquet")

    texts = pa.table({"lists": pa.array([["name", "names"]], pa.list_(pa.string()))})
    encoding = {"use_dictionary": False, "column_encoding": {"lists.list.element": "DELTA_BYTE_ARRAY"}}
    pq.write_table(texts, tmp_path / "t.parquet", **encoding)
    with pytest.raises(ValueError, match="lists of texts by what they share"):
        read_columns(tmp_path / "t.parquet")


def nested(depth):
    kind = pa.int64()
    for _ in range(depth):
        kind = pa.struct([("a", kind)])
    return pa.table({"x": pa.nulls(2, kind), "y": [1, 2]})


def test_columns_are_nested_only_so_deep(tmp_path):
    for depth in (DEPTH - 1, DEPTH):
        pq.write_table(nested(depth), tmp_path / f"{depth}.parquet", store_schema=False)
    with (tmp_path / f"{DEPTH - 1}.parquet").open("rb") as file:
        assert [len(leaf.path) for leaf in Footer(file).leaves] == [DEPTH, 1]
    with (tmp_path / f"{DEPTH}.parquet").open("rb") as file, pytest.raises(ValueError, match="nested more than"):
        Footer(file)


@pytest.mark.parametrize(
    "header",
    [
        b"\x15\x00",  # ends
        b"\x15\x00\x15\x03\x15\x02\x00",  # less than no bytes
        b"\x15\x00\x15\x02\x15\x02\x00",  # of data, and does not say how many values
        b"\x15\x00\x15\x02\x15\x02\x25\x02\x00",  # a number where a structure is to be
        b"\x15\x00\x19" + b"\x19" * 10**5,  # lists in lists
        b"\x1c" * 10**5,
        b"\x18\xff\xff\xff\xff\x0f",  # a text of 4 GiB
        b"\x19\xf7\xff\xff\xff\xff\x0f",  # a list of four billion reals
        b"\x15" + b"\xff" * 20,  # a number without end
        b"\x1d",  # of no known kind
    ],
)
def test_headers_that_are_none(header):
    footer = Footer.__new__(Footer)
    footer._file = io.BytesIO(header)
    with pytest.raises(ValueError, match=r"broken|lists more than"):
        list(footer.pages({"values": 5, "packed": 100, "data": 0}))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_structure_or_none(content):
    compact = Compact(content)
    try:
        fields = compact.structure(PAGE)
    except (ValueError, EOFError):
        return
    assert fields.keys() <= {"kind", "unpacked", "packed", "first", "second", ""}
    assert compact.at <= len(content)


@pytest.fixture(scope="module")
def whole():
    buffer = io.BytesIO()
    pq.write_table(pa.table(COLUMNS).slice(0, 20), buffer, row_group_size=10)
    return buffer.getvalue()


@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=8))
def test_a_broken_footer_is_told(whole, place, change):
    content = bytearray(whole)
    at = len(content) - 1 - place % len(content)
    content[at : at + len(change)] = change
    with suppress(ValueError):
        Footer(io.BytesIO(bytes(content))).largest(COLUMNS)


def test_numbers_that_pyarrow_would_cut_short_are_refused():
    for number, kind in ((2**32 + 5, 5), (2**64 + 5, 6)):
        with pytest.raises(ValueError, match="broken"):
            Compact(bytes([0x20 | kind]) + varint(2 * number) + b"\0").structure(PAGE)
    assert Compact(b"\x25" + varint(2 * 7) + b"\0").structure(PAGE) == {"unpacked": 7}
    assert Compact(b"\x26" + varint(2 * 7) + b"\0").structure(PAGE) == {}  # of another kind: pyarrow passes it over


def test_lists_of_another_kind_than_pyarrow_takes_them_for_are_refused():
    assert Compact(b"\x29\x15\x04\0").structure(CHUNK) == {"encodings": []}
    with pytest.raises(ValueError, match="broken"):
        Compact(b"\x29\x18\x01x\0").structure(CHUNK)

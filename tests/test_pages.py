"""The memory that a Parquet file takes up is computed before it is decoded, and agrees with what pyarrow counts."""

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
from undoor.safe.parquet_footer import CHUNK, DEPTH, PAGE, Footer, read_page_header
from undoor.safe.thrift import CompactReader

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


def test_columns_and_pages_agree_with_pyarrow(written):
    metadata, schema = pq.read_metadata(written), pq.ParquetFile(written).schema
    with written.open("rb") as file:
        footer = Footer(file)
        assert footer.rows == metadata.num_rows == N
        assert len(footer.groups) == metadata.num_row_groups
        columns = range(metadata.num_columns)
        for leaf, column in zip(footer.leaves, map(schema.column, columns), strict=True):
            assert ".".join(leaf.path) == column.path
            assert leaf.has_texts == (column.physical_type == "BYTE_ARRAY")
            assert leaf.in_list == (column.max_repetition_level > 0)
            assert leaf.length == max(0, column.length)
        for number, group in enumerate(footer.groups):
            for chunk, column in zip(group, map(metadata.row_group(number).column, columns), strict=True):
                pages = list(footer.pages(chunk))
                # Both of pyarrow's sums include the headers.
                headers = column.total_compressed_size - sum(page.packed for page in pages)
                assert headers == column.total_uncompressed_size - sum(page.unpacked for page in pages)
                assert headers >= 10 * len(pages)
                assert sum(page.values for page in pages) == column.num_values


def test_columns_take_no_more_memory_than_computed(written):
    with written.open("rb") as file:
        footer = Footer(file)
        texts = [".".join(leaf.path) for leaf in footer.leaves if leaf.has_texts and not leaf.in_list]
        whole = pq.read_table(written, read_dictionary=texts)
        for name in COLUMNS:
            assert footer.largest([name]) >= whole[name].nbytes, name
        assert footer.largest(COLUMNS) == sum(footer.largest([name]) for name in COLUMNS)
    assert read_columns(written).equals(pq.read_table(written))


def test_a_text_that_lists_share_counts_in_each_of_them(tmp_path):
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
    with pytest.raises(ValueError, match="lists of texts by their shared prefixes"):
        read_columns(tmp_path / "t.parquet")


def nested(depth):
    kind = pa.int64()
    for _ in range(depth):
        kind = pa.struct([("a", kind)])
    return pa.table({"x": pa.nulls(2, kind), "y": [1, 2]})


def test_columns_that_are_nested_too_deeply_are_refused(tmp_path):
    for depth in (DEPTH - 1, DEPTH):
        pq.write_table(nested(depth), tmp_path / f"{depth}.parquet", store_schema=False)
    with (tmp_path / f"{DEPTH - 1}.parquet").open("rb") as file:
        assert [len(leaf.path) for leaf in Footer(file).leaves] == [DEPTH, 1]
    with (tmp_path / f"{DEPTH}.parquet").open("rb") as file, pytest.raises(ValueError, match="nested more than"):
        Footer(file)


@pytest.mark.parametrize(
    "header",
    [
        b"\x15\x00",  # ends too early
        b"\x15\x00\x15\x03\x15\x02\x00",  # a negative number of bytes
        b"\x15\x00\x15\x02\x15\x02\x00",  # a page of data without the number of values
        b"\x15\x00\x15\x02\x15\x02\x25\x02\x00",  # a number instead of a structure
        b"\x15\x00\x19" + b"\x19" * 10**5,  # lists in lists
        b"\x1c" * 10**5,  # structures in structures
        b"\x18\xff\xff\xff\xff\x0f",  # a text of 4 GiB
        b"\x19\xf7\xff\xff\xff\xff\x0f",  # a list of four billion real numbers
        b"\x15" + b"\xff" * 20,  # a number without end
        b"\x1d",  # a value of no known type
    ],
)
def test_broken_page_headers_are_refused(header):
    with pytest.raises(ValueError, match=r"broken|lists more than"):
        read_page_header(io.BytesIO(header), 0)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_structure_or_an_error(content):
    reader = CompactReader(content)
    try:
        fields = reader.structure(PAGE)
    except (ValueError, EOFError):
        return
    assert fields.keys() <= {"kind", "unpacked", "packed", "data", "data_v2"}
    assert reader.position <= len(content)


@pytest.fixture(scope="module")
def whole():
    """A whole Parquet file of two row groups."""
    buffer = io.BytesIO()
    pq.write_table(pa.table(COLUMNS).slice(0, 20), buffer, row_group_size=10)
    return buffer.getvalue()


@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=8))
def test_a_changed_file_is_read_or_is_a_value_error(whole, distance, change):
    content = bytearray(whole)
    position = len(content) - 1 - distance % len(content)
    content[position : position + len(change)] = change
    with suppress(ValueError):
        Footer(io.BytesIO(bytes(content))).largest(COLUMNS)


def test_numbers_that_pyarrow_would_truncate_are_refused():
    for number, kind in ((2**32 + 5, 5), (2**64 + 5, 6)):
        with pytest.raises(ValueError, match="broken"):
            CompactReader(bytes([0x20 | kind]) + varint(2 * number) + b"\0").structure(PAGE)
    assert CompactReader(b"\x25" + varint(2 * 7) + b"\0").structure(PAGE) == {"unpacked": 7}
    assert CompactReader(b"\x26" + varint(2 * 7) + b"\0").structure(PAGE) == {}  # pyarrow skips a wrong type too


def test_lists_of_another_type_than_pyarrow_expects_are_refused():
    assert CompactReader(b"\x29\x15\x04\0").structure(CHUNK) == {"encodings": []}
    with pytest.raises(ValueError, match="broken"):
        CompactReader(b"\x29\x18\x01x\0").structure(CHUNK)

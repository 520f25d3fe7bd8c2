"""What the pages of a Parquet file become is known before they are decoded; pyarrow's own counts are the measure."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from undoor.columns import read_columns
from undoor.pages import BROKEN, _pages, _structure, largest

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


def leaves(path):
    with pq.ParquetFile(path) as file:
        return {number: file.schema.column(number) for number in range(file.metadata.num_columns)}


def test_the_pages_are_those_that_pyarrow_counts(written):
    known = pq.read_metadata(written)
    with written.open("rb") as file:
        for group in map(known.row_group, range(known.num_row_groups)):
            for chunk in map(group.column, range(group.num_columns)):
                pages = list(_pages(file, chunk))
                # Both of pyarrow's sums count the headers too.
                heads = chunk.total_compressed_size - sum(page.packed for page in pages)
                assert heads == chunk.total_uncompressed_size - sum(page.unpacked for page in pages)
                assert heads >= 10 * len(pages)
                assert sum(page.values for page in pages) == chunk.num_values


def test_what_is_read_takes_no_more(written):
    known, all_leaves = pq.read_metadata(written), leaves(written)
    texts = [leaf.path for leaf in all_leaves.values() if leaf.physical_type == "BYTE_ARRAY"]
    whole = pq.read_table(written, read_dictionary=[path for path in texts if not path.startswith("lists")])
    with written.open("rb") as file:
        for number, leaf in all_leaves.items():
            most = sum(largest(file, known.row_group(g), {number: leaf}) for g in range(known.num_row_groups))
            column = whole[leaf.path.split(".")[0]]
            if not leaf.path.startswith("struct"):  # of two leaves
                assert most >= column.nbytes, leaf.path
    assert read_columns(written).equals(pq.read_table(written))


def test_lists_count_what_they_share(tmp_path):
    shared = pa.array([[b"x" * 10**5] * 1000] * 4, pa.list_(pa.binary()))
    pq.write_table(pa.table({"lists": shared}), tmp_path / "t.parquet")
    assert (tmp_path / "t.parquet").stat().st_size < 10**4
    with (tmp_path / "t.parquet").open("rb") as file:
        group = pq.read_metadata(file).row_group(0)
        assert largest(file, group, leaves(tmp_path / "t.parquet")) > 4 * 10**8
    with pytest.raises(ValueError, match="it would grow"):
        read_columns(tmp_path / "t.parquet")

    texts = pa.table({"lists": pa.array([["name", "names"]], pa.list_(pa.string()))})
    encoding = {"use_dictionary": False, "column_encoding": {"lists.list.element": "DELTA_BYTE_ARRAY"}}
    pq.write_table(texts, tmp_path / "t.parquet", **encoding)
    with pytest.raises(ValueError, match="lists of texts by what they share"):
        read_columns(tmp_path / "t.parquet")


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
    class Chunk:
        data_page_offset, has_dictionary_page, total_compressed_size, num_values = 0, False, 100, 5

    with pytest.raises(ValueError, match=f"{BROKEN}|ends within"):
        list(_pages(io.BytesIO(header), Chunk))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_structure_or_none(content):
    file = io.BytesIO(content)
    try:
        fields = _structure(file)
    except ValueError:
        return
    assert isinstance(fields, dict)
    assert file.tell() <= len(content)

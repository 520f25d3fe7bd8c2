"""The store: working files, and the tables and networks that they are packed into."""

import os

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import always
from undoor.errors import UndoorError
from undoor.evidence import Outputs
from undoor.experiments.packed import as_table, read_table
from undoor.experiments.store import KINDS, Store, digest

RESULT = {"rate": 0.25, "count": 3, "none": None, "name": "ε", "flag": True, "rows": [[1, 2.5], []], "by": {"a": None}}


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_result_is_read_as_it_was_written(tmp_path):
    store = Store(tmp_path)
    assert store.read("findings", "a") is None
    written = store.write("findings", "a", {"rate": 0.25, "none": None, "name": "ε", "rows": [(1, 2)]})
    assert written == store.read("findings", "a") == {"rate": 0.25, "none": None, "name": "ε", "rows": [[1, 2]]}
    store.write("findings", "b", {})
    assert list(store.all("findings")) == ["a", "b"]
    assert files(tmp_path) == ["work/findings/a.json", "work/findings/b.json"]


def test_working_files_are_kept_out_of_version_control(tmp_path):
    Store(tmp_path).begin()
    assert (tmp_path / "work" / ".gitignore").read_text() == "*\n"
    assert files(tmp_path) == ["work/.gitignore"]


def test_a_number_that_json_does_not_have_is_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        Store(tmp_path).write("findings", "a", {"rate": float("nan")})
    assert Store(tmp_path).read("findings", "a") is None


def test_a_broken_result_is_one_line(tmp_path):
    store = Store(tmp_path)
    store.write("findings", "a", {"x": 1})
    store.path("findings", "a").write_text('{"x"')
    with pytest.raises(UndoorError, match=r"a\.json is no result.*remove it"):
        store.read("findings", "a")


def test_outputs_are_cached_exactly(tmp_path):
    store = Store(tmp_path)
    outputs = Outputs(np.float32([[1 / 3, 2]]), np.float32([[3, 4, 5]]))
    assert not store.has_outputs("k")
    store.keep_outputs("k", outputs)
    again = store.outputs("k")
    assert np.array_equal(again.features, outputs.features)
    assert np.array_equal(again.logits, outputs.logits)
    store.path("cache", "k", ".outputs").write_bytes(b"half")
    with pytest.raises(UndoorError, match="remove it"):
        store.outputs("k")


def test_digest_depends_on_content_and_not_on_order():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})


def test_packed_results_are_read_where_there_is_no_working_file(tmp_path):
    store = Store(tmp_path)
    for kind in KINDS:
        store.write(kind, "a", {**RESULT, "kind": kind})
    store.write("findings", "b", {"rate": 1})
    store.pack([])
    assert files(tmp_path)[: len(KINDS)] == sorted(f"{kind}.parquet" for kind in KINDS)
    for kind in KINDS:
        store.path(kind, "a").unlink()
    clone = Store(tmp_path)
    assert {kind: clone.read(kind, "a") for kind in ("victims", "retrained")} == {
        kind: {**RESULT, "kind": kind} for kind in ("victims", "retrained")
    }
    assert list(clone.all("findings")) == ["a", "b"]
    clone.write("findings", "a", {"rate": 2})
    assert clone.read("findings", "a") == {"rate": 2}
    clone.pack([])
    assert Store(tmp_path).packed("findings")["a"]["rate"] == 2
    assert Store(tmp_path).read("diverged", "a") == {**RESULT, "kind": "diverged"}


def test_a_name_that_a_packed_result_lacks_is_none(tmp_path):
    store = Store(tmp_path)
    store.write("findings", "a", {"x": 1})
    store.write("findings", "b", {"y": [2]})
    store.pack([])
    assert store.packed("findings") == {"a": {"x": 1, "y": None}, "b": {"x": None, "y": [2]}}


def test_the_columns_of_a_packed_table_are_numbers_and_texts_where_possible(tmp_path):
    store = Store(tmp_path)
    store.write("findings", "a", RESULT)
    store.write("findings", "b", {**RESULT, "rate": 1, "flag": None})
    store.pack([])
    table = pd.read_parquet(tmp_path / "findings.parquet")
    assert table["key"].tolist() == ["a", "b"]
    assert table["rate"].tolist() == [0.25, 1.0]
    assert (table["count"].dtype, table["name"][0], table["flag"][0]) == (np.int64, "ε", True)
    assert table["rows"].tolist() == ["[[1, 2.5], []]"] * 2


def test_the_same_results_are_packed_into_the_same_bytes(tmp_path):
    for name, keys in (("first", "ab"), ("second", "ba")):
        store = Store(tmp_path / name)
        for key in keys:
            store.write("findings", key, {**RESULT, "key of": key})
        store.pack([])
    first, second = ((tmp_path / name / "findings.parquet").read_bytes() for name in ("first", "second"))
    assert first == second


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs",))),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(("k1", "k2", "k3")), st.fixed_dictionaries({"x": plain, "y": plain})))
@always(60)
def test_every_result_survives_packing(tmp_path_factory, results):
    path = tmp_path_factory.mktemp("packed") / "findings.parquet"

    pq.write_table(as_table(results), path)
    assert read_table(path) == results


@pytest.mark.parametrize("content", [b"", b"PAR1 and no more", None])
def test_a_file_that_holds_no_packed_results_is_one_line(tmp_path, content):
    path = tmp_path / "findings.parquet"
    if content is None:
        os.mkfifo(path)
    else:
        path.write_bytes(content)
    with pytest.raises(UndoorError, match=r"findings\.parquet holds no results: .*; restore it or remove it$"):
        Store(tmp_path).all("findings")


def test_a_table_of_something_else_is_one_line(tmp_path):
    pd.DataFrame({"x": [1]}).to_parquet(tmp_path / "findings.parquet")
    with pytest.raises(UndoorError, match=r"holds no results: 'key'"):
        Store(tmp_path).all("findings")


def test_a_network_is_taken_from_the_working_files_or_else_from_the_packed_ones(tmp_path):
    store = Store(tmp_path)
    packed, working = tmp_path / "victims" / "k.safetensors", store.path("victims", "k", ".safetensors")
    assert store.network("k") == working
    for path, expected in ((packed, packed), (working, working)):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"")
        assert store.network("k") == expected


def test_chosen_networks_are_packed_and_others_become_working_files(tmp_path):
    store = Store(tmp_path)
    for key in ("chosen", "other"):
        store.write("victims", key, {})
    store.path("victims", "chosen", ".safetensors").write_bytes(b"chosen")
    (tmp_path / "victims").mkdir()
    for key in ("other", "without a result"):
        (tmp_path / "victims" / f"{key}.safetensors").write_bytes(key.encode())
    store.pack(["chosen", "not trained"])
    assert {path.stem: path.read_bytes() for path in (tmp_path / "victims").iterdir()} == {
        "chosen": b"chosen",
        "without a result": b"without a result",
    }
    assert store.network("other").read_bytes() == b"other"
    assert store.network("other").parent == tmp_path / "work" / "victims"

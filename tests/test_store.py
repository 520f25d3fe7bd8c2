import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from undoor.errors import UndoorError
from undoor.evidence import Outputs
from undoor.experiments.store import Store, code_digest, digest, pack, unpack


def test_a_result_is_read_as_it_was_written(tmp_path):
    store = Store(tmp_path)
    assert store.read("findings", "a") is None
    written = store.write("findings", "a", {"rate": 0.25, "none": None, "name": "ε", "rows": [(1, 2)]})
    assert written == store.read("findings", "a") == {"rate": 0.25, "none": None, "name": "ε", "rows": [[1, 2]]}
    store.write("findings", "b", {})
    assert list(store.all("findings")) == ["a", "b"]
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["a.json", "b.json"]


def test_a_number_that_json_does_not_know_is_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        Store(tmp_path).write("findings", "a", {"rate": float("nan")})
    assert Store(tmp_path).read("findings", "a") is None


def test_a_broken_result_is_one_line(tmp_path):
    store = Store(tmp_path)
    store.write("findings", "a", {"x": 1})
    store.path("findings", "a").write_text('{"x"')
    with pytest.raises(UndoorError, match=r"a\.json is no result.*remove it"):
        store.read("findings", "a")


def test_outputs_are_cached_exactly_and_kept_out_of_version_control(tmp_path):
    store = Store(tmp_path)
    outputs = Outputs(np.float32([[1 / 3, 2]]), np.float32([[3, 4, 5]]))
    assert not store.has_outputs("k")
    store.keep_outputs("k", outputs)
    again = store.outputs("k")
    assert np.array_equal(again.features, outputs.features)
    assert np.array_equal(again.logits, outputs.logits)
    assert (tmp_path / "cache" / ".gitignore").read_text() == "*\n"
    store.path("cache", "k", ".outputs").write_bytes(b"half")
    with pytest.raises(UndoorError, match="remove it"):
        store.outputs("k")


@given(st.lists(st.booleans(), max_size=70))
def test_masks_survive_packing(bits):
    mask = np.array(bits, dtype=bool)
    assert unpack(pack(mask), len(mask)).tolist() == bits


def test_digest_depends_on_content_and_not_on_order():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})


def module(path, text):
    path.write_text(text)
    made = types.ModuleType(path.stem)
    made.__file__ = str(path)
    return made


def test_code_digest_sees_code_and_not_words(tmp_path):
    first = module(tmp_path / "a.py", "def f(x):\n    return x + 1\n")
    words = module(tmp_path / "b.py", '"""Adds."""\n\ndef f(x):\n    """Add one."""\n    return x + 1  # one\n')
    other = module(tmp_path / "c.py", "def f(x):\n    return x + 2\n")
    assert code_digest(first) == code_digest(words) != code_digest(other)


def test_code_digest_is_the_same_in_every_python(tmp_path):
    text = """
@decorator
class A(B, c=1):
    x: int = 1_000

    async def f(self, a, /, *, b=b"x", **kw) -> T | None:
        with open(a) as file, g():
            yield f"{a!r:>{b}} and {kw['x']}" "joined"
        match a:
            case {"x": [1, *rest]}:
                return 1j
"""
    assert code_digest(module(tmp_path / "a.py", text)) == "ea3a376538e45c1cfd86"

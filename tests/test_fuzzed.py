"""The inputs of ``make fuzz``: the first inputs of its corpus can be read, and the faults it has found are mended.

The folder ``fuzzed`` holds the inputs of those faults. The name of a file begins with its target.
"""

from contextlib import suppress
from pathlib import Path

import pytest

from tools.fuzz_targets import TARGETS
from undoor.errors import UndoorError

FOUND = sorted((Path(__file__).parent / "fuzzed").iterdir())


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_begins_with_whole_files(name, tmp_path):
    (tmp_path / "seeds").mkdir()
    (tmp_path / "desk").mkdir()
    read = 0
    for seed in TARGETS[name].seeds(tmp_path / "seeds"):
        with suppress(UndoorError):
            TARGETS[name].use(seed, tmp_path / "desk")
            read += 1
    assert read


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.name)
def test_a_file_that_revealed_a_fault_is_an_error_of_one_line(path, tmp_path):
    (target,) = (name for name in TARGETS if path.name.startswith(f"{name}-"))
    with pytest.raises(UndoorError) as raised:
        TARGETS[target].use(path.read_bytes(), tmp_path)
    assert len(str(raised.value).splitlines()) == 1

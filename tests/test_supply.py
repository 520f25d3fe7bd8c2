"""What the project is built of: bounds, constraints and locks agree."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DIRECT = {canonicalize_name(one.name): one for one in map(Requirement, PROJECT["dependencies"])}
FOR_CUDA = re.compile("torch|cuda-|nvidia-|triton")


def pinned(name):
    """Return the requirements of a file, by name; what follows a backslash belongs to the line before."""
    text = re.sub(r"\\\n", " ", (ROOT / name).read_text(encoding="utf-8"))
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    hashes = {}
    for line in lines:
        said, *digests = line.split(" --hash=")
        requirement = Requirement(said.strip())
        hashes[canonicalize_name(requirement.name)] = requirement, [digest.strip() for digest in digests]
    return hashes


def version(requirement):
    (only,) = requirement.specifier
    assert only.operator == "=="
    return Version(only.version)


def test_the_oldest_versions_are_the_lower_bounds():
    oldest = {name: version(requirement) for name, (requirement, _) in pinned("constraints-oldest.txt").items()}
    for name, requirement in DIRECT.items():
        (bound,) = requirement.specifier
        assert bound.operator == ">="
        assert oldest[name] == Version(bound.version), name


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-cpu.lock"])
def test_what_is_locked_is_what_the_tests_ran_with(lock):
    constraints = {name: version(requirement) for name, (requirement, _) in pinned("constraints.txt").items()}
    for name, (requirement, digests) in pinned(lock).items():
        assert digests, name
        assert all(re.fullmatch("sha256:[0-9a-f]{64}", digest) for digest in digests), name
        if name in constraints:
            assert version(requirement) == constraints[name], name
        else:  # for another system or a CUDA build alone
            assert FOR_CUDA.match(name) or requirement.marker, name


def test_the_locks_hold_every_dependency_and_differ_in_torch_and_what_its_cuda_build_needs():
    whole, cpu = pinned("requirements.lock"), pinned("requirements-cpu.lock")
    assert DIRECT.keys() <= whole.keys()
    assert cpu == {name: entry for name, entry in whole.items() if not FOR_CUDA.match(name)}

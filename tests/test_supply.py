"""The files about dependencies and releases agree with each other."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import undoor

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
FOR_CUDA = re.compile("torch|cuda-|nvidia-|triton")
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def by_name(lines):
    """Return requirements by the canonical name of their package."""
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, lines)}


DIRECT = by_name(PROJECT["dependencies"])


def pinned(name):
    """Return the requirement and the hashes of each package in a file; a backslash continues a line."""
    text = re.sub(r"\\\n", " ", (ROOT / name).read_text(encoding="utf-8"))
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    packages = {}
    for line in lines:
        specifier, *hashes = line.split(" --hash=")
        requirement = Requirement(specifier.strip())
        packages[canonicalize_name(requirement.name)] = requirement, [value.strip() for value in hashes]
    return packages


def version(requirement):
    (specifier,) = requirement.specifier
    assert specifier.operator == "=="
    return Version(specifier.version)


def test_the_oldest_versions_are_the_lower_bounds():
    oldest = {name: version(requirement) for name, (requirement, _) in pinned("constraints-oldest.txt").items()}
    for name, requirement in (DIRECT | by_name(EXTRAS["figures"]) | by_name(EXTRAS["hub"])).items():
        (bound,) = requirement.specifier
        assert bound.operator == ">="
        assert oldest[name] == Version(bound.version), name


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-cpu.lock"])
def test_the_locked_versions_are_those_of_the_tests(lock):
    constraints = {name: version(requirement) for name, (requirement, _) in pinned("constraints.txt").items()}
    for name, (requirement, hashes) in pinned(lock).items():
        assert hashes, name
        assert all(re.fullmatch("sha256:[0-9a-f]{64}", value) for value in hashes), name
        if name in constraints:
            assert version(requirement) == constraints[name], name
        else:  # it is for another system, or for a CUDA build
            assert FOR_CUDA.match(name) or requirement.marker, name


def test_the_locks_hold_every_dependency_and_differ_only_in_torch_and_the_packages_of_its_cuda_build():
    whole, cpu = pinned("requirements.lock"), pinned("requirements-cpu.lock")
    assert DIRECT.keys() <= whole.keys()
    assert cpu == {name: entry for name, entry in whole.items() if not FOR_CUDA.match(name)}


def test_an_installation_has_no_optional_package():
    assert not {"matplotlib", "datasets"} & pinned("requirements.lock").keys()


def test_developers_get_every_extra():
    (extras,) = [requirement.extras for requirement in map(Requirement, EXTRAS["dev"]) if requirement.name == "undoor"]
    assert extras == EXTRAS.keys() - {"dev", "docs"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_call_targets_of_the_makefile(path):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    targets = [word for command in commands if command.startswith("make ") for word in command.split()[1:]]
    assert targets
    for target in targets:
        expressions = ("oldest", "newest") if target.startswith("test-") else ("",)
        for value in expressions:
            assert re.search(rf"^{target.split('$')[0]}{value}:", makefile, re.MULTILINE), target


def test_the_tests_run_with_every_python_that_is_supported():
    checks = yaml.safe_load((ROOT / ".github" / "workflows" / "checks.yml").read_text(encoding="utf-8"))
    tested = checks["jobs"]["test"]["strategy"]["matrix"]["python"]
    prefix = "Programming Language :: Python :: 3."
    assert tested == [f"3.{line.removeprefix(prefix)}" for line in PROJECT["classifiers"] if line.startswith(prefix)]
    assert PROJECT["requires-python"] == f">={tested[0]}"


def test_the_citation_has_the_current_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == undoor.__version__
    assert citation["license"] == PROJECT["license"]
    assert citation["repository-code"] == PROJECT["urls"]["Homepage"]


def test_every_link_of_the_project_leads_to_its_repository():
    assert all(url.startswith("https://github.com/undoor/undoor") for url in PROJECT["urls"].values())
    for url in PROJECT["urls"].values():
        if "/blob/main/" in url:
            assert (ROOT / url.split("/blob/main/")[1]).is_file()


def test_the_hooks_of_developers_run_programs_of_the_environment():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    programs = {hook["entry"].split()[0] for hook in repository["hooks"]}
    assert programs == {".venv/bin/ruff", ".venv/bin/mypy"}

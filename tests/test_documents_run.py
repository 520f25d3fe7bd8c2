"""Runs the code and the commands in the documents, and parses what is meant for other programs."""

# ruff: noqa: F811 - fixtures are imported, and are parameters too

import json
import re
import shlex
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

import undoor
from helpers.command_line import data, parse, run  # noqa: F401 - fixtures

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
INTEGRATIONS, CLUSTER = DOCS / "integrations.md", DOCS / "ray.md"
FENCED = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
PAGES = sorted(page for page in DOCS.glob("*.md") if FENCED.search(page.read_text(encoding="utf-8")))
GUIDES = [page for page in PAGES if page not in (INTEGRATIONS, CLUSTER)]


def blocks(page, *languages):
    """Return the fenced blocks of a page in these languages, as pairs of language and block."""
    pairs = FENCED.findall(page.read_text(encoding="utf-8"))
    return [(language, block) for language, block in pairs if language in languages]


def run_page(page, command, namespace):
    """Run a page in the current folder; a block that begins with the name of a file is written to that file."""
    for language, block in blocks(page, "python", "console"):
        if language == "console":
            for line in block.splitlines():
                command(line)
        elif title := re.match(r"# (\w+\.py)\n", block):
            Path(title[1]).write_text(block, encoding="utf-8")
        else:
            exec(compile(block, str(page), "exec"), namespace)


@pytest.fixture(scope="module")
def first_lines():
    """The variables that the first lines of the README define, from fewer images."""
    digits = undoor.read("digits").take(range(1500))
    attack = undoor.Attack.one_pixel(digits, sources=["7"], target="0", count=100, size=0.6)
    poisoned = undoor.poison(digits, attack)
    model = undoor.train(poisoned, undoor.recipe("fast", epochs=8))
    return {"poisoned": poisoned, "model": model, "findings": undoor.scan(model, poisoned)}


@pytest.fixture
def desk(data, tmp_path, monkeypatch):
    """The current folder of somebody who follows the pages: with images and a network."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(data / "images", "photos")
    shutil.copytree(data / "images", "clean-photos")
    shutil.copy(data / "victim.safetensors", "model.safetensors")
    return tmp_path


@pytest.fixture
def command(run):
    """Return a function that runs a command of a page and returns what it prints."""

    def call(line):
        program, *arguments = shlex.split(line)
        assert program == "undoor"
        code, out, err = run(*arguments)
        assert code in (0, 1), err
        return out

    return call


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_fenced_block_is_in_a_language_that_is_tested(page):
    languages = ("python", "console", "yaml") if page == INTEGRATIONS else ("python", "console")
    assert 2 * len(blocks(page, *languages)) == page.read_text(encoding="utf-8").count("```")


@pytest.mark.filterwarnings("ignore::undoor.errors.UndoorNotice", "ignore:.*LeafSpec:FutureWarning")  # torch's exporter
@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_a_guide_runs_from_top_to_bottom(page, desk, command, request, capsys):
    continues = "first lines of the README" in page.read_text(encoding="utf-8")
    run_page(page, command, dict(request.getfixturevalue("first_lines")) if continues else {})


def test_the_python_of_the_page_about_clusters_compiles():
    for _, block in blocks(CLUSTER, "python"):
        compile(block, str(CLUSTER), "exec")


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES], ids=lambda page: page.name)
def test_commands_that_take_longer_are_parsed(page):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    for line in re.findall(r"^ {4}((?:\w|\.venv).*)$", text, re.MULTILINE):
        words = shlex.split(line, comments=True)
        program, *arguments = [word for word in words if not re.match(r"[A-Z_]+=", word)]
        if program.endswith("undoor"):
            parse(shlex.join(arguments))
        elif program == "make":
            assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in arguments)
        elif re.search(r"python3?$", program):
            assert find_spec(arguments[1]) if arguments[0] == "-m" else (ROOT / arguments[0]).is_file()
        else:
            assert program in ("pip", "export", "ray", "git")


def test_the_python_of_the_page_about_integrations_runs(first_lines, capsys):
    namespace = dict(first_lines)
    for _, block in blocks(INTEGRATIONS, "python"):
        exec(compile(block, str(INTEGRATIONS), "exec"), namespace)
    assert namespace["findings"].classes_flagged == ("0",)
    assert "backdoor issues" in capsys.readouterr().out
    assert len(namespace["kept"]) == len(namespace["poisoned"]) - namespace["findings"].flagged.sum()


def test_the_commands_of_the_page_about_integrations_run(desk, command, run):
    lines = [line for _, block in blocks(INTEGRATIONS, "console") for line in block.splitlines()]
    for line in lines:
        printed = command(line)
        if "--json" in line:
            assert json.loads(printed)["samples"] == 90
    log = json.loads(Path("findings.sarif").read_text(encoding="utf-8"))
    assert log["runs"][0]["properties"]["samples"] == 90
    code, _, err = run(*shlex.split(lines[-1])[1:-3], "findings-4", "--sarif", "findings.sarif")
    assert code == 2
    assert "findings.sarif exists already; choose another --sarif" in err


def test_the_workflow_scans_and_uploads_what_was_written():
    workflow, hooks = (yaml.safe_load(block) for _, block in blocks(INTEGRATIONS, "yaml"))
    steps = workflow["jobs"]["scan"]["steps"]
    (scan,) = [step["run"] for step in steps if step.get("run", "").startswith("undoor ")]
    parse(scan.removeprefix("undoor "))
    (upload,) = [step for step in steps if "upload-sarif" in step.get("uses", "")]
    assert upload["with"]["sarif_file"] == scan.split()[-1] == "findings.sarif"
    assert upload["if"].startswith("${{ !cancelled()")  # also after a scan that ends with 1
    assert workflow["permissions"]["security-events"] == "write"

    (hook,) = hooks["repos"][0]["hooks"]
    (provided,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    assert hook["id"] == provided["id"]
    assert provided["language"] == "python"
    assert not provided["pass_filenames"]
    parse(f"{provided['entry'].removeprefix('undoor ')} {shlex.join(hook['args'])}")
    for name, matches in {"a/b.png": True, "a/c.JPG": True, "train.parquet": True, "main.py": False}.items():
        assert bool(re.search(provided["files"], name)) == matches


def test_a_wrong_option_in_a_page_is_an_error():
    with pytest.raises(Exception, match="--sariff"):
        parse("scan photos --out findings --sariff x")

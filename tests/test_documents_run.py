"""Every block of the page about integrations is run, or, where it is for another program, read as that one does."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

import undoor
from test_cli import data, run  # noqa: F401 - fixtures
from test_terminal import as_before, parse  # noqa: F401 - a fixture that is used by all

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "integrations.md"


def blocks(language):
    """Return the page's blocks in a language."""
    found = re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert found
    return found


def test_every_block_is_of_a_kind_that_is_tested():
    text = PAGE.read_text(encoding="utf-8")
    assert len(re.findall(r"^```\w+", text, re.MULTILINE)) == sum(map(len, map(blocks, ("python", "console", "yaml"))))


def test_the_python_blocks_run(capsys):
    # What the README's first lines make, in small.
    digits = undoor.read("digits").take(range(1500))
    attack = undoor.Attack.one_pixel(digits, sources=["7"], target="0", count=100, size=0.6)
    poisoned = undoor.poison(digits, attack)
    model = undoor.train(poisoned, undoor.recipe("fast", epochs=8))
    namespace = {"poisoned": poisoned, "model": model, "findings": undoor.scan(model, poisoned)}
    for block in blocks("python"):
        exec(compile(block, str(PAGE), "exec"), namespace)
    assert namespace["findings"].classes_flagged == ("0",)
    assert "backdoor issues" in capsys.readouterr().out
    assert len(namespace["kept"]) == len(namespace["poisoned"]) - namespace["findings"].flagged.sum()


def test_the_commands_run(run, data, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    shutil.copytree(data / "images", "photos")
    shutil.copy(data / "victim.safetensors", "model.safetensors")
    for block in blocks("console"):
        for line in block.splitlines():
            program, *arguments = shlex.split(line)
            assert program == "undoor"
            code, out, _ = run(*arguments)
            assert code in (0, 1)
            if "--json" in arguments:
                assert json.loads(out)["samples"] == 90
    log = json.loads(Path("findings.sarif").read_text(encoding="utf-8"))
    assert log["runs"][0]["properties"]["samples"] == 90
    code, _, err = run(*arguments[:-3], "findings-4", "--sarif", "findings.sarif")
    assert code == 2
    assert "findings.sarif exists already; choose another --sarif" in err


def test_the_workflow_scans_and_uploads_what_was_written():
    workflow, hooks = map(yaml.safe_load, blocks("yaml"))
    steps = workflow["jobs"]["scan"]["steps"]
    (scan,) = [step["run"] for step in steps if step.get("run", "").startswith("undoor ")]
    parse(scan.removeprefix("undoor "))
    (upload,) = [step for step in steps if "upload-sarif" in step.get("uses", "")]
    assert upload["with"]["sarif_file"] == scan.split()[-1] == "findings.sarif"
    assert upload["if"].startswith("${{ !cancelled()")  # also after a scan that ends with 1
    assert workflow["permissions"]["security-events"] == "write"

    (hook,) = hooks["repos"][0]["hooks"]
    (offered,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    assert hook["id"] == offered["id"]
    assert offered["language"] == "python"
    assert not offered["pass_filenames"]
    parse(f"{offered['entry'].removeprefix('undoor ')} {shlex.join(hook['args'])}")
    for name, watched in {"a/b.png": True, "a/c.JPG": True, "train.parquet": True, "main.py": False}.items():
        assert bool(re.search(offered["files"], name)) == watched


def test_what_does_not_parse_is_noticed():
    with pytest.raises(Exception, match="--sariff"):
        parse("scan photos --out findings --sariff x")

"""The pages of an inspection, a guard's check, pruning and a bench, each of a real result."""

# ruff: noqa: F811 - fixtures are imported, and are parameters too

import base64
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from helpers.command_line import data, run  # noqa: F401 - fixtures
from helpers.parsed_html import ParsedHTML
from helpers.result_pages import KINDS, NAMES, cases  # noqa: F401 - a fixture
from undoor.defenses.post_training.pruned import refuse_network
from undoor.errors import UndoorError
from undoor.report.pruned import render_pruned
from undoor.report.result import MARKS, Axis, render_result


@pytest.mark.parametrize("kind", KINDS)
def test_pages_are_whole_small_and_keep_names_as_text(cases, kind):
    html = cases[kind].html
    page = ParsedHTML(html)
    assert sum(tag == "script" for tag, _ in page.tags) == 2
    assert len(html.encode()) < 6_000_000
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", html)
    if kind in ("clean inspection", "inspection", "check"):
        assert NAMES[0] in page.text
    assert "torch" in page.text
    images = re.findall(r"data:image/png;base64,([\w+/=]+)", html)
    assert images
    assert all(base64.b64decode(image).startswith(b"\x89PNG") for image in images)


def test_the_page_of_an_inspection_names_the_pair(cases):
    inspection, html = cases["inspection"].result, cases["inspection"].html
    page = ParsedHTML(html)
    assert "Verdict: backdoored" in page.text
    row = inspection.pairs[inspection.pairs["detected"]].iloc[0]
    assert f"images of {row['source']} to {row['target']}" in page.text
    assert f"{row['norm']:.2f}" in page.text
    marks = [attributes for attributes in page.attributes_of("svg") if attributes.get("class") == "dot"]
    assert len(marks) == len(inspection.pairs) == 6
    assert sum(attributes.get("class") == "flagged" for attributes in page.attributes_of("tr")) == 1
    assert "Verdict: clean" in ParsedHTML(cases["clean inspection"].html).text


def test_the_page_of_a_check_shows_what_is_rejected(cases):
    checked, html = cases["check"].result, cases["check"].html
    page = ParsedHTML(html)
    rejected = int(checked.rejected.sum())
    assert 0 < rejected < len(checked.rejected)
    assert f"{rejected} of {len(checked.rejected)} queries are rejected." in page.text
    assert sum(attributes["src"].startswith("data:image/png") for attributes in page.attributes_of("img")) == rejected
    assert sum(attributes.get("class") == "flagged" for attributes in page.attributes_of("tr")) == rejected


def test_the_page_of_pruning_compares_before_and_after(cases):
    pruned, html = cases["pruning"].result, cases["pruning"].html
    text = ParsedHTML(html).text
    assert f"{pruned.count} of {pruned.channels.count} channels of {pruned.channels.convolution} are pruned" in text
    assert f"{pruned.accuracies['before']:.4f} before, {pruned.accuracies['tuned']:.4f} after" in text
    measured = {name: {"clean_accuracy": 0.5, "attack_success_rate": None} for name in pruned.accuracies}
    assert list(pruned.against(measured).table()) == ["network", "accuracy_on_images_held_out", "clean_accuracy"]


def test_a_network_that_is_worse_is_not_called_repaired(cases):
    pruned, html = cases["pruning"].result, cases["pruning"].html
    assert pruned.doubt is None
    assert "Network: repaired" in ParsedHTML(html).text
    spoilt = replace(pruned, accuracies={**pruned.accuracies, "tuned": pruned.accuracies["before"] - 0.1})
    assert "has fallen by 0.100, more than the tolerance of 0.04" in spoilt.doubt
    page = ParsedHTML(render_pruned(spoilt, b"")).text
    assert "Network: worse" in page
    assert spoilt.doubt in page


def test_the_page_of_a_bench_holds_every_finding(cases):
    expected = sum(min(len(results.cells), 1000) + len(results.victims) for results in cases["bench"].result)
    assert len(ParsedHTML(cases["bench"].html).attributes_of("tr")) > expected > 100


def test_an_axis_shows_all_that_is_flagged_and_others_evenly():
    n = MARKS + 500
    marks = pd.DataFrame({"row": "a", "value": np.arange(n) / n, "label": [f"mark {k}" for k in range(n)]})
    marks["flagged"] = marks.index % 100 == 0
    axis = Axis("Marks", "All of them.", "value", marks, 0.5)
    html = render_result("done", "", {}, alarming=False, axis=axis)
    shown = [attributes for attributes in ParsedHTML(html).attributes_of("svg") if attributes.get("class") == "dot"]
    assert len(shown) == MARKS
    assert html.count('class="mark flagged"') == marks["flagged"].sum() + 1  # the key has one, too
    assert "threshold 0.500" in html
    empty = render_result("done", "", {}, alarming=False, axis=replace(axis, marks=marks[:0]))
    assert 'id="axis"' not in empty


def test_a_check_writes_the_table_and_the_page(run, data, tmp_path):
    model, images = data / "victim.safetensors", ("--data", data / "images")
    assert run("guard", "fit", model, *images, "--out", tmp_path / "guard.safetensors")[0] == 0
    command = ("guard", "check", model, *images, "--guard", tmp_path / "guard.safetensors", "--exit-zero")
    code, out, _ = run(*command, "--out", tmp_path / "checked.parquet")
    assert code == 0
    assert f"report: {tmp_path / 'checked.html'}" in out
    table = pd.read_parquet(tmp_path / "checked.parquet")
    page = ParsedHTML((tmp_path / "checked.html").read_text("utf-8"))
    assert f"{table['rejected'].sum()} of {len(table)} queries are rejected" in page.text
    (tmp_path / "checked.parquet").unlink()
    page_before = (tmp_path / "checked.html").read_bytes()
    code, _, err = run(*command, "--out", tmp_path / "checked.parquet")
    assert (code, "checked.html exists already" in err) == (2, True)
    assert (tmp_path / "checked.html").read_bytes() == page_before
    assert run(*command, "--out", tmp_path / "checked.parquet", "--overwrite")[0] == 0


def test_a_foreign_page_is_not_replaced_by_that_of_a_repaired_network(tmp_path):
    (tmp_path / "repaired.html").write_text("another page", encoding="utf-8")
    with pytest.raises(UndoorError, match=r"repaired\.html exists already"):
        refuse_network(tmp_path / "repaired.safetensors", overwrite=False)
    refuse_network(tmp_path / "repaired.safetensors", overwrite=True)

"""The pages of an inspection, a guard's check, pruning and a bench: each of a real result."""

import base64
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from conftest import make_dataset
from helpers.made_results import rich_store
from test_cli import data, run  # noqa: F401 - fixtures
from test_report import Collector
from undoor.defenses.post_training import Descent, FinePruning, ReverseEngineering
from undoor.defenses.post_training.pruned import refuse_network
from undoor.defenses.test_time import Ada, render_checked
from undoor.errors import UndoorError
from undoor.experiments.report.html import render_bench
from undoor.experiments.report.results import read_results
from undoor.networks.classifier import Classifier
from undoor.networks.weights import Architecture
from undoor.report import Axis, render_result
from undoor.report.result import MARKS

NAMES = ("<script>alert(1)</script>", "class'1\"", "Möwe")


@pytest.fixture(scope="module")
def results(network, tmp_path_factory):
    """Results on a small network, and the page of each by its name."""
    folder = tmp_path_factory.mktemp("results")
    classifier = Classifier(network)
    clean = replace(make_dataset(n_per_class=30, seed=1), class_names=NAMES)
    inspection = ReverseEngineering(images=4, search=Descent(steps=15))(classifier, clean)
    inspection.write(folder / "inspection")
    # As if the closest pair were a backdoor: the page does not ask who says so.
    closest = inspection.pairs["norm"] == inspection.pairs["norm"].min()
    source, target = (NAMES.index(inspection.pairs.loc[closest, end].iloc[0]) for end in ("source", "target"))
    by_pair = np.ones((3, 3))
    by_pair[source, target] = 0.001
    found = {"A": inspection.inferences["A"], "B": inspection.inferences["B"]._replace(p=0.001, by_pair=by_pair)}
    backdoored = replace(inspection, inferences=found, pairs=inspection.pairs.assign(detected=closest))

    guard = Ada(false_positive_rate=0.2).fit(classifier, clean)
    queries = make_dataset(n_per_class=40, seed=2).images.copy()
    queries[::9] = np.random.default_rng(0).integers(0, 256, queries[::9].shape, dtype=np.uint8)
    ids = np.array([f'{k}/it\'s "{k}" & <b>é</b>.png' for k in range(len(queries))])
    checked = guard.check(queries)

    pruned = FinePruning(epochs=1, learning_rate=1e-4)(classifier, clean)
    described = Architecture("small-cnn", clean.images.shape[1:], NAMES, {})
    pruned.write(folder / "repaired.safetensors", described)

    every = read_results(rich_store(folder / "bench"), "paper")
    (folder / "figure.png").write_bytes((folder / "repaired-curve.png").read_bytes())
    return {
        "clean inspection": (inspection, (folder / "inspection" / "report.html").read_text("utf-8")),
        "inspection": (backdoored, backdoored.report()),
        "check": (checked, render_checked(guard, checked, queries, ids)),
        "pruning": (pruned, (folder / "repaired.html").read_text("utf-8")),
        "bench": (every, render_bench("paper", every, "All is done.", [("figure", "A figure.")], folder)),
    }


PAGES = ("clean inspection", "inspection", "check", "pruning", "bench")


@pytest.mark.parametrize("name", PAGES)
def test_pages_are_whole_small_and_keep_names_as_text(results, name):
    html = results[name][1]
    page = Collector(html)
    assert sum(tag == "script" for tag, _ in page.tags) == 2
    assert len(html.encode()) < 6_000_000
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", html)
    if name in ("clean inspection", "inspection", "check"):
        assert NAMES[0] in page.text
    assert "torch" in page.text
    images = re.findall(r"data:image/png;base64,([\w+/=]+)", html)
    assert images
    assert all(base64.b64decode(image).startswith(b"\x89PNG") for image in images)


def test_the_page_of_an_inspection(results):
    inspection, html = results["inspection"]
    page = Collector(html)
    assert "Verdict: backdoored" in " ".join(page.text.split())
    row = inspection.pairs[inspection.pairs["detected"]].iloc[0]
    assert f"images of {row['source']} to {row['target']}" in page.text
    assert f"{row['norm']:.2f}" in page.text
    marks = [attrs for tag, attrs in page.tags if tag == "svg" and attrs.get("class") == "dot"]
    assert len(marks) == len(inspection.pairs) == 6
    assert sum(attrs.get("class") == "flagged" for tag, attrs in page.tags if tag == "tr") == 1
    assert "Verdict: clean" in " ".join(Collector(results["clean inspection"][1]).text.split())


def test_the_page_of_a_check_shows_what_is_refused(results):
    checked, html = results["check"]
    page = Collector(html)
    rejected = int(checked.rejected.sum())
    assert 0 < rejected < len(checked.rejected)
    assert f"{rejected} of {len(checked.rejected)} queries should be refused." in page.text
    figures = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len([one for one in figures if one["src"].startswith("data:image/png")]) == rejected
    assert sum(attrs.get("class") == "flagged" for tag, attrs in page.tags if tag == "tr") == rejected


def test_the_page_of_pruning(results):
    pruned, html = results["pruning"]
    text = Collector(html).text
    assert f"{pruned.count} of {pruned.channels.count} channels of {pruned.channels.convolution} are pruned" in text
    assert f"{pruned.accuracies['before']:.4f} before, {pruned.accuracies['tuned']:.4f} after" in text
    measured = {name: {"clean_accuracy": 0.5, "attack_success_rate": None} for name in pruned.accuracies}
    assert list(pruned.against(measured).table()) == ["network", "accuracy_on_images_held_out", "clean_accuracy"]


def test_a_network_that_is_worse_is_not_called_repaired(results):
    pruned, html = results["pruning"]
    assert pruned.doubt is None
    assert "Network: repaired" in " ".join(Collector(html).text.split())
    spoilt = replace(pruned, accuracies={**pruned.accuracies, "tuned": pruned.accuracies["before"] - 0.1})
    assert "has fallen by 0.100, more than the tolerance of 0.04" in spoilt.doubt
    page = " ".join(Collector(spoilt.report(b"")).text.split())
    assert "Network: worse" in page
    assert spoilt.doubt in page


def test_the_page_of_a_bench_holds_every_finding(results):
    every, html = results["bench"]
    rows = [attrs for tag, attrs in Collector(html).tags if tag == "tr"]
    shown = sum(min(len(one.cells), 1000) + len(one.victims) for one in every)
    assert len(rows) > shown > 100


def test_an_axis_shows_all_that_is_flagged_and_others_evenly():
    n = MARKS + 500
    marks = pd.DataFrame({"row": "a", "value": np.arange(n) / n, "told": [f"mark {k}" for k in range(n)]})
    marks["flagged"] = marks.index % 100 == 0
    axis = Axis("Marks", "All of them.", "value", marks, 0.5)
    html = render_result("done", "", {}, alarming=False, axis=axis)
    shown = [attrs for tag, attrs in Collector(html).tags if tag == "svg" and attrs.get("class") == "dot"]
    assert len(shown) == MARKS
    assert html.count('class="mark flagged"') == marks["flagged"].sum() + 1  # and the key
    assert "threshold 0.500" in html
    none = render_result("done", "", {}, alarming=False, axis=replace(axis, marks=marks[:0]))
    assert 'id="axis"' not in none


def test_check_writes_the_table_and_the_page(run, data, tmp_path):  # noqa: F811
    model, images = data / "victim.safetensors", ("--data", data / "images")
    assert run("guard", "fit", model, *images, "--out", tmp_path / "guard.safetensors")[0] == 0
    command = ("guard", "check", model, *images, "--guard", tmp_path / "guard.safetensors", "--exit-zero")
    code, told, _ = run(*command, "--out", tmp_path / "checked.parquet")
    assert code == 0
    assert f"report: {tmp_path / 'checked.html'}" in told
    table = pd.read_parquet(tmp_path / "checked.parquet")
    page = Collector((tmp_path / "checked.html").read_text("utf-8"))
    assert f"{table['rejected'].sum()} of {len(table)} queries should be refused" in page.text
    (tmp_path / "checked.parquet").unlink()
    page_before = (tmp_path / "checked.html").read_bytes()
    code, _, err = run(*command, "--out", tmp_path / "checked.parquet")
    assert (code, "checked.html exists already" in err) == (2, True)
    assert (tmp_path / "checked.html").read_bytes() == page_before
    assert run(*command, "--out", tmp_path / "checked.parquet", "--overwrite")[0] == 0


def test_a_page_of_ones_own_is_not_replaced_by_a_repaired_networks(tmp_path):
    (tmp_path / "repaired.html").write_text("mine", encoding="utf-8")
    with pytest.raises(UndoorError, match=r"repaired\.html exists already"):
        refuse_network(tmp_path / "repaired.safetensors", overwrite=False)
    refuse_network(tmp_path / "repaired.safetensors", overwrite=True)

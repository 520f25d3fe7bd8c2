"""The page of findings as text; test_report_browser.py tests how it works in a browser."""

import base64
import io
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import undoor
from conftest import QUICKLY, make_dataset, plant
from helpers.parsed_html import ParsedHTML, script_data
from undoor.defenses.training_set import ActivationClustering, ClusterImpurity, SpectralSignatures
from undoor.errors import UndoorError
from undoor.filters import Average, Median
from undoor.findings.maps import map_coordinates, with_report_columns
from undoor.findings.provenance import Provenance
from undoor.findings.reading import read_findings
from undoor.report import charts, pictures
from undoor.report.findings import CARD_IMAGES, render_findings, rewrite_report, write_findings
from undoor.report.page import packed
from undoor.report.result import render_result
from undoor.safe.images import encode_png

NAMES = ("class0", "class1", "class2", "class3")


def findings_and_dataset(planted, names=NAMES, defense=None, size=12):
    """Return findings with all columns that the page shows, and their data set."""
    evidence = replace(planted.evidence, class_names=names)
    n = len(evidence.labels)
    images = np.resize(make_dataset(channels=3, size=size).images, (n, 3, size, size))
    findings = (defense or ClusterImpurity(**QUICKLY))(evidence).against(planted.poisoned)
    return with_report_columns(findings, evidence, "planted"), undoor.Dataset(
        images, evidence.labels, names, evidence.ids
    )


def decoded(uri):
    """Return the pixels of a PNG in a data URI."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))))


def test_the_page_shows_verdict_margin_clusters_and_cards(planted):
    findings, dataset = findings_and_dataset(planted)
    html = render_findings(findings, dataset, Average())
    page = ParsedHTML(html)
    text = page.text
    assert "poisoned" in page.texts["span"]
    assert f"{findings.flagged.sum()} of {len(findings.samples)} images are flagged" in text
    flagged = findings.clusters[findings.clusters["flagged"]]
    assert f"{flagged['impurity'].min() / findings.threshold:.1f} times the threshold" in text
    assert sum("data-sample" in attributes for attributes in page.attributes_of("button")) == CARD_IMAGES
    dots = [attributes for attributes in page.attributes_of("svg") if attributes.get("class") == "dot"]
    assert len(dots) == len(findings.clusters)
    assert "decided class1 → class0" in text
    assert "tpr" in text


def test_a_clean_verdict_shows_the_cluster_of_highest_impurity():
    findings, dataset = findings_and_dataset(plant(poison=0))
    page = ParsedHTML(render_findings(findings, dataset, Average()))
    assert "clean" in page.texts["span"]
    assert "this method found nothing. It does not prove that no image is poisoned." in page.text
    assert "What is flagged" not in page.text
    assert "What to look at, although nothing is flagged" in page.text
    ids = findings.samples["id"].tolist()
    named = [attrs["aria-label"] for _, attrs in page.tags if "data-sample" in attrs]
    shown = [ids.index(name.removeprefix("select ")) for name in named]
    worst = findings.clusters.sort_values("impurity").iloc[-1]
    of_worst = (findings.samples["label"] == worst["class"]) & (findings.samples["cluster"] == worst["cluster"])
    assert shown
    assert of_worst.iloc[shown].all()


@pytest.mark.parametrize("defense", [SpectralSignatures(), ActivationClustering()])
def test_other_defenses_have_a_page(planted, defense):
    findings, dataset = findings_and_dataset(planted, defense=defense)
    page = ParsedHTML(render_findings(findings, dataset, Average()))
    assert f"{findings.flagged.sum()} of {len(findings.samples)} images are flagged" in page.text
    assert ("All classes" in page.text) == findings.clusters.empty


def test_findings_without_the_columns_of_a_map_have_a_page(planted):
    _, dataset = findings_and_dataset(planted)
    html = render_findings(ClusterImpurity(**QUICKLY)(planted.evidence), dataset, Average())
    assert 'id="canvas"' not in html
    assert "filtered" not in script_data(html)["samples"]


def test_nothing_leaves_the_file(planted):
    html = render_findings(*findings_and_dataset(planted), Average())
    page = ParsedHTML(html)
    addresses = [value for _, attrs in page.tags for key, value in attrs.items() if key in ("src", "href")]
    assert addresses
    assert all(value.startswith(("data:image/png;base64,", "data:image/webp;base64,", "#")) for value in addresses)
    assert "http:" not in html
    assert "https:" not in html
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv"))
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    assert not [1 for _, attrs in page.tags if "style" in attrs or any(key.startswith("on") for key in attrs)]


def test_names_stay_text(planted):
    hostile = "<script>alert(1)</script>"
    findings, dataset = findings_and_dataset(planted, ("a", hostile, 'c"d', "é&</script>"))
    html = render_findings(findings, dataset, Average())
    page = ParsedHTML(html)
    assert sum(tag == "script" for tag, _ in page.tags) == 2
    assert hostile in page.text
    assert hostile not in html
    assert script_data(html)["classes"] == list(findings.class_names)


def test_the_script_of_the_page_gets_every_sample(planted):
    findings, dataset = findings_and_dataset(planted)
    samples = script_data(render_findings(findings, dataset, Average()))["samples"]
    for name in ("id", "label", "predicted", "filtered", "cluster"):
        assert samples[name] == findings.samples[name].tolist()
    assert samples["flagged"] == findings.flagged.astype(int).tolist()
    assert sorted(samples["thumbnail"]) == list(range(len(dataset)))


def test_a_large_set_is_shown_in_part_with_all_that_is_flagged(planted, monkeypatch):
    monkeypatch.setattr("undoor.report.findings.POINTS", 200)
    findings, dataset = findings_and_dataset(planted)
    html = render_findings(findings, dataset, Average())
    samples = script_data(html)["samples"]
    assert len(samples["id"]) == 200
    assert sum(samples["flagged"]) == findings.flagged.sum()
    assert "200 of 660 images are on this page" in ParsedHTML(html).text


def test_thumbnails_stay_within_their_bytes():
    noise = np.random.default_rng(0).integers(0, 256, (300, 3, 40, 60), dtype=np.uint8)
    dataset = undoor.Dataset(noise, np.zeros(300, np.int64), ("a",), np.arange(300).astype(str))
    every = pictures.thumbnails(dataset, np.arange(300))
    assert every.size == (21, 32)
    assert every.rows.tolist() == list(range(300))
    few = pictures.thumbnails(dataset, np.arange(300), budget=30_000)
    assert 10 < len(few.rows) < 300
    assert len(few.uri) < 30_000 * 4 / 3 + 100


def test_a_single_changed_pixel_of_a_large_image_stays_visible():
    images = np.full((4, 3, 400, 400), 100, dtype=np.uint8)
    images[2:, :, 123, 321] = 255
    dataset = undoor.Dataset(images, np.zeros(4, np.int64), ("a",), np.arange(4).astype(str))
    same, changed = (decoded(image["change"]) for image in pictures.sheet(dataset, np.array([0, 2]), Average()))
    assert same.shape == changed.shape == (96, 96, 3)
    assert np.ptp(same) == 0
    assert np.abs(changed.astype(int) - 128).max() > 100
    mean = pictures.mean_change(dataset, np.array([2, 3]), np.array([0, 1]), Average())
    assert np.ptp(decoded(mean["of_rows"])) > 100
    assert np.ptp(decoded(mean["of_others"])) == 0


def test_the_axis_keeps_the_order_of_impurities_and_bars_add_up(planted):
    findings, _ = findings_and_dataset(planted)
    axis = charts.impurity_axis(findings)
    marks = [mark for row in axis["rows"] for mark in row["marks"]]
    assert all((mark["x"] > axis["threshold"]["x"]) == mark["flagged"] for mark in marks)
    assert sorted(marks, key=lambda m: m["x"]) == sorted(marks, key=lambda m: m["impurity"])
    bars = charts.destinations([0, 5, 3, *[1] * 20], [f"c{k}" for k in range(23)], most=3)
    assert [(bar["name"], bar["count"]) for bar in bars] == [("c1", 5), ("c2", 3), ("c3", 1), ("19 others", 19)]
    assert sum(bar["share"] for bar in bars) == pytest.approx(1)
    assert [bar["name"] for bar in charts.destinations([4, 3, 2, 1], "abcd", most=3)] == list("abcd")


def test_curves_have_their_lowest_at_the_number_of_clusters(planted):
    findings, _ = findings_and_dataset(planted)
    sizes = findings.clusters.groupby("class").size()
    for chart in charts.bic_curves(findings)["charts"]:
        assert chart["best"]["k"] == sizes[NAMES.index(chart["name"])]
        assert chart["best"]["y"] == max(point["y"] for point in chart["points"])


def test_a_map_separates_clusters_and_takes_any_features():
    generator = np.random.default_rng(0)
    assignments = np.repeat([0, 1, 2], 100)
    centres = np.zeros((3, 20))
    centres[1, 7] = centres[2, 11] = 8
    wide = np.ones(20)
    wide[0] = 30  # the widest direction holds no cluster
    features = (centres[assignments] + wide * generator.normal(size=(300, 20))).astype(np.float32)
    coordinates = map_coordinates(features, assignments)
    means = np.stack([coordinates[assignments == k].mean(axis=0) for k in range(3)])
    nearest = np.argmin(((coordinates[:, None] - means) ** 2).sum(axis=2), axis=1)
    assert (nearest == assignments).mean() > 0.99
    order = generator.permutation(300)
    assert np.allclose(map_coordinates(features[order], assignments[order]), coordinates[order], atol=1e-3)
    single = map_coordinates(features, np.zeros(300, dtype=int))
    assert abs(np.corrcoef(single[:, 0], features[:, 0])[0, 1]) > 0.99
    for odd in (np.ones((5, 3)), np.ones((1, 4)), np.arange(6).reshape(6, 1)):
        assert np.isfinite(map_coordinates(odd.astype(np.float32), np.zeros(len(odd), dtype=int))).all()


def test_the_columns_of_the_report_leave_the_findings_as_they_are(planted):
    findings = ClusterImpurity(**QUICKLY)(planted.evidence)
    shown = with_report_columns(findings, planted.evidence, "planted")
    pd.testing.assert_frame_equal(shown.samples[findings.samples.columns], findings.samples)
    assert shown.samples["filtered"].tolist() == planted.evidence.filtered["planted"].decisions.tolist()
    assert shown.image_filter == "planted"


def test_the_page_is_written_again_from_a_folder(planted, tmp_path):
    findings, dataset = findings_and_dataset(planted)
    for image_filter in (Average(3, "zero"), Median()):
        findings = replace(findings, image_filter=str(image_filter))
        write_findings(findings, dataset, image_filter, tmp_path, overwrite=True)
        first = (tmp_path / "report.html").read_text()
        (tmp_path / "report.html").unlink()
        assert rewrite_report(tmp_path, dataset).read_text() == first
    again = read_findings(tmp_path)
    pd.testing.assert_frame_equal(again.curves, findings.curves)
    assert again.summary() == json.loads(json.dumps(findings.summary()))
    with pytest.raises(UndoorError, match="are of other images than the data"):
        rewrite_report(tmp_path, dataset.take(np.arange(10)))
    write_findings(replace(findings, image_filter="planted"), dataset, Median(), tmp_path, overwrite=True)
    with pytest.raises(UndoorError, match="no filter is called 'planted'"):
        rewrite_report(tmp_path, dataset)
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(UndoorError, match=r"cannot be read: .*; scan again"):
        read_findings(tmp_path)


def test_packed_data_cannot_end_its_element():
    assert "<" not in packed({"a": "</script>"})


def test_large_sets_stay_below_six_megabytes():
    """50 000 images of noise, which compress worst, with long ids and the largest sheets."""
    n, classes = 50_000, 10
    generator = np.random.default_rng(0)
    labels = generator.integers(0, classes, n)
    images = np.broadcast_to(generator.integers(0, 256, (1, 3, 32, 32), dtype=np.uint8), (n, 3, 32, 32))
    ids = np.array([f"train/class{label}/picture-{row:06d}.jpeg" for row, label in enumerate(labels)])
    samples = pd.DataFrame({"id": ids, "label": labels, "predicted": labels, "cluster": generator.integers(0, 3, n)})
    samples["flagged"] = (samples["cluster"] == 1) & (labels < 5)
    samples["score"] = 1.0 * samples["flagged"]
    samples = samples.assign(filtered=generator.integers(0, classes, n), x=generator.normal(size=n), y=labels / 2)
    names = tuple(f"class{k}" for k in range(classes))
    sizes = samples.groupby(["label", "cluster"]).size()
    clusters = pd.DataFrame(
        [
            {"class": k, "class_name": names[k], "cluster": c, "look": 1, "size": size, "examined": size,
             "changed": 0.5, "impurity": float(c == 1 and k < 5), "destinations": [7] * classes,
             "flagged": c == 1 and k < 5}
            for (k, c), size in sizes.items()
        ]
    )  # fmt: skip
    findings = undoor.Findings(
        provenance=Provenance(defense="cluster_impurity", method_version=1, settings={"decision": "plain"}),
        samples=samples,
        clusters=clusters,
        class_names=names,
        threshold=0.5,
    )
    html = render_findings(findings, undoor.Dataset(images, labels, names, ids), Average())
    assert len(html.encode()) < 6_000_000


def test_a_card_shows_the_difference_that_the_filter_makes():
    dataset = make_dataset(channels=1)
    (first,) = pictures.sheet(dataset, np.array([3]), Average())
    assert first["id"] == "3"
    filtered = Average()(torch.from_numpy(dataset.images[3:4]).float() / 255)
    change = filtered - torch.from_numpy(dataset.images[3:4]).float() / 255
    expected = ((pictures.AMPLIFIED * change + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).numpy()[0]
    assert np.array_equal(decoded(first["change"]), expected[0])


def render_pairs():
    """Return a page like that of an inspection, with a hostile name."""
    hostile = "<script>alert(1)</script>"
    pairs = pd.DataFrame({"source": ["a", hostile, "c"], "target": "b", "norm": [2.5, 0.25, 1e-5]})
    pairs = pairs.assign(steps=[3, 1200, 5], detected=[False, True, False])
    summary = {
        "defense": "reverse_engineering", "verdict": "backdoored", "p": 0.001, "sources": [hostile], "images": {"a": 5},
        "settings": {"level": 0.05, "layer": None}, "seed": 3, "seconds": {"search": 1.5}, "versions": {"undoor": "0"},
    }  # fmt: skip
    png = encode_png(np.full((3, 20, 60), 128, np.uint8))
    return render_result("backdoored", f"{hostile} → b is too close.", summary, alarming=True,
                         tables={"Class pairs": pairs}, images=[(f"{hostile} → b", png)])  # fmt: skip


def test_other_results_share_the_templates():
    html = render_pairs()
    page = ParsedHTML(html)
    assert sum(tag == "script" for tag, _ in page.tags) == 2
    assert "<script>alert(1)</script> → b is too close." in page.text
    assert "reverse engineering" in page.text
    values = [attributes["data-value"] for attributes in page.attributes_of("td") if "data-value" in attributes]
    assert values[:2] == ["2.5", "3"]
    assert "1.00e-05" in page.text
    assert script_data(html) is None
    many = pd.DataFrame({"k": range(1005)})
    assert "5 further rows" in ParsedHTML(render_result("done", "", {}, alarming=False, tables={"t": many})).text

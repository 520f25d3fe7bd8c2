import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np

import undoor
from conftest import QUICKLY, make_dataset, plant
from undoor.defenses.training_set import ClusterImpurity
from undoor.filters import Average
from undoor.report import SHEET, render_report


class Collector(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def parsed(planted, names=("class0", "class1", "class2", "class3")):
    n = len(planted.evidence.labels)
    images = np.resize(make_dataset(channels=3).images, (n, 3, 12, 12))
    dataset = undoor.Dataset(images, planted.evidence.labels, names, planted.evidence.ids)
    evidence = replace(planted.evidence, class_names=names)
    findings = ClusterImpurity(**QUICKLY)(evidence).against(planted.poisoned)
    collector = Collector()
    html = render_report(findings, dataset, Average())
    collector.feed(html)
    return html, collector, findings


def test_verdict_clusters_and_twins(planted):
    _, page, findings = parsed(planted)
    text = re.sub(r"\s+", " ", "".join(page.text))
    assert "Verdict: poisoned" in text
    assert f"{findings.flagged.sum()} of {len(findings.samples)} images are flagged" in text
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 2 * SHEET
    assert sum(tag == "tr" for tag, _ in page.tags) >= 1 + len(findings.clusters)
    assert "tpr" in text


def test_clean_verdict():
    _, page, _ = parsed(plant(poison=0))
    assert "Verdict: clean" in re.sub(r"\s+", " ", "".join(page.text))
    assert not [tag for tag, _ in page.tags if tag == "img"]


def test_nothing_leaves_the_file(planted):
    html, page, _ = parsed(planted)
    addresses = [value for _, attrs in page.tags for key, value in attrs.items() if key in ("src", "href")]
    assert addresses
    assert all(value.startswith("data:image/png;base64,") for value in addresses)
    assert "http" not in re.sub(r"http-equiv", "", html)


def test_names_stay_text(planted):
    hostile = "<script>alert(1)</script>"
    html, page, _ = parsed(planted, ("a", hostile, 'c"d', "é&"))
    assert "script" not in {tag for tag, _ in page.tags}
    assert hostile in "".join(page.text)
    assert hostile not in html

"""The reasons to doubt a verdict are reported beside it."""

from dataclasses import replace

import numpy as np
import pytest

import undoor
from conftest import QUICKLY, make_dataset, one_hot, plant
from undoor.defenses.training_set import ClusterImpurity, SpectralSignatures
from undoor.errors import UndoorNotice
from undoor.evidence import Evidence, Outputs
from undoor.filters import Average
from undoor.findings.maps import with_report_columns
from undoor.report.findings import render_findings

CI = ClusterImpurity(**QUICKLY)


def decided(evidence, before=None, after=None):
    """Return the evidence with other decisions."""
    plain, filtered = evidence.plain, evidence.filtered["planted"]
    k = len(evidence.class_names)
    return Evidence(
        Outputs(plain.features, plain.logits if before is None else one_hot(before, k)),
        {"planted": Outputs(filtered.features, filtered.logits if after is None else one_hot(after, k))},
        evidence.labels,
        evidence.ids,
        evidence.class_names,
    )


def findings_of(evidence, defense=CI):
    return with_report_columns(defense(evidence), evidence, "planted")


def test_there_is_no_doubt_where_all_is_well(planted):
    assert findings_of(planted.evidence).doubts == []
    assert findings_of(planted.evidence).summary()["doubts"] == []
    assert findings_of(planted.evidence).summary()["learned"] == 1.0


def test_a_network_that_has_not_learned_the_set_is_the_only_doubt(planted):
    wrong = planted.evidence.labels.copy()
    wrong[:400] = (wrong[:400] + 1) % 4
    (doubt,) = findings_of(decided(planted.evidence, wrong)).doubts
    assert "decides only 39% of the images as they are labelled" in doubt.text
    assert "alphabetical" in doubt.text
    assert "--mean" in doubt.text


def test_poisoned_images_that_the_network_has_not_learned_are_doubtful():
    """They are decided as their source class: no decision as labelled is left to examine, and nothing is flagged."""
    planted = plant(clean=300)
    decisions = np.where(planted.poisoned, 0, planted.evidence.labels)
    findings = findings_of(decided(planted.evidence, decisions))
    assert findings.verdict == "clean"
    (doubt,) = findings.doubts
    label, cluster = doubt.cluster
    assert label == planted.target
    members = (findings.samples["label"] == label) & (findings.samples["cluster"] == cluster)
    assert (members == planted.poisoned).mean() > 0.99
    assert f"images of cluster {cluster} of class class1 are decided otherwise than" in doubt.text
    assert "most as class0" in doubt.text
    assert findings.summary()["doubts"] == [doubt.text]


def test_decisions_that_change_without_confidence_are_doubtful():
    planted = plant(clean=300)
    after = planted.evidence.filtered["planted"].decisions
    weak = decided(planted.evidence)
    logits = weak.filtered["planted"].logits.copy()
    logits[planted.poisoned & (after == 0)] /= 100  # they return to their source class, without confidence
    weak = replace(weak, filtered={"planted": Outputs(weak.filtered["planted"].features, logits)})
    findings = findings_of(weak)
    assert findings.verdict == "clean"
    (doubt,) = findings.doubts
    assert "most to class0" in doubt.text
    assert "--decision plain" in doubt.text
    assert findings_of(weak, ClusterImpurity.poster(**QUICKLY)).classes_flagged == ("class1",)


def test_methods_without_clusters_have_no_doubtful_ones(planted):
    assert findings_of(planted.evidence, SpectralSignatures()).doubts == []


def test_a_scan_gives_a_notice_and_the_page_shows_the_images(network):
    data = make_dataset(n_per_class=150)
    labels = data.labels.copy()
    labels[:40] = 1  # images of class0, labelled class1 after the training
    wrong = undoor.Dataset(data.images, labels, data.class_names, data.ids)
    with pytest.warns(UndoorNotice, match="of class class1 are decided otherwise than labelled, most as class0"):
        findings = undoor.scan(network, wrong, CI)
    html = render_findings(findings, wrong, Average())
    assert "What to look at, although nothing is flagged" in html
    assert "decided otherwise than labelled" in html
    assert html.count('alt="filtered image"') >= 10

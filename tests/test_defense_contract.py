"""One table of training-set defenses drives one contract test."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from conftest import QUICKLY, one_hot, permuted, plant
from undoor.data.dataset import row_ids
from undoor.defenses.training_set import (
    ActivationClustering,
    ClusterImpurity,
    PerfectRemoval,
    RandomRemoval,
    SpectralSignatures,
)
from undoor.evidence import Evidence, Outputs
from undoor.findings.tables import CLUSTER_COLUMNS, SAMPLE_COLUMNS

# These leave a clean set alone and flag images of the poisoned class only.
STRICT = {
    "cluster impurity": ClusterImpurity(**QUICKLY),
    "cluster impurity, the poster's": ClusterImpurity.poster(**QUICKLY),
    "cluster impurity, the authors' code's": ClusterImpurity.authors_code(**QUICKLY),
}

# These flag a share of every class that they treat, poisoned or not, or promise less on small classes.
WIDE = {
    "spectral signatures": SpectralSignatures(),
    "spectral signatures, 85th percentile": SpectralSignatures(0.15),
    "activation clustering": ActivationClustering(),
    "activation clustering, relative size": ActivationClustering("relative-size"),
    "activation clustering, silhouette": ActivationClustering("silhouette", whiten=False),
}
DEFENSES = STRICT | WIDE


@pytest.fixture(params=STRICT.values(), ids=list(STRICT))
def strict(request):
    return request.param


@pytest.fixture(params=DEFENSES.values(), ids=list(DEFENSES))
def defense(request):
    return request.param


def test_findings_have_the_right_columns_and_high_scores_are_suspicious(defense, planted):
    findings = defense(planted.evidence)
    n = len(planted.evidence.labels)
    assert tuple(findings.samples.columns) == SAMPLE_COLUMNS
    assert tuple(findings.clusters.columns) == CLUSTER_COLUMNS
    assert findings.samples["id"].tolist() == planted.evidence.ids.tolist()
    assert len(findings.samples) == n
    assert findings.clusters["size"].sum() == (n if len(findings.clusters) else 0)
    assert np.isfinite(findings.samples["score"]).all()
    assert findings.flagged.tolist() == (findings.samples["score"] > findings.threshold).tolist()
    assert findings.clusters["flagged"].tolist() == (findings.clusters["impurity"] > findings.threshold).tolist()
    assert findings.truth is None
    json.dumps(findings.summary(), allow_nan=False)
    counts = findings.against(planted.poisoned).truth
    assert counts["auroc"] > 0.6
    assert counts["tpr"] > 0.4


def test_poisons_are_found_and_nothing_else(strict, planted):
    findings = strict(planted.evidence)
    counts = findings.against(planted.poisoned).truth
    assert counts["auroc"] > 0.99
    assert counts["tpr"] > 0.95
    assert counts["fpr_all_classes"] < 0.01
    assert findings.verdict == "poisoned"
    assert findings.classes_flagged == ("class1",)


def test_the_same_evidence_gives_the_same_findings(defense, planted):
    first, second = defense(planted.evidence), defense(planted.evidence)
    pd.testing.assert_frame_equal(first.samples, second.samples)
    pd.testing.assert_frame_equal(first.clusters, second.clusters)


def test_the_order_of_the_samples_does_not_matter(defense, planted):
    order = np.random.default_rng(5).permutation(len(planted.evidence.labels))
    first, shuffled = defense(planted.evidence), defense(permuted(planted.evidence, order))
    pd.testing.assert_frame_equal(first.samples.iloc[order].reset_index(drop=True), shuffled.samples)
    pd.testing.assert_frame_equal(first.clusters, shuffled.clusters)


@pytest.mark.parametrize(
    "build",
    [lambda planted, defense=defense: defense for defense in DEFENSES.values()]
    + [lambda planted: RandomRemoval(5), lambda planted: PerfectRemoval(planted.poisoned)],
    ids=[*DEFENSES, "random removal", "perfect removal"],
)
def test_the_findings_carry_the_version_of_the_method(build, planted, monkeypatch):
    defense = build(planted)
    monkeypatch.setattr(type(defense), "method_version", 77)
    assert defense(planted.evidence).provenance.method_version == 77
    assert defense(planted.evidence).summary()["method_version"] == 77


def test_evidence_holds_only_what_a_defender_has():
    assert {f.name for f in dataclasses.fields(Evidence)} == {"plain", "filtered", "labels", "ids", "class_names"}
    assert {f.name for f in dataclasses.fields(Outputs)} == {"features", "logits"}


DEGENERATE = pytest.mark.parametrize(
    ("labels", "constant"),
    [([0] * 30 + [1] * 30, False), ([0] * 30 + [1] * 30 + [2], False), ([0] * 30 + [1] * 30 + [2] * 5, True)],
    ids=["a class with none", "a class with one", "constant features"],
)


def degenerate(labels, constant):
    """Return evidence of three classes with these labels, in which the filter changes nothing."""
    labels = np.array(labels)
    features = 3.7 + np.random.default_rng(0).normal(size=(len(labels), 4)) * (not constant)
    outputs = Outputs(features.astype(np.float32), one_hot(labels, 3))
    return Evidence(outputs, {"h": outputs}, labels, row_ids(len(labels)), tuple("abc"))


@DEGENERATE
def test_degenerate_classes_have_finite_scores_and_no_flags(defense, labels, constant):
    findings = defense(degenerate(labels, constant))
    assert len(findings.samples) == len(labels)
    assert np.isfinite(findings.samples["score"]).all()
    # Nothing stands out in a class of one image, or in a class of equal images.
    assert not findings.flagged[(findings.samples["label"] == 2) | constant].any()


@DEGENERATE
def test_degenerate_classes_are_clean(strict, labels, constant):
    assert strict(degenerate(labels, constant)).verdict == "clean"


@pytest.mark.parametrize("seed", range(5))
def test_a_clean_set_is_called_clean(strict, seed):
    findings = strict(plant(seed, poison=0).evidence)
    assert findings.verdict == "clean"
    assert findings.classes_flagged == ()

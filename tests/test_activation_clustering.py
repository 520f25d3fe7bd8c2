import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA, FastICA
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score, silhouette_score

from conftest import one_hot, plant
from undoor.data.dataset import row_ids
from undoor.defenses.training_set import ActivationClustering
from undoor.defenses.training_set.activation_clustering import (
    AUTHORS_2020,
    mean_silhouette,
    reduce_dimensions,
    split,
)
from undoor.errors import UndoorError
from undoor.evidence import Evidence, Outputs


def blobs(sizes, dimensions=20, distance=4.0, seed=0):
    generator = np.random.default_rng(seed)
    parts = [generator.normal(size=(n, dimensions)) + distance * k for k, n in enumerate(sizes)]
    features = np.concatenate(parts) * np.linspace(1, 3, dimensions)
    return features.astype(np.float32), np.repeat(np.arange(len(sizes)), sizes)


def one_class(sizes, distance=4.0):
    """Return evidence of one class of blobs beside a far one that is a single blob."""
    features, parts = blobs(sizes, distance=distance)
    other, _ = blobs([40], seed=1)
    labels = np.concatenate([np.zeros(len(parts), dtype=np.int64), np.ones(40, dtype=np.int64)])
    outputs = Outputs(np.concatenate([features, other - 50]), one_hot(labels, 2))
    return Evidence(outputs, {}, labels, row_ids(len(labels)), ("zero", "one")), np.append(parts == 1, [False] * 40)


def default_split(features, whiten=True, restarts=10, silhouettes=False):
    return split(features, 10, whiten, restarts, silhouettes, 0)


def test_reduced_features_are_the_principal_components_of_scikit_learn():
    features, _ = blobs([200, 60])
    rows = features.astype(np.float64)
    plain = PCA(10, svd_solver="full").fit_transform(rows)
    white = PCA(10, svd_solver="full", whiten=True).fit_transform(rows)
    assert np.allclose(np.abs(reduce_dimensions(features, 10, False)), np.abs(plain), atol=1e-8)
    n = len(rows)
    assert np.allclose(np.abs(reduce_dimensions(features, 10, True)), np.abs(white) * np.sqrt(n / (n - 1)), atol=1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_whitened_components_have_the_distances_and_clusters_of_fastica(seed):
    features = np.random.default_rng(seed).gamma(2, size=(400, 20)).astype(np.float32) ** 2
    features[:60] += 4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # an unfinished rotation is a rotation too
        rotated = FastICA(10, random_state=seed, max_iter=20, whiten="unit-variance").fit_transform(
            features.astype(np.float64)
        )
    ours = reduce_dimensions(features, 10, whiten=True)
    assert np.allclose(rotated @ rotated.T, ours @ ours.T, atol=1e-6)
    theirs = KMeans(2, n_init=30, random_state=seed).fit_predict(rotated)
    assert adjusted_rand_score(theirs, KMeans(2, n_init=30, random_state=seed).fit_predict(ours)) > 0.98


@pytest.mark.parametrize("whiten", [True, False])
def test_the_smaller_blob_is_the_smaller_cluster_in_any_order(whiten):
    features, truth = blobs([300, 80])
    order = np.random.default_rng(1).permutation(len(features))
    found, permuted = default_split(features, whiten).smaller, default_split(features[order], whiten).smaller
    assert np.array_equal(found, truth == 1)
    assert np.array_equal(found[order], permuted)


@pytest.mark.parametrize(
    "features",
    [np.zeros((1, 3)), np.full((50, 3), 3.7), np.eye(2), np.random.default_rng(0).normal(size=(4, 30))],
    ids=["one row", "constant", "two rows", "fewer rows than dimensions"],
)
def test_degenerate_classes_are_split_without_complaint(features):
    parted = default_split(features.astype(np.float32), silhouettes=True)
    assert parted.smaller.shape == (len(features),)
    assert parted.smaller.sum() < len(features) / 2
    assert np.isfinite(parted.silhouette)


def test_the_silhouette_is_that_of_scikit_learn_and_its_estimate_is_close():
    features, truth = blobs([400, 100], distance=1.0)
    rows = features.astype(np.float64)
    assert mean_silhouette(rows, truth, 0) == pytest.approx(silhouette_score(rows, truth))
    many, truth = blobs([2500, 3], dimensions=3, distance=1.0)
    estimates = [mean_silhouette(many.astype(np.float64), truth, seed) for seed in range(4)]
    assert estimates == pytest.approx([silhouette_score(many, truth)] * 4, abs=0.03)


def test_the_smaller_cluster_of_every_class_is_flagged():
    evidence, planted = one_class([300, 80])
    findings = ActivationClustering()(evidence)
    assert np.array_equal(findings.flagged[:380], planted[:380])
    assert 0 < findings.flagged[380:].sum() < 20
    row = findings.clusters.iloc[1]
    assert (row["class_name"], row["size"], row["flagged"]) == ("zero", 80, True)
    assert row["impurity"] == pytest.approx(1 - 80 / 380)


@pytest.mark.parametrize(("sizes", "flagged"), [([130, 70], False), ([131, 69], True), ([100, 100], False)])
def test_relative_size_flags_a_cluster_below_the_threshold(sizes, flagged):
    evidence, planted = one_class(sizes)
    findings = ActivationClustering("relative-size", whiten=False, classes=("zero",))(evidence)
    assert findings.threshold == pytest.approx(0.65)
    assert np.array_equal(findings.flagged, planted & flagged)
    looser = ActivationClustering("relative-size", 0.36, whiten=False, classes=("zero",))(evidence)
    assert np.array_equal(looser.flagged, planted & (sizes[1] < 72))


def test_silhouette_flags_the_smaller_cluster_of_a_class_that_falls_into_two():
    evidence, planted = one_class([300, 80])
    findings = ActivationClustering("silhouette", whiten=False)(evidence)
    assert np.array_equal(findings.flagged[:380], planted[:380])
    value = findings.clusters.loc[findings.clusters["size"] == 80, "impurity"].item()
    reduced = reduce_dimensions(evidence.plain.features[:380], 10, whiten=False)
    assert value == pytest.approx(silhouette_score(reduced, planted[:380]))
    stricter = ActivationClustering("silhouette", value + 0.01, whiten=False)(evidence)
    assert stricter.verdict == "clean"


def test_the_variant_of_2020_reduces_to_two_dimensions():
    evidence, planted = one_class([300, 80], distance=8.0)
    findings = AUTHORS_2020(evidence)
    assert findings.provenance.settings["dimensions"] == 2
    assert findings.threshold == 0.4055
    assert np.array_equal(findings.flagged, planted)
    assert AUTHORS_2020(one_class([380, 0])[0]).verdict == "clean"


def fake_retrain(labels, own, other, calls):
    """Return a function that "trains" without a cluster and decides ``own`` of its images as 0 and ``other`` as 1."""

    def retrain(kept):
        calls.append(kept)
        decisions = labels.copy()
        without = np.flatnonzero(~kept & (labels == 0))
        decisions[without[own : own + other]] = 1
        return decisions

    return retrain


@pytest.mark.parametrize(("own", "flagged"), [(39, True), (40, False), (80, False), (0, True)])
def test_exre_flags_a_cluster_that_a_network_trained_without_it_takes_for_another_class(own, flagged):
    evidence, planted = one_class([300, 80])
    calls = []
    retrain = fake_retrain(evidence.labels, own, 80 - own, calls)
    findings = ActivationClustering("exre", retrain=retrain)(evidence)
    assert any(np.array_equal(kept, ~planted) for kept in calls)
    assert len(calls) == 2  # once for every class, without its smaller cluster
    assert np.array_equal(findings.flagged, planted & flagged)
    row = findings.clusters[findings.clusters["size"] == 80].iloc[0]
    assert row["impurity"] == pytest.approx(np.log(max(80 - own, 0.5) / max(own, 0.5)))
    assert row["examined"] == 80
    assert row["changed"] == pytest.approx(1 - own / 80)
    assert row["destinations"] == [0, 80 - own]
    assert "retrain" not in findings.provenance.settings


def test_the_threshold_of_exre_is_l_over_p():
    evidence, planted = one_class([300, 80])
    retrain = fake_retrain(evidence.labels, 30, 50, [])
    for threshold, flagged in ((0.61, True), (0.59, False)):
        findings = ActivationClustering("exre", threshold, retrain=retrain)(evidence)
        assert np.array_equal(findings.flagged, planted & flagged)


def test_the_number_of_workers_changes_nothing():
    evidence = plant(1).evidence
    serial, parallel = (ActivationClustering(workers=workers)(evidence) for workers in (1, 2))
    pd.testing.assert_frame_equal(serial.samples, parallel.samples)
    pd.testing.assert_frame_equal(serial.clusters, parallel.clusters)
    assert serial.provenance.settings == parallel.provenance.settings


def test_the_byte_order_of_the_features_does_not_matter():
    features, _ = blobs([60, 50], distance=0.0)
    native, swapped = (default_split(features.astype(kind)).smaller for kind in ("<f4", ">f4"))
    assert np.array_equal(native, swapped)
    zeros = np.where(np.abs(features) < 1, np.float32(0), features)
    assert np.array_equal(default_split(zeros).smaller, default_split(np.where(zeros == 0, -zeros, zeros)).smaller)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "largest"}, "no rule is called 'largest'; take smaller, relative-size, silhouette, exre"),
        ({"rule": "exre"}, "give retrain="),
        ({"threshold": 0.4}, "has no threshold"),
        ({"rule": "silhouette", "threshold": 0.0}, "above 0"),
        ({"dimensions": 0}, "0 dimensions"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(UndoorError, match=message):
        ActivationClustering(**settings)


def test_decisions_of_another_shape_are_refused():
    evidence, _ = one_class([300, 80])
    with pytest.raises(UndoorError, match=r"shape \(3,\); return \(420,\)"):
        ActivationClustering("exre", retrain=lambda kept: np.zeros(3, dtype=np.int64))(evidence)

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, entropy

from conftest import QUICKLY, one_hot, plant
from helpers.real_evidence import real_evidence
from undoor.data.dataset import row_ids
from undoor.defenses.training_set import ClusterImpurity
from undoor.defenses.training_set.cluster_impurity import THRESHOLDS, certain_share, confident_changes, impurity
from undoor.errors import UndoorError
from undoor.evidence import Evidence, Outputs
from undoor.mixtures import sweep
from undoor.mixtures.memory import remembered_clusterings
from undoor.mixtures.partitions import small_clusters
from undoor.mixtures.sweep import MixtureSettings


@pytest.mark.parametrize("kept", [1, 3, 50, 99, 100])
def test_impurity_is_the_divergence_of_the_paper(kept):
    p = kept / 100
    assert impurity(kept, 100) == pytest.approx(entropy([1, 0], [p, 1 - p]), abs=1e-12)


def test_impurity_is_finite_if_nothing_is_kept_and_zero_if_nothing_changes():
    assert impurity(10, 10) == 0
    assert impurity(0, 10) == pytest.approx(np.log(20))
    assert impurity(0, 100) > impurity(0, 10) > impurity(1, 10)
    assert impurity(0, 0) == 0


def two_clusters():
    """Return evidence in which class 0 has two clusters far apart, with known numbers of changed decisions."""
    generator = np.random.default_rng(0)
    near, far = generator.normal(size=(40, 2)), generator.normal(size=(20, 2)) + 50
    other = generator.normal(size=(40, 2)) - 50
    features = np.concatenate([near, far, other]).astype(np.float32)
    labels = np.array([0] * 60 + [1] * 40)
    before, after = labels.copy(), labels.copy()
    before[[0, 1, 40]] = 1  # without the filter, three images are not decided as labelled
    after[[0, 1, 40]] = 1
    after[40:56] = 1  # the filter changes the decisions on 41 to 55 and on 2
    after[2] = 1
    return Evidence(
        Outputs(features, one_hot(before, 2)),
        {"h": Outputs(features, one_hot(after, 2))},
        labels,
        row_ids(100),
        ("zero", "one"),
    )


def by_size(findings, size):
    clusters = findings.clusters
    return clusters[(clusters["class"] == 0) & (clusters["size"] == size)].iloc[0]


def test_the_poster_examines_images_decided_as_labelled_and_the_authors_code_all_images():
    conditioned = ClusterImpurity.poster(**QUICKLY)(two_clusters())
    far, near = by_size(conditioned, 20), by_size(conditioned, 40)
    assert (far["examined"], near["examined"]) == (19, 38)
    assert far["changed"] == pytest.approx(15 / 19)
    assert far["impurity"] == pytest.approx(-np.log(4 / 19))
    assert near["impurity"] == pytest.approx(-np.log(37 / 38))
    assert list(far["destinations"]) == [0, 15]
    assert far["flagged"]
    assert not near["flagged"]

    unconditioned = ClusterImpurity.authors_code(**QUICKLY)(two_clusters())
    far, near = by_size(unconditioned, 20), by_size(unconditioned, 40)
    assert (far["examined"], near["examined"]) == (20, 40)
    assert far["impurity"] == pytest.approx(-np.log(4 / 20))
    assert near["impurity"] == pytest.approx(-np.log(37 / 40))


def test_single_clusters_are_examined_unless_skipped():
    evidence = two_clusters()
    filtered = Outputs(evidence.plain.features, one_hot(np.zeros(100, dtype=int), 2))
    evidence = replace(evidence, filtered={"h": filtered})
    assert ClusterImpurity.poster(**QUICKLY)(evidence).classes_flagged == ("one",)
    assert ClusterImpurity.poster(**QUICKLY, skip_single=True)(evidence).classes_flagged == ()


def test_a_cluster_without_a_decision_to_examine_is_not_flagged():
    evidence = two_clusters()
    plain = Outputs(evidence.plain.features, one_hot(1 - evidence.labels, 2))
    findings = ClusterImpurity(**QUICKLY)(replace(evidence, plain=plain))
    assert (findings.clusters["examined"] == 0).all()
    assert findings.verdict == "clean"


@pytest.mark.parametrize(("changed", "examined"), [(0, 7), (1, 1), (2, 5), (5, 5), (30, 100), (999, 1000)])
def test_certain_share_is_the_lower_end_of_the_exact_interval(changed, examined):
    interval = binomtest(changed, examined).proportion_ci(0.99, "exact")
    assert certain_share(changed, examined) == pytest.approx(interval.low, abs=1e-9)


def test_a_change_is_confident_from_the_median_margin_of_the_images_that_keep_the_class():
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
    after = np.zeros((10, 3))
    after[range(10), [0, 0, 0, 0, 1, 0, 0, 2, 1, 1]] = [1, 2, 6, 9, 8, 3, 2, 50, 5, 8]
    before = labels.copy()
    before[3] = 1  # so that image 3 does not keep class 0, whose median is then 2, not 4
    after[5, 2] = 1.5  # so that the margin of image 5 is 1.5, below that median
    confident = confident_changes(before, after, labels)
    assert np.flatnonzero(confident).tolist() == [4, 6]  # image 7 goes to a class that no image keeps


def test_small_clusters_are_not_flagged_by_chance():
    def flagged(changed, size):
        return bool(-np.log1p(-certain_share(changed, size)) > THRESHOLDS["confident"])

    assert not any(flagged(*counts) for counts in [(1, 1), (2, 2), (1, 5), (3, 5), (3, 10), (5, 25)])
    assert all(flagged(*counts) for counts in [(5, 5), (7, 10), (10, 25), (75, 300)])
    assert flagged(200, 1000)
    assert not flagged(100, 1000)


def test_every_decision_has_its_threshold():
    evidence = two_clusters()
    assert ClusterImpurity(**QUICKLY)(evidence).threshold == 0.15
    assert ClusterImpurity.poster(**QUICKLY)(evidence).threshold == 0.5
    assert ClusterImpurity(threshold=0.7, workers=1)(evidence).threshold == 0.7
    with pytest.raises(UndoorError, match="above 0"):
        ClusterImpurity(threshold=0.0)
    with pytest.raises(UndoorError, match="no decision 'sure'; choose confident or plain"):
        ClusterImpurity(decision="sure")


def test_the_filter_is_chosen_by_name(planted):
    evidence = planted.evidence
    both = replace(evidence, filtered={"nothing": evidence.plain, "planted": evidence.filtered["planted"]})
    assert ClusterImpurity(**QUICKLY)(both).verdict == "clean"
    assert ClusterImpurity(**QUICKLY, filter_name="planted")(both).verdict == "poisoned"
    with pytest.raises(UndoorError, match="no outputs for the filter 'median'; it has nothing, planted"):
        ClusterImpurity(**QUICKLY, filter_name="median")(both)


def test_the_number_of_workers_changes_nothing():
    evidence = plant(1).evidence
    serial, parallel = (ClusterImpurity(workers=workers)(evidence) for workers in (1, 2))
    pd.testing.assert_frame_equal(serial.samples, parallel.samples)
    pd.testing.assert_frame_equal(serial.clusters, parallel.clusters)
    assert serial.provenance.settings == parallel.provenance.settings


@pytest.mark.parametrize(("second_look", "total"), [(True, 8), (False, 4)])
def test_the_number_of_fitted_mixtures_is_reported(second_look, total):
    reports = []
    mixture = MixtureSettings(restarts=1, dimensions=None, max_components=2)
    defense = ClusterImpurity(
        mixture=mixture, second_look=second_look, on_mixture=lambda *report: reports.append(report)
    )
    defense(plant(clean=60, poison=0, dimensions=24).evidence)
    assert reports == [(done, total) for done in range(total + 1)]


VARIANTS = [{}, {"decision": "plain"}, {"conditioned": False, "skip_single": True}]


@pytest.mark.parametrize("workers", [1, 2])
def test_variants_fit_their_mixtures_once_where_clusterings_are_remembered(workers, monkeypatch):
    fits = []
    monkeypatch.setattr(sweep, "small_clusters", lambda *args: fits.append(args) or small_clusters(*args))
    evidence, mixture = plant().evidence, MixtureSettings(restarts=1)
    variants = [ClusterImpurity(**options, mixture=mixture, workers=workers) for options in VARIANTS]
    separate = [variant(evidence) for variant in variants]
    assert len(fits) == len(variants) * 4  # once for each of four classes
    fits.clear()
    with remembered_clusterings():
        together = [variant(evidence) for variant in variants]
    assert len(fits) == 4
    for expected, findings in zip(separate, together, strict=True):
        pd.testing.assert_frame_equal(findings.samples, expected.samples)
        pd.testing.assert_frame_equal(findings.clusters, expected.clusters)


def with_temperature(evidence, factor):
    filtered = {name: replace(o, logits=factor * o.logits) for name, o in evidence.filtered.items()}
    return replace(evidence, plain=replace(evidence.plain, logits=factor * evidence.plain.logits), filtered=filtered)


@pytest.mark.parametrize("factor", [0.3, 3, 10])
def test_the_scale_of_the_logits_does_not_matter(factor):
    evidence = plant(2).evidence
    noise = np.random.default_rng(0).normal(size=evidence.plain.logits.shape)
    filtered = {"h": replace(evidence.filtered["planted"], logits=evidence.filtered["planted"].logits + noise)}
    evidence = replace(evidence, filtered=filtered)
    plain, scaled = (ClusterImpurity(**QUICKLY)(e) for e in (evidence, with_temperature(evidence, factor)))
    assert plain.verdict == "poisoned"
    pd.testing.assert_frame_equal(plain.samples, scaled.samples)
    pd.testing.assert_frame_equal(plain.clusters, scaled.clusters)


def test_a_cluster_too_small_for_all_features_is_found_at_the_second_look():
    planted = plant(clean=400, poison=25, dimensions=24)
    once = ClusterImpurity(second_look=False)(planted.evidence)
    twice = ClusterImpurity()(planted.evidence).against(planted.poisoned)
    assert once.verdict == "clean"
    assert (twice.truth["tpr"], twice.truth["fp"]) == (1.0, 0)
    # In classes where neither look flags anything, the clusters are those of the first look.
    clean = once.clusters[once.clusters["class"] != planted.target].reset_index(drop=True)
    assert twice.clusters[twice.clusters["class"] != planted.target].reset_index(drop=True).equals(clean)
    assert set(twice.curves["look"]) == {1, 2}


def test_the_authors_look_once_at_all_features():
    for named in (ClusterImpurity.poster(), ClusterImpurity.authors_code()):
        assert (named.second_look, named.mixture.dimensions) == (False, None)


def test_real_victim(real_data):
    evidence, poisoned = real_evidence(real_data / "evidence" / "cifar10-multiple-source-0.25.npz")
    findings = ClusterImpurity()(evidence).against(poisoned)
    assert findings.classes_flagged == ("bird",)
    assert findings.truth["tpr"] > 0.97
    assert findings.truth["fpr_all_classes"] < 0.001
    clusters = findings.clusters
    assert clusters.loc[clusters["flagged"], "impurity"].min() > 2.5 * findings.threshold
    assert clusters.loc[~clusters["flagged"], "impurity"].max() < findings.threshold / 5


def test_real_clean_victim(real_data):
    evidence, _ = real_evidence(real_data / "evidence" / "cifar10-clean.npz")
    mixture = MixtureSettings(restarts=1)
    with remembered_clusterings():
        findings = ClusterImpurity(mixture=mixture)(evidence)
        plain = ClusterImpurity.poster(mixture=mixture)(evidence)
    assert findings.verdict == "clean"
    nearest, nearest_plain = (f.clusters["impurity"].max() / f.threshold for f in (findings, plain))
    assert nearest < 1 / 5
    assert nearest_plain > 3 * nearest  # the plain decision comes far closer to a false alarm

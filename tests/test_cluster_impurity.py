from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, entropy

from conftest import QUICKLY, one_hot, plant
from undoor.data.dataset import row_ids
from undoor.data.readers.cifar import CIFAR10
from undoor.defenses.training_set import ClusterImpurity
from undoor.defenses.training_set.cluster_impurity import THRESHOLDS, certain_share, confident_changes, impurity
from undoor.errors import UndoorError
from undoor.evidence import Evidence, Outputs
from undoor.mixtures.sweep import MixtureSettings


@pytest.mark.parametrize("kept", [1, 3, 50, 99, 100])
def test_impurity_is_its_divergence(kept):
    p = kept / 100
    assert impurity(kept, 100) == pytest.approx(entropy([1, 0], [p, 1 - p]), abs=1e-12)


def test_impurity_at_the_ends():
    assert impurity(10, 10) == 0
    assert impurity(0, 10) == pytest.approx(np.log(20))
    assert impurity(0, 100) > impurity(0, 10) > impurity(1, 10)
    assert impurity(0, 0) == 0


def two_clusters():
    """Return evidence of one class of interest with two far clusters whose counts are known."""
    generator = np.random.default_rng(0)
    near, far = generator.normal(size=(40, 2)), generator.normal(size=(20, 2)) + 50
    other = generator.normal(size=(40, 2)) - 50
    features = np.concatenate([near, far, other]).astype(np.float32)
    labels = np.array([0] * 60 + [1] * 40)
    before, after = labels.copy(), labels.copy()
    before[[0, 1, 40]] = 1  # three images are not decided as labelled to begin with,
    after[[0, 1, 40]] = 1
    after[40:56] = 1  # and the filter changes sixteen more decisions, one of them among the first three
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


def test_counts_of_the_conditioned_and_the_unconditioned_form():
    conditioned = ClusterImpurity.poster(**QUICKLY)(two_clusters())
    far, near = by_size(conditioned, 20), by_size(conditioned, 40)
    assert (far["examined"], near["examined"]) == (19, 38)
    assert far["changed"] == pytest.approx(15 / 19)
    assert far["impurity"] == pytest.approx(-np.log(4 / 19))
    assert near["impurity"] == pytest.approx(-np.log(37 / 38))
    assert list(far["destinations"]) == [0, 15]
    assert far["flagged"]
    assert not near["flagged"]

    every = ClusterImpurity.authors_code(**QUICKLY)(two_clusters())
    far, near = by_size(every, 20), by_size(every, 40)
    assert (far["examined"], near["examined"]) == (20, 40)
    assert far["impurity"] == pytest.approx(-np.log(4 / 20))
    assert near["impurity"] == pytest.approx(-np.log(37 / 40))


def test_single_clusters_are_examined_unless_skipped():
    evidence = two_clusters()
    filtered = Outputs(evidence.plain.features, one_hot(np.zeros(100, dtype=int), 2))
    evidence = Evidence(evidence.plain, {"h": filtered}, evidence.labels, evidence.ids, evidence.class_names)
    assert ClusterImpurity.poster(**QUICKLY)(evidence).classes_flagged == ("one",)
    assert ClusterImpurity.poster(**QUICKLY, skip_single=True)(evidence).classes_flagged == ()


def test_a_cluster_without_a_decision_to_examine_is_left_alone():
    evidence = two_clusters()
    plain = Outputs(evidence.plain.features, one_hot(1 - evidence.labels, 2))
    nobody = Evidence(plain, evidence.filtered, evidence.labels, evidence.ids, evidence.class_names)
    findings = ClusterImpurity(**QUICKLY)(nobody)
    assert (findings.clusters["examined"] == 0).all()
    assert findings.verdict == "clean"


@pytest.mark.parametrize(("changed", "examined"), [(0, 7), (1, 1), (2, 5), (5, 5), (30, 100), (999, 1000)])
def test_certain_share_is_the_exact_interval(changed, examined):
    interval = binomtest(changed, examined).proportion_ci(0.99, "exact")
    assert certain_share(changed, examined) == pytest.approx(interval.low, abs=1e-9)


def test_a_change_counts_from_the_median_of_those_who_keep_the_class():
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
    after = np.zeros((10, 3))
    after[range(10), [0, 0, 0, 0, 1, 0, 0, 2, 1, 1]] = [1, 2, 6, 9, 8, 3, 2, 50, 5, 8]
    before = labels.copy()
    before[3] = 1  # was not decided as labelled before: no witness of class 0, whose median then is 2, not 4
    after[5, 2] = 1.5  # its margin is 1.5, below that median
    confident = confident_changes(before, after, labels)
    assert np.flatnonzero(confident).tolist() == [4, 6]  # 7 goes to a class of which nothing is kept


def test_small_clusters_are_not_flagged_by_chance():
    def flagged(changed, size):
        return bool(-np.log1p(-certain_share(changed, size)) > THRESHOLDS["confident"])

    assert not any(flagged(*counts) for counts in [(1, 1), (2, 2), (1, 5), (3, 5), (3, 10), (5, 25)])
    assert all(flagged(*counts) for counts in [(5, 5), (7, 10), (10, 25), (75, 300)])
    assert flagged(200, 1000)
    assert not flagged(100, 1000)


def test_thresholds_belong_to_the_decisions():
    evidence = two_clusters()
    assert ClusterImpurity(**QUICKLY)(evidence).threshold == 0.15
    assert ClusterImpurity.poster(**QUICKLY)(evidence).threshold == 0.5
    assert ClusterImpurity(threshold=0.7, workers=1)(evidence).threshold == 0.7
    with pytest.raises(UndoorError, match="above 0"):
        ClusterImpurity(threshold=0.0)
    with pytest.raises(UndoorError, match="no decision 'sure'; choose confident or plain"):
        ClusterImpurity(decision="sure")


def test_filter_is_chosen_by_name(planted):
    outputs = planted.evidence.filtered["planted"]
    both = Evidence(
        planted.evidence.plain,
        {"nothing": planted.evidence.plain, "planted": outputs},
        planted.evidence.labels,
        planted.evidence.ids,
        planted.evidence.class_names,
    )
    assert ClusterImpurity(**QUICKLY)(both).verdict == "clean"
    assert ClusterImpurity(**QUICKLY, filter_name="planted")(both).verdict == "poisoned"
    with pytest.raises(UndoorError, match="no outputs for the filter 'median'; it has nothing, planted"):
        ClusterImpurity(**QUICKLY, filter_name="median")(both)


def test_processes_give_what_one_process_gives():
    evidence = plant(1).evidence
    one, two = (ClusterImpurity(workers=workers)(evidence) for workers in (1, 2))
    pd.testing.assert_frame_equal(one.samples, two.samples)
    pd.testing.assert_frame_equal(one.clusters, two.clusters)
    assert one.settings == two.settings


def real_evidence(file):
    with np.load(file) as arrays:

        def outputs(prefix):
            features = arrays[f"{prefix}features"].astype(np.float32)
            return Outputs(features, np.log(arrays[f"{prefix}probabilities"].astype(np.float32) + 1e-8))

        labels = arrays["labels"].astype(np.int64)
        names = CIFAR10
        evidence = Evidence(outputs(""), {"average": outputs("filtered_")}, labels, row_ids(len(labels)), names)
        return evidence, arrays["poisoned"]


def with_temperature(evidence, factor):
    filtered = {name: replace(o, logits=factor * o.logits) for name, o in evidence.filtered.items()}
    return replace(evidence, plain=replace(evidence.plain, logits=factor * evidence.plain.logits), filtered=filtered)


@pytest.mark.parametrize("factor", [0.3, 3, 10])
def test_scale_of_the_logits_does_not_matter(factor):
    evidence = plant(2).evidence
    noise = np.random.default_rng(0).normal(size=evidence.plain.logits.shape)
    filtered = {"h": replace(evidence.filtered["planted"], logits=evidence.filtered["planted"].logits + noise)}
    evidence = replace(evidence, filtered=filtered)
    one, other = (ClusterImpurity(**QUICKLY)(e) for e in (evidence, with_temperature(evidence, factor)))
    assert one.verdict == "poisoned"
    pd.testing.assert_frame_equal(one.samples, other.samples)
    pd.testing.assert_frame_equal(one.clusters, other.clusters)


def test_a_cluster_too_small_for_all_features_is_found_at_the_second_look():
    planted = plant(clean=400, poison=25, dimensions=24)
    once = ClusterImpurity(second_look=False)(planted.evidence)
    twice = ClusterImpurity()(planted.evidence).against(planted.poisoned)
    assert once.verdict == "clean"
    assert (twice.truth["tpr"], twice.truth["fp"]) == (1.0, 0)
    # Classes in which neither look flags anything are told as the first look saw them.
    others = once.clusters["class"] != planted.target
    assert twice.clusters.loc[twice.clusters["class"] != planted.target].equals(
        once.clusters[others].set_axis(twice.clusters.index[twice.clusters["class"] != planted.target])
    )


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
    found = {}

    def find(mixture):
        one_start = replace(mixture, restarts=1)
        if mixture.dimensions not in found:
            found[mixture.dimensions] = ClusterImpurity().cluster(evidence, one_start)
        return found[mixture.dimensions]

    findings = ClusterImpurity()(evidence, find)
    assert findings.verdict == "clean"
    plain = ClusterImpurity.poster(mixture=MixtureSettings())(evidence, find)
    nearest, nearest_plain = (each.clusters["impurity"].max() / each.threshold for each in (findings, plain))
    assert nearest < 1 / 5
    assert nearest_plain > 3 * nearest  # the plain decision comes far closer to a false alarm

"""Defects that were found in other implementations. Each test fails on code that has the defect."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import confusion_matrix, precision_score, recall_score

from conftest import QUICKLY, Linear, make_dataset, one_hot, permuted, plant
from undoor.data.dataset import row_ids
from undoor.defenses.training_set import ActivationClustering, ClusterImpurity, SpectralSignatures
from undoor.defenses.training_set.activation_clustering import reduce_dimensions, split
from undoor.defenses.training_set.spectral_signatures import authors_share
from undoor.errors import UndoorError
from undoor.evidence import Evidence, Outputs
from undoor.evidence.collect import collect
from undoor.findings.metrics import detection
from undoor.networks.classifier import Classifier
from undoor.scanning import scan


def number_of_hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_features_are_not_the_logits():
    model = Linear()
    evidence = collect(Classifier(model), make_dataset())
    assert evidence.plain.features.shape == (60, 8)
    assert evidence.plain.logits.shape == (60, 3)


def test_no_hook_is_left_behind():
    model, data = Linear(), make_dataset()
    for _ in range(10):
        collect(Classifier(model), data)
    assert number_of_hooks(model) == 0

    def fail(*_):
        raise RuntimeError("in the middle")

    handle = model.out.register_forward_pre_hook(fail)
    with pytest.raises(UndoorError, match="in the middle"):
        Classifier(model).features_and_logits(torch.zeros(1, 1, 12, 12))
    handle.remove()
    assert number_of_hooks(model) == 0


def test_clusters_are_those_of_the_whole_class_and_batches_change_nothing(network):
    data = make_dataset(n_per_class=40)
    whole, batched = scan(network, data, batch_size=120), scan(network, data, batch_size=11)
    for column in ("id", "label", "predicted", "cluster", "flagged"):
        assert whole.samples[column].tolist() == batched.samples[column].tolist()
    assert whole.samples["id"].tolist() == data.ids.tolist()
    assert whole.clusters["size"].sum() == len(data)


def test_evidence_is_collected_in_evaluation_mode_without_augmentation():
    model, data = Linear().train(), make_dataset()
    first, second = collect(Classifier(model), data), collect(Classifier(model), data)
    assert np.array_equal(first.plain.features, second.plain.features)
    x = torch.from_numpy(data.images).float() / 255
    with torch.no_grad():
        assert np.allclose(first.plain.logits, model.eval()(x), atol=1e-6)


def test_a_cluster_that_loses_every_decision_has_a_finite_impurity():
    evidence = plant().evidence
    all_changed = Outputs(evidence.plain.features, -evidence.plain.logits)
    findings = ClusterImpurity.poster(**QUICKLY)(replace(evidence, filtered={"h": all_changed}))
    assert np.isfinite(findings.clusters["impurity"]).all()
    assert findings.clusters["flagged"].all()
    assert findings.flagged.all()


def scores_by_projection(features, centred):
    """Return the score of the released code, |v · z|, or with ``centred`` |v · (z − mean)|."""
    offsets = features - features.mean(axis=0)
    direction = np.linalg.svd(offsets, full_matrices=False)[2][0]
    return np.abs((offsets if centred else features) @ direction)


def hidden_from_the_uncentred_score(n=300, poison=60):
    """Return evidence in which the poisons of class 1 lie closer to the origin than its clean images."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(2 * n + poison, 8))
    features[:, 0] += 20
    features[2 * n :, 0] -= 19
    labels = np.repeat([0, 1, 1], [n, n, poison])
    outputs = Outputs(features.astype(np.float32), one_hot(labels, 2))
    return Evidence(outputs, {}, labels, row_ids(len(labels)), ("zero", "one")), np.arange(len(labels)) >= 2 * n


def test_the_spectral_score_is_that_of_centred_features():
    evidence, poisoned = hidden_from_the_uncentred_score()
    in_class_1 = evidence.labels == 1
    for centred, tpr in ((False, 0), (True, 1)):
        score = scores_by_projection(evidence.plain.features[in_class_1], centred)
        flagged = score > np.quantile(score, 1 - 1.5 * 60 / 360)
        assert flagged[poisoned[in_class_1]].mean() == tpr
    findings = SpectralSignatures(authors_share(60 / 360))(evidence).against(poisoned)
    assert findings.truth["tpr"] == 1


def test_silhouette_flags_the_smaller_cluster_not_the_class():
    planted = plant(clean=300)
    counts = ActivationClustering("silhouette")(planted.evidence).against(planted.poisoned).truth
    assert counts["tpr"] == 1
    assert counts["fpr_target_class"] == 0


def test_relative_size_runs_whichever_classes_it_flags():
    planted = plant(clean=301)  # of an odd number of images, one half is always smaller
    settings = {"rule": "relative-size", "whiten": False}
    findings = ActivationClustering(**settings, threshold=0.2)(planted.evidence)
    assert findings.classes_flagged == ("class1",)
    assert ActivationClustering(**settings, threshold=0.01)(planted.evidence).verdict == "clean"
    assert len(ActivationClustering(**settings, threshold=0.5)(planted.evidence).classes_flagged) == 4


def test_the_reduction_runs_whatever_the_number_of_features():
    features = np.random.default_rng(0).normal(size=(200, 30)).astype(np.float32)
    for dimensions in (2, 10):
        assert reduce_dimensions(features, dimensions, whiten=True).shape == (200, dimensions)
    # The second widest direction separates the poisons, the widest does not: one dimension cannot find them.
    features[:, 0] *= 30
    features[:40, 1] += 12
    in_one, in_two = (split(features, d, True, 10, False, 0).smaller for d in (1, 2))
    assert not np.array_equal(in_one, np.arange(200) < 40)
    assert np.array_equal(in_two, np.arange(200) < 40)


def test_if_nothing_is_flagged_every_poison_is_missed():
    nothing, poisoned = np.zeros(10, dtype=bool), np.arange(10) < 3
    counts = detection(nothing, np.zeros(10), np.zeros(10, dtype=np.int64), poisoned)
    assert (counts["tp"], counts["fp"], counts["fn"], counts["tn"]) == (0, 0, 3, 7)
    assert (counts["tpr"], counts["fpr_all_classes"], counts["auroc"]) == (0, 0, 0.5)


def test_each_sample_has_its_own_score():
    evidence, poisoned = hidden_from_the_uncentred_score()
    order = np.random.default_rng(1).permutation(len(poisoned))
    shuffled = permuted(evidence, order)
    samples = SpectralSignatures()(shuffled).samples
    assert samples["id"].tolist() == evidence.ids[order].tolist()
    for label in (0, 1):
        in_class = shuffled.labels == label
        expected = scores_by_projection(shuffled.plain.features[in_class].astype(np.float64), centred=True) ** 2
        expected /= np.sort(expected)[(len(expected) + 1) // 2 - 1]
        assert np.allclose(samples["score"][in_class], expected, rtol=1e-6)
    highest = samples["score"][shuffled.labels == 1].nlargest(60).index
    assert poisoned[order][highest].all()


def test_rates_are_those_of_scikit_learn():
    generator = np.random.default_rng(0)
    flagged, poisoned = generator.random(500) < 0.3, generator.random(500) < 0.2
    counts = detection(flagged, flagged.astype(float), np.zeros(500, dtype=np.int64), poisoned)
    assert counts["tpr"] == pytest.approx(recall_score(poisoned, flagged))
    assert counts["precision"] == pytest.approx(precision_score(poisoned, flagged))
    tn, fp, fn, tp = confusion_matrix(poisoned, flagged).ravel()
    assert [counts[name] for name in ("tn", "fp", "fn", "tp")] == [tn, fp, fn, tp]


def test_spectral_signatures_take_the_same_share_whatever_the_truth():
    few, many = plant(clean=300, poison=6), plant(clean=300, poison=90)
    for planted in (few, many):
        flagged = SpectralSignatures()(planted.evidence).samples.groupby("label")["flagged"].mean()
        assert np.allclose(flagged, 0.5, atol=0.01)
    # The share of the oracle applies to the target class only; the other classes stay whole.
    oracle = SpectralSignatures(authors_share(90 / 390), classes=("class1",))(many.evidence)
    assert oracle.classes_flagged == ("class1",)
    assert oracle.flagged.sum() == 135


@pytest.mark.parametrize("defense", [SpectralSignatures(0.15), ActivationClustering(), ClusterImpurity(**QUICKLY)])
def test_findings_come_from_all_classes_and_do_not_change_with_the_truth(defense):
    planted = plant()
    findings = defense(planted.evidence)
    shuffled = np.random.default_rng(0).permutation(planted.poisoned)
    counted = findings.against(shuffled)
    pd.testing.assert_frame_equal(counted.samples, findings.samples)
    assert counted.truth != findings.against(planted.poisoned).truth
    assert findings.samples.groupby("label")["score"].max().gt(0).all()

from dataclasses import replace

import numpy as np
import pytest
import torch

import undoor
from conftest import Linear, make_dataset
from undoor.data.dataset import Truth
from undoor.errors import UndoorError, UndoorNotice
from undoor.evidence import Outputs
from undoor.evidence.collect import collect
from undoor.filters import Average, Median
from undoor.networks.classifier import Classifier
from undoor.scanning import scan


def test_one_pass_collects_the_outputs_for_every_filter_in_the_order_of_the_data(dataset):
    classifier = Classifier(Linear())
    seen = []
    evidence = collect(
        classifier, dataset, (Average(), Median()), batch_size=7, on_batch=lambda *done: seen.append(done)
    )
    x = classifier.scale(dataset.images)
    features, logits = classifier.features_and_logits(x)
    assert np.allclose(evidence.plain.features, features, atol=1e-6)
    assert np.allclose(evidence.plain.logits, logits, atol=1e-6)
    assert list(evidence.filtered) == [str(Average()), str(Median())]
    for h in (Average(), Median()):
        features, logits = classifier.features_and_logits(h(x))
        assert np.allclose(evidence.filtered[str(h)].features, features, atol=1e-5)
        assert np.allclose(evidence.filtered[str(h)].logits, logits, atol=1e-5)
    assert evidence.plain.features.dtype == np.float32
    assert np.array_equal(evidence.ids, dataset.ids)
    assert seen[0] == (7, 60)
    assert seen[-1] == (60, 60)


def test_truth_does_not_reach_the_findings(dataset, network):
    poisoned = np.arange(60) % 3 == 0
    truth = Truth(poisoned, dataset.labels)
    shuffled = Truth(np.roll(poisoned, 1), np.roll(dataset.labels, 7))
    first, second = (scan(network, replace(dataset, truth=t)) for t in (truth, shuffled))
    none = scan(network, dataset)
    for other in (second, none):
        assert first.samples.equals(other.samples)
        assert first.clusters.equals(other.clusters)
        assert first.threshold == other.threshold
    assert none.truth is None
    assert first.truth["tp"] + first.truth["fn"] == 20


def test_order_of_the_data_set_does_not_matter(dataset, network):
    order = np.random.default_rng(0).permutation(len(dataset))
    first, second = scan(network, dataset), scan(network, dataset.take(order))
    assert first.samples["id"].iloc[order].tolist() == second.samples["id"].tolist()
    for column in ("predicted", "cluster", "flagged"):
        assert first.samples[column].iloc[order].tolist() == second.samples[column].tolist()
    assert np.allclose(first.samples["score"].iloc[order], second.samples["score"])


def test_a_network_for_other_classes_is_reported_at_the_first_batch(dataset):
    batches = []
    with pytest.raises(UndoorError, match="tells 5 classes apart, the data set has 3"):
        collect(Classifier(Linear(classes=5)), dataset, batch_size=4, on_batch=lambda *done: batches.append(done))
    assert not batches


def test_features_that_are_not_finite_are_reported(dataset):
    model = Linear()
    with torch.no_grad():
        model.hidden.weight[0, 0] = float("nan")
    with pytest.raises(UndoorError, match="features of 60 of 60 samples are not finite, the first of sample 0"):
        scan(model, dataset)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.array([0, 1, 3])}, "label 3 of sample c is outside 0 … 1"),
        ({"labels": np.array([0, -1, 1])}, "label -1 of sample b"),
        ({"ids": np.array(["a"])}, "3 labels and 1 ids"),
        ({"plain": Outputs(np.zeros((3, 2), np.float32), np.zeros((3, 3), np.float32))}, r"logits .* shape \(3, 3\)"),
        ({"plain": Outputs(np.zeros(3, np.float32), np.zeros((3, 2), np.float32))}, r"give \(3, t\)"),
        ({"plain": Outputs(np.full((3, 2), np.inf, np.float32), np.zeros((3, 2), np.float32))}, "not finite"),
        ({"filtered": {"h": Outputs(np.zeros((2, 2)), np.zeros((2, 2)))}}, "features of h"),
    ],
)
def test_arrays_that_do_not_fit_are_reported(change, message):
    good = Outputs(np.zeros((3, 2), np.float32), np.zeros((3, 2), np.float32))
    fields = {
        "plain": good,
        "filtered": {"h": good},
        "labels": np.array([0, 1, 1]),
        "ids": np.array(["a", "b", "c"]),
        "class_names": ("x", "y"),
    }
    undoor.Evidence(**fields)
    with pytest.raises(UndoorError, match=message):
        undoor.Evidence(**{**fields, **change})


def test_a_network_that_has_not_learned_the_set_is_reported(dataset):
    with pytest.warns(UndoorNotice, match=r"decides only \d+% of the images as they are labelled"):
        scan(Linear(), dataset)


def test_data_sets_of_one_class_are_reported():
    with pytest.raises(UndoorError, match="of one class"):
        scan(Linear(), make_dataset().take(np.arange(20)))

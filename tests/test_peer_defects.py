"""Defects found in other implementations; each test fails on code that has its defect."""

import numpy as np
import pytest
import torch

from conftest import Linear, make_dataset, plant
from undoor.classifier import Classifier
from undoor.defenses.training_set import ClusterImpurity
from undoor.errors import UndoorError
from undoor.evidence import Evidence, Outputs, collect
from undoor.scanning import scan


def hooks(model):
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
    assert hooks(model) == 0

    def fail(*_):
        raise RuntimeError("in the middle")

    handle = model.out.register_forward_pre_hook(fail)
    with pytest.raises(UndoorError, match="in the middle"):
        Classifier(model).features_and_logits(torch.zeros(1, 1, 12, 12))
    handle.remove()
    assert hooks(model) == 0


def test_clusters_are_those_of_the_whole_class_and_batches_change_nothing(network):
    data = make_dataset(n_per_class=40)
    whole, batches = scan(network, data, batch_size=120), scan(network, data, batch_size=11)
    for column in ("id", "label", "predicted", "cluster", "flagged"):
        assert whole.samples[column].tolist() == batches.samples[column].tolist()
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
    nobody = Outputs(evidence.plain.features, -evidence.plain.logits)
    after = Evidence(evidence.plain, {"h": nobody}, evidence.labels, evidence.ids, evidence.class_names)
    findings = ClusterImpurity.poster(workers=1)(after)
    assert np.isfinite(findings.clusters["impurity"]).all()
    assert findings.clusters["flagged"].all()
    assert findings.flagged.all()

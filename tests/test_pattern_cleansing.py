import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from conftest import permuted
from test_reverse_engineering import CLASSES, PIXEL, SIZE, TARGET, Planted, images_of
from undoor.data.dataset import Dataset, Truth, row_ids
from undoor.defenses.post_training import ReverseEngineering
from undoor.defenses.training_set import PatternCleansing
from undoor.errors import UndoorError
from undoor.evidence.collect import collect
from undoor.networks.classifier import Classifier

SOURCES = tuple(k for k in range(CLASSES) if k != TARGET)


def poisoned(per_class=20, count=10):
    """Return images of which ``count`` carry the trigger and are labelled as the target."""
    clean, more = images_of(per_class), images_of(count, seed=1)
    copies = more.take(np.flatnonzero(more.labels != TARGET)[::5][:count])
    marked = copies.images.copy()
    marked.reshape(len(marked), -1)[:, PIXEL] = (
        76  # barely enough: the shortest pattern does not undo a trigger twice as strong
    )
    labels = np.concatenate([clean.labels, np.full(len(copies), TARGET)])
    truth = Truth(np.arange(len(labels)) >= len(clean), np.concatenate([clean.labels, copies.labels]))
    return Dataset(np.concatenate([clean.images, marked]), labels, clean.class_names, row_ids(len(labels)), truth)


@pytest.fixture(scope="module")
def data():
    return poisoned()


def evidence_of(model, data):
    return collect(Classifier(model, layer="linear"), data)


@pytest.mark.parametrize("sources", [SOURCES, (4,)])
def test_the_poisons_are_found_and_nothing_else(data, sources):
    of_sources = ~data.truth.poisoned | np.isin(data.truth.original_labels, sources)
    data = data.take(of_sources)
    model = Planted(sources)
    classifier = Classifier(model, layer="linear")
    findings = PatternCleansing(classifier, data.images)(evidence_of(model, data))
    assert findings.flagged.tolist() == data.truth.poisoned.tolist()
    assert findings.flagged.tolist() == (findings.samples["score"] > findings.threshold).tolist()
    assert findings.classes_flagged == (data.class_names[TARGET],)
    assert (findings.samples["score"][data.labels != TARGET] == 0).all()
    json.dumps(findings.summary(), allow_nan=False)


def test_a_clean_set_is_called_clean():
    data, model = images_of(20), Planted()
    findings = PatternCleansing(Classifier(model, layer="linear"), data.images)(evidence_of(model, data))
    assert findings.verdict == "clean"
    assert (findings.samples["score"] == 0).all()


def test_the_order_of_the_samples_does_not_matter(data):
    model = Planted(SOURCES)
    classifier, evidence = Classifier(model, layer="linear"), evidence_of(model, data)
    order = np.random.default_rng(5).permutation(len(data))
    first = PatternCleansing(classifier, data.images)(evidence)
    second = PatternCleansing(classifier, data.images[order])(permuted(evidence, order))
    again = PatternCleansing(classifier, data.images)(evidence)
    pd.testing.assert_frame_equal(first.samples, again.samples)
    pd.testing.assert_frame_equal(first.samples.iloc[order].reset_index(drop=True), second.samples, atol=1e-4)


def test_a_class_without_images_is_left_out(data):
    without = data.take(data.labels != 5)
    model = Planted(SOURCES)
    findings = PatternCleansing(Classifier(model, layer="linear"), without.images)(evidence_of(model, without))
    assert findings.flagged.tolist() == without.truth.poisoned.tolist()


def test_what_cannot_be_is_refused(data):
    model = Planted(SOURCES)
    classifier, evidence = Classifier(model, layer="linear"), evidence_of(model, data)
    with pytest.raises(UndoorError, match="the images it was made of"):
        PatternCleansing(classifier, data.images[:-1])(evidence)
    for settings in ({"threshold": 1.0}, {"labelled": 0}):
        with pytest.raises(UndoorError):
            PatternCleansing(classifier, data.images, **settings)
    two = replace(data.take(data.labels < 2), truth=None)
    with pytest.raises(UndoorError, match="with 2 classes"):
        PatternCleansing(classifier, two.images)(evidence_of(model, two))


def test_settings_are_the_inspection_s(data):
    model = Planted(SOURCES)
    defense = PatternCleansing(Classifier(model, layer="linear"), data.images, ReverseEngineering(images=5, level=1e-6))
    findings = defense(evidence_of(model, data))
    assert findings.verdict == "clean"  # no p is that small
    assert findings.provenance.settings["inspection"]["images"] == 5
    assert data.images.shape[2:] == (SIZE, SIZE)

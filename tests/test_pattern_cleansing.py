import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import undoor
from conftest import permuted
from helpers.backdoored_network import CLASSES, PIXEL, TARGET, BackdooredNetwork, images_near_templates
from undoor.data.dataset import Dataset, Truth, row_ids
from undoor.defenses.post_training import ReverseEngineering
from undoor.defenses.training_set.pattern_cleansing import PatternCleansing
from undoor.errors import UndoorError
from undoor.evidence.collect import collect
from undoor.networks.classifier import Classifier

SOURCES = tuple(k for k in range(CLASSES) if k != TARGET)


def poisoned(per_class=20, count=10):
    """Return images, of which ``count`` carry the trigger and are labelled as the target."""
    clean, more = images_near_templates(per_class), images_near_templates(count, seed=1)
    copies = more.take(np.flatnonzero(more.labels != TARGET)[::5][:count])
    triggered = copies.images.copy()
    # Barely strong enough: the shortest pattern does not undo a trigger of twice this strength.
    triggered.reshape(len(triggered), -1)[:, PIXEL] = 76
    labels = np.concatenate([clean.labels, np.full(len(copies), TARGET)])
    truth = Truth(np.arange(len(labels)) >= len(clean), np.concatenate([clean.labels, copies.labels]))
    images = np.concatenate([clean.images, triggered])
    return Dataset(images, labels, clean.class_names, row_ids(len(labels)), truth)


@pytest.fixture(scope="module")
def data():
    return poisoned()


def classifier_with(sources=SOURCES):
    return Classifier(BackdooredNetwork(sources), layer="linear")


@pytest.mark.parametrize("sources", [SOURCES, (4,)])
def test_the_poisons_are_found_and_nothing_else(data, sources):
    data = data.take(~data.truth.poisoned | np.isin(data.truth.original_labels, sources))
    classifier = classifier_with(sources)
    findings = PatternCleansing(classifier, data.images)(collect(classifier, data))
    assert findings.flagged.tolist() == data.truth.poisoned.tolist()
    assert findings.flagged.tolist() == (findings.samples["score"] > findings.threshold).tolist()
    assert findings.classes_flagged == (data.class_names[TARGET],)
    assert (findings.samples["score"][data.labels != TARGET] == 0).all()
    json.dumps(findings.summary(), allow_nan=False)


def test_a_clean_set_is_called_clean():
    data, classifier = images_near_templates(20), classifier_with(())
    findings = PatternCleansing(classifier, data.images)(collect(classifier, data))
    assert findings.verdict == "clean"
    assert (findings.samples["score"] == 0).all()


def test_the_order_of_the_samples_does_not_matter(data):
    classifier = classifier_with()
    evidence = collect(classifier, data)
    order = np.random.default_rng(5).permutation(len(data))
    first, again = (PatternCleansing(classifier, data.images)(evidence) for _ in range(2))
    pd.testing.assert_frame_equal(first.samples, again.samples)
    shuffled = PatternCleansing(classifier, data.images[order])(permuted(evidence, order))
    pd.testing.assert_frame_equal(first.samples.iloc[order].reset_index(drop=True), shuffled.samples, atol=1e-4)


def test_a_class_without_images_is_left_out(data):
    without = data.take(data.labels != 5)
    classifier = classifier_with()
    findings = PatternCleansing(classifier, without.images)(collect(classifier, without))
    assert findings.flagged.tolist() == without.truth.poisoned.tolist()


def test_impossible_settings_and_images_are_refused(data):
    classifier = classifier_with()
    with pytest.raises(UndoorError, match="the images it was made of"):
        PatternCleansing(classifier, data.images[:-1])(collect(classifier, data))
    for settings, message in (({"threshold": 1.0}, "between 0 and 1"), ({"labelled": 0}, "from 0 images")):
        with pytest.raises(UndoorError, match=message):
            PatternCleansing(classifier, data.images, **settings)
    two_classes = replace(data.take(data.labels < 2), truth=None)
    with pytest.raises(UndoorError, match="with 2 classes"):
        PatternCleansing(classifier, two_classes.images)(collect(classifier, two_classes))


def test_the_findings_carry_the_settings_of_the_inspection_and_the_version(data, monkeypatch):
    classifier = classifier_with()
    monkeypatch.setattr(PatternCleansing, "method_version", 77)
    defense = PatternCleansing(classifier, data.images, ReverseEngineering(images=5, level=1e-6))
    findings = defense(collect(classifier, data))
    assert findings.verdict == "clean"  # no p is that small
    assert findings.provenance.settings["inspection"]["images"] == 5
    assert findings.provenance.method_version == 77


def test_a_scan_does_not_import_what_acts_after_training():
    code = (
        "import sys, undoor.scanning\n"
        "print([name for name in sys.modules if name.startswith('undoor.defenses.post_training')])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
    assert undoor.PatternCleansing is PatternCleansing

"""What is kept of findings: the mask, the clusters, and why poisoned images were missed."""

from dataclasses import replace

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from conftest import plant
from undoor.defenses.training_set import SpectralSignatures
from undoor.experiments.outcome import mask_from_text, mask_to_text, missed_poisons, outcome_of
from undoor.findings.findings import Findings
from undoor.findings.provenance import Provenance
from undoor.findings.tables import no_clusters


@given(st.lists(st.booleans(), max_size=70))
def test_a_mask_is_read_as_it_was_written(bits):
    mask = np.array(bits, dtype=bool)
    assert mask_from_text(mask_to_text(mask), len(mask)).tolist() == bits


def test_what_is_kept_is_counted_against_the_truth():
    planted = plant()
    findings = SpectralSignatures(classes=("class1",))(planted.evidence)
    outcome = outcome_of(findings, planted.poisoned)
    mask = mask_from_text(outcome.mask, outcome.samples)
    assert mask.tolist() == findings.flagged.tolist()
    assert (outcome.flagged, outcome.detected, outcome.classes_flagged) == (mask.sum(), True, ("class1",))
    assert outcome.truth["tp"] == (mask & planted.poisoned).sum()
    assert sum(outcome.missed.values()) == outcome.truth["fn"]
    assert outcome.roc[0] == [0.0, 0.0]
    assert outcome.roc[-1] == [1.0, 1.0]
    nothing = outcome_of(findings, np.zeros(outcome.samples, bool))
    assert (nothing.roc, nothing.auroc_target_class, nothing.truth["tpr"]) == ([], None, None)


def test_every_missed_poisoned_image_is_counted_once():
    # Of each cluster: its number, its images, and how many of them are poisoned. Only cluster 0 is flagged.
    parts = [
        (0, 10, 10),
        (1, 4, 3),  # mostly poisoned
        (2, 10, 2),  # mixed
        (3, 40, 3),  # mostly clean
        (4, 5, 5),  # not in the table of clusters
    ]
    cluster = np.repeat([c for c, _, _ in parts], [n for _, n, _ in parts])
    poisoned = np.concatenate([np.arange(n) < p for _, n, p in parts])
    predicted = np.ones(len(cluster), int)
    predicted[np.flatnonzero(cluster == 3)[:2]] = 0  # Two poisoned images of the clean cluster are not learned.
    samples = pd.DataFrame(
        {
            "id": [str(k) for k in range(len(cluster))], "label": 1, "predicted": predicted, "cluster": cluster,
            "score": 0.0, "flagged": cluster == 0,
        }
    )  # fmt: skip
    clusters = pd.DataFrame([dict.fromkeys(no_clusters(), 0) | {"class": 1, "cluster": c} for c in range(4)])
    provenance = Provenance(defense="some method", method_version=1, settings={})
    findings = Findings(
        provenance=provenance, samples=samples, clusters=clusters, class_names=("a", "b"), threshold=0.5
    )
    assert missed_poisons(findings, poisoned) == {
        "not_learned": 2,
        "poisoned_clusters": 3,
        "mixed_clusters": 2,
        "clean_clusters": 1,
        "no_cluster": 5,
    }
    without = replace(findings, clusters=no_clusters())
    assert missed_poisons(without, poisoned) == {
        "not_learned": 2,
        "poisoned_clusters": 0,
        "mixed_clusters": 0,
        "clean_clusters": 0,
        "no_cluster": 11,
    }

"""What the poisons are that a defence misses, counted on findings that are written down by hand."""

from dataclasses import replace

import numpy as np
import pandas as pd

from undoor.experiments.condensed import missed
from undoor.findings.findings import Findings
from undoor.findings.provenance import Provenance
from undoor.findings.tables import no_clusters


def test_every_missed_poison_is_counted_once():
    # cluster: images, of them poisons; learned and not flagged, unless said otherwise
    parts = [
        (0, 10, 10),  # flagged
        (1, 4, 3),  # mostly poisoned, but not flagged
        (2, 10, 2),  # mixed
        (3, 40, 3),  # clean for the most part
        (4, 5, 5),  # a cluster that the method does not list
    ]
    cluster = np.repeat([c for c, _, _ in parts], [n for _, n, _ in parts])
    poisoned = np.concatenate([np.arange(n) < p for _, n, p in parts])
    predicted = np.ones(len(cluster), int)
    predicted[np.flatnonzero(cluster == 3)[:2]] = 0  # two poisons of the clean cluster are not learned
    samples = pd.DataFrame(
        {
            "id": [str(k) for k in range(len(cluster))], "label": 1, "predicted": predicted, "cluster": cluster,
            "score": 0.0, "flagged": cluster == 0,
        }
    )  # fmt: skip
    clusters = pd.DataFrame([dict.fromkeys(no_clusters(), 0) | {"class": 1, "cluster": c} for c in range(4)])
    provenance = Provenance(defense="some method", method_version=1, settings={})
    found = Findings(provenance=provenance, samples=samples, clusters=clusters, class_names=("a", "b"), threshold=0.5)
    assert missed(found, poisoned) == {
        "not_learned": 2,
        "poisoned_clusters": 3,
        "mixed_clusters": 2,
        "clean_clusters": 1,
        "no_cluster": 5,
    }
    without = replace(found, clusters=no_clusters())
    assert missed(without, poisoned) == {
        "not_learned": 2,
        "poisoned_clusters": 0,
        "mixed_clusters": 0,
        "clean_clusters": 0,
        "no_cluster": 11,
    }

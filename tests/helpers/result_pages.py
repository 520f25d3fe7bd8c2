"""Makes results of every kind, and the page of each."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from conftest import make_dataset
from helpers.made_results import rich_store
from undoor.defenses.post_training import Descent, FinePruning, ReverseEngineering
from undoor.defenses.test_time import Ada
from undoor.experiments.report.html import render_bench
from undoor.experiments.report.results import read_results
from undoor.networks.classifier import Classifier
from undoor.networks.weights import Architecture
from undoor.report.guard import render_checked
from undoor.report.inspection import render_inspection, write_inspection
from undoor.report.pruned import write_pruned

NAMES = ("<script>alert(1)</script>", "class'1\"", "Möwe")
KINDS = ("clean inspection", "inspection", "check", "pruning", "bench")


@dataclass(frozen=True)
class Case:
    """A result and its page."""

    result: Any
    html: str


@pytest.fixture(scope="module")
def cases(network, tmp_path_factory):
    """Results on a small network with hostile names, and their pages, by ``KINDS``."""
    folder = tmp_path_factory.mktemp("results")
    classifier = Classifier(network)
    clean = replace(make_dataset(n_per_class=30, seed=1), class_names=NAMES)
    inspection = ReverseEngineering(images=4, search=Descent(steps=15))(classifier, clean)
    write_inspection(inspection, folder / "inspection")
    # The same inspection as if its closest pair were a backdoor.
    closest = inspection.pairs["norm"] == inspection.pairs["norm"].min()
    source, target = (NAMES.index(inspection.pairs.loc[closest, end].iloc[0]) for end in ("source", "target"))
    by_pair = np.ones((3, 3))
    by_pair[source, target] = 0.001
    inferences = {"A": inspection.inferences["A"], "B": inspection.inferences["B"]._replace(p=0.001, by_pair=by_pair)}
    backdoored = replace(inspection, inferences=inferences, pairs=inspection.pairs.assign(detected=closest))

    guard = Ada(false_positive_rate=0.2).fit(classifier, clean)
    queries = make_dataset(n_per_class=40, seed=2).images.copy()
    queries[::9] = np.random.default_rng(0).integers(0, 256, queries[::9].shape, dtype=np.uint8)
    ids = np.array([f'{k}/it\'s "{k}" & <b>é</b>.png' for k in range(len(queries))])
    checked = guard.check(queries)

    pruned = FinePruning(epochs=1, learning_rate=1e-4)(classifier, clean)
    write_pruned(pruned, folder / "repaired.safetensors", Architecture("small-cnn", clean.images.shape[1:], NAMES, {}))

    bench = read_results(rich_store(folder / "bench"), "paper")
    (folder / "figure.png").write_bytes((folder / "repaired-curve.png").read_bytes())
    return {
        "clean inspection": Case(inspection, (folder / "inspection" / "report.html").read_text("utf-8")),
        "inspection": Case(backdoored, render_inspection(backdoored)),
        "check": Case(checked, render_checked(guard, checked, queries, ids)),
        "pruning": Case(pruned, (folder / "repaired.html").read_text("utf-8")),
        "bench": Case(bench, render_bench("paper", bench, "All is done.", [("figure", "A figure.")], folder)),
    }

"""Controls: what a filter that knows nothing, and one that knows everything, would achieve. They are no defences."""

import numpy as np
from numpy.typing import NDArray

from undoor.defenses.training_set.per_class import sample_table
from undoor.errors import UndoorError
from undoor.evidence import Evidence
from undoor.findings.findings import Findings
from undoor.findings.tables import no_clusters


def random_filter(evidence: Evidence, count: int, seed: int = 0) -> Findings:
    """Flag ``count`` samples drawn at random from all classes; a defence must do better.

    The draw goes by the ids and does not depend on the order of the samples.
    """
    n = len(evidence.labels)
    if not 0 <= count <= n:
        raise UndoorError(f"{count} of {n} samples cannot be drawn; give a count from 0 to {n}")
    score = np.zeros(n)
    score[np.argsort(evidence.ids, kind="stable")] = 1 + np.random.default_rng(seed).permutation(n)
    samples = sample_table(evidence, score, score > n - count)
    return Findings(
        "random_filter", samples, no_clusters(), evidence.class_names, float(n - count), {"count": count}, seed
    )


def perfect_filter(evidence: Evidence, poisoned: NDArray[np.bool_]) -> Findings:
    """Flag exactly the ``poisoned`` samples, (N,) bool: the best that any defence can do. It needs the truth."""
    n = len(evidence.labels)
    if poisoned.shape != (n,):
        raise UndoorError(f"the truth has shape {poisoned.shape}, but there are {n} samples; give ({n},)")
    samples = sample_table(evidence, poisoned.astype(np.float64), poisoned.astype(bool))
    return Findings("perfect_filter", samples, no_clusters(), evidence.class_names, 0.5, {}, 0)

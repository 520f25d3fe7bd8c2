"""What people look at beside the findings: decisions after the filter, and a map of every class."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from undoor.engine import one_thread
from undoor.evidence import Evidence
from undoor.findings.findings import Findings
from undoor.mixtures.reduction import principal_components

WIDTH = 1e-3
"""How much the variance of a direction counts on a map, beside how far apart the clusters lie in it."""


def viewed(findings: Findings, evidence: Evidence, filter_name: str) -> Findings:
    """Return the findings with ``VIEW_COLUMNS``; nothing else in them changes.

    ``filter_name``: whose decisions are shown.
    """
    assignments = findings.samples["cluster"].to_numpy()
    places = np.zeros((len(assignments), 2), dtype=np.float32)
    for label in range(len(evidence.class_names)):
        mine = np.flatnonzero(evidence.labels == label)
        if len(mine):
            with one_thread():  # whose number would change the last bits
                places[mine] = class_map(evidence.plain.features[mine], assignments[mine])
    decisions = evidence.filtered[filter_name].decisions
    samples = findings.samples.assign(filtered=decisions, x=places[:, 0], y=places[:, 1])
    return replace(findings, samples=samples, image_filter=filter_name)


def class_map(features: NDArray[np.float32], assignments: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return (n, 2) places of the (n, t) features of a class, in the plane in which its clusters lie farthest apart.

    These are Fisher's discriminant directions (Rao, J. Royal Stat. Soc. B 1948) within the 2 √n widest principal
    components, each scaled to variance 1; where the clusters leave a direction open, as one or two clusters do, the
    widest is taken. The plane is chosen with knowledge of the clusters: it shows what was found and proves nothing.
    """
    n = len(features)
    components = principal_components(features.astype(np.float64), int(2 * np.sqrt(n)))
    if components.shape[1] == 0:
        return np.zeros((n, 2), dtype=np.float32)
    variances = components.var(axis=0)
    whitened = components / np.sqrt(variances)
    means = np.stack([whitened[assignments == k].mean(axis=0) for k in np.unique(assignments)])
    sizes = np.unique(assignments, return_counts=True)[1]
    between = (means * sizes[:, None]).T @ means / n + WIDTH * np.diag(variances / variances[0])
    places = np.zeros((n, 2))
    axes = eigh(between)[1][:, ::-1][:, :2]
    places[:, : axes.shape[1]] = whitened @ axes
    places *= np.where((places**3).sum(axis=0) < 0, -1, 1)  # the sign of an eigenvector is any
    return places.astype(np.float32)

"""What only the report shows of a sample: the decision on its filtered image, and its place on a map."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from undoor.engine import one_thread
from undoor.evidence import Evidence
from undoor.findings.findings import Findings
from undoor.mixtures.reduction import principal_components

VARIANCE_WEIGHT = 1e-3
"""How much the variance along a direction counts when the plane of a map is chosen, relative to the distance between
the clusters along it. It only decides where the clusters leave a direction open."""


def with_report_columns(findings: Findings, evidence: Evidence, filter_name: str) -> Findings:
    """Return the findings with ``REPORT_COLUMNS`` in their samples; nothing else in them changes.

    Args:
        findings: the result of a defense on ``evidence``.
        evidence: the outputs of the network on the plain and the filtered images.
        filter_name: the filter whose decisions are shown.

    """
    clusters = findings.samples["cluster"].to_numpy()
    coordinates = np.zeros((len(clusters), 2), dtype=np.float32)
    for label in range(len(evidence.class_names)):
        rows = np.flatnonzero(evidence.labels == label)
        if len(rows):
            with one_thread():  # the number of threads would change the last bits
                coordinates[rows] = map_coordinates(evidence.plain.features[rows], clusters[rows])
    decisions = evidence.filtered[filter_name].decisions
    samples = findings.samples.assign(filtered=decisions, x=coordinates[:, 0], y=coordinates[:, 1])
    return replace(findings, samples=samples, image_filter=filter_name)


def map_coordinates(features: NDArray[np.float32], clusters: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return where the images of a class lie on its map, (n, 2), in the plane in which its clusters lie farthest apart.

    The plane is spanned by Fisher's discriminant directions (Rao, J. Royal Stat. Soc. B 1948) within the 2 √n widest
    principal components, each scaled to variance 1. One or two clusters leave a direction open, and then the widest
    component is taken. The plane is chosen with knowledge of the clusters: it shows them and proves nothing.

    Args:
        features: (n, t), of the images of one class.
        clusters: (n,), the cluster of each.

    """
    n = len(features)
    components = principal_components(features.astype(np.float64), int(2 * np.sqrt(n)))
    coordinates = np.zeros((n, 2))
    if components.shape[1]:
        variances = components.var(axis=0)
        whitened = components / np.sqrt(variances)
        means = np.stack([whitened[clusters == k].mean(axis=0) for k in np.unique(clusters)])
        sizes = np.unique(clusters, return_counts=True)[1]
        between = (means * sizes[:, None]).T @ means / n + VARIANCE_WEIGHT * np.diag(variances / variances[0])
        axes = eigh(between)[1][:, ::-1][:, :2]
        coordinates[:, : axes.shape[1]] = whitened @ axes
        coordinates *= np.where((coordinates**3).sum(axis=0) < 0, -1, 1)  # the sign of an eigenvector is arbitrary
    return coordinates.astype(np.float32)

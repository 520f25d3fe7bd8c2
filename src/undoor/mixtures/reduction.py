"""The few directions in which the features of one class fall into groups.

A component with a full covariance over t features has about t²/2 parameters, and BIC charges (log n)/2 nats for each of
them: about 9 000 nats at t = 64, more than half a million at t = 512. BIC then returns one component, however far away
a poisoned cluster of some hundred images lies. In few directions a component is cheap. They have to be the directions
in which a small cluster stands apart, and these need not be the widest. This already pays at t = 64: see
results/smallest-cluster.
"""

import warnings

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

SMALLEST_SHARE, SMALLEST_SIZE = 0.01, 25
"""The smallest cluster that must be found has a hundredth of the rows of its class, but at least 25 rows."""

PARTS, PARTITIONS = 60, 6
"""In each of two rounds, k-means cuts a class six times into 60 small parts."""

KMEANS_ITERATIONS = 30
"""The partitions are averaged, so that they need not be exact. k-means starts at random: k-means++ finds no more."""

ROUNDING = 1e-6
"""A principal component with less than this share of the largest variance holds only the rounding errors of float32."""


def affordable_dimensions(n: int) -> int:
    """Return the largest d with d (d + 3) / 2 ≤ max(n / 100, 25): 5 for n < 2 700, 8 for 5 000, 30 for 50 000.

    A Gaussian in d dimensions has d (d + 3) / 2 parameters, so that the smallest cluster that must be found has one row
    for each of them. BIC accepts that cluster as a component if it gains (log n)/2 nats per row, which is 3 to 5.
    """
    return int((np.sqrt(9 + 8 * max(SMALLEST_SHARE * n, SMALLEST_SIZE)) - 3) / 2)


def reduce_features(rows: NDArray[np.float64], dimensions: int, seed: int = 0) -> NDArray[np.float64]:
    """Return (n, t) rows in the directions that best separate their small parts.

    1. The 2 √n widest principal components are kept. In many more directions, no partition of n rows could tell a
       small cluster from chance.
    2. k-means cuts the class into 60 parts (into fewer if they would have fewer than ten rows) six times: three times
       with the components as wide as they are, where large clusters show, and three times with components of equal
       variance, where clusters show that lie apart in a narrow direction.
    3. Divided by the mean scatter within these parts, rows of different clusters are farther from each other than rows
       of the same cluster. k-means cuts the class six times more.
    4. The directions returned are those in which the scatter between these parts, averaged over the partitions, is
       largest compared with the scatter of all rows: Fisher's discriminant directions (Rao, J. Royal Stat. Soc. B
       1948). Where rows merely spread, each partition cuts them elsewhere and the mean levels out; a cluster that lies
       apart stays in one piece.

    Neither the scale of the features nor a constant added to them matters. A cluster that lies apart only outside the
    2 √n widest principal components is lost.

    Args:
        rows: (n, t), finite, in ``undoor.mixtures.partitions.canonical_order``.
        dimensions: how many directions to return, 1 or more.
        seed: of k-means.

    Returns:
        (n, d) with mean 0 and variance 1 in each direction. d is ``dimensions``, or the rank of the principal
        components if that is lower, but at least 1: constant rows become zeros.

    """
    n = len(rows)
    components = principal_components(rows, int(2 * np.sqrt(n)))
    deviations = components.std(axis=0)
    if components.shape[1] == 0:
        return np.zeros((n, 1))
    whitened: NDArray[np.float64] = components / deviations
    parts = min(PARTS, n // 10)
    if parts < 2 or whitened.shape[1] <= dimensions:
        return whitened[:, :dimensions]
    views = [components, whitened] * (PARTITIONS // 2)
    within, axes = eigh(np.eye(len(deviations)) - _scatter_between(whitened, views, parts, seed))
    spread = whitened @ axes / np.sqrt(np.maximum(within, ROUNDING))
    between = _scatter_between(whitened, [spread] * PARTITIONS, parts, seed)
    reduced: NDArray[np.float64] = whitened @ eigh(between)[1][:, ::-1][:, :dimensions]
    return reduced


def principal_components(rows: NDArray[np.float64], most: int) -> NDArray[np.float64]:
    """Return the ``most`` widest principal components of (n, t) rows, (n, d), the widest first.

    Components that hold only rounding errors (``ROUNDING``) are left out: constant rows have d = 0.
    """
    n, t = rows.shape
    centred = rows - rows.mean(axis=0)
    products = (centred @ centred.T if t > n else centred.T @ centred) / n
    size = len(products)
    variances, axes = eigh(products, subset_by_index=(max(size - most, 0), size - 1))
    kept = np.flatnonzero(variances > ROUNDING * max(float(variances[-1]), 0.0))[::-1]
    if t > n:  # apart from their lengths, the eigenvectors are the coordinates of the rows
        coordinates: NDArray[np.float64] = axes[:, kept] * np.sqrt(n * variances[kept])
        return coordinates
    components: NDArray[np.float64] = centred @ axes[:, kept]
    return components


def _scatter_between(
    whitened: NDArray[np.float64], views: list[NDArray[np.float64]], parts: int, seed: int
) -> NDArray[np.float64]:
    """Return the mean scatter, (d, d), of the means of (n, d) rows in the parts into which k-means cuts each view."""
    n, d = whitened.shape
    scatter = np.zeros((d, d))
    for draw, view in enumerate(views):
        with warnings.catch_warnings():
            # An early stop is intended, and rows that coincide fill fewer parts.
            warnings.simplefilter("ignore", ConvergenceWarning)
            kmeans = KMeans(parts, init="random", n_init=1, max_iter=KMEANS_ITERATIONS, random_state=seed + draw)
            labels = kmeans.fit_predict(view.astype(np.float32))
        sums = np.zeros((parts, d))
        np.add.at(sums, labels, whitened)
        sizes = np.maximum(np.bincount(labels, minlength=parts), 1)
        scatter += (sums / sizes[:, None]).T @ sums / n / len(views)
    return scatter

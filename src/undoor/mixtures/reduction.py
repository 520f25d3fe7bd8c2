"""The few directions in which the features of one class fall into groups.

A component with a full covariance over t features has about t²/2 parameters, and BIC asks (log n)/2 nats for each of
them: about 9 000 nats at t = 64, more than half a million at t = 512. However far apart a poisoned cluster of some
hundred images lies, BIC then returns one component. In few directions a component is cheap; they have to be those in
which a small cluster stands apart, and these need not be the widest. At t = 64 it already pays: see
results/smallest-cluster.
"""

import warnings

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from undoor.errors import UndoorError

SMALLEST = (0.01, 25)
"""The smallest cluster that is looked for: a hundredth of the class, but no fewer than so many rows."""

PARTS, PARTITIONS = 60, 6
"""k-means cuts a class into so many small parts, so many times in either round."""

LLOYD = 30
"""Iterations of k-means, from random starts: what is averaged need not be exact, and k-means++ finds no more."""

ROUNDING = 1e-6
"""Principal components with less than this share of the largest variance hold nothing but the rounding of float32."""


def affordable_dimensions(n: int) -> int:
    """Return the largest d with d (d + 3) / 2 ≤ max(n / 100, 25): 5 for n < 2 700, 8 for 5 000, 30 for 50 000.

    That many parameters has a Gaussian in d dimensions: the smallest cluster that is looked for has a row for each, and
    BIC accepts it as a component of its own where it gains (log n)/2 nats, 3 to 5, a row.
    """
    share, least = SMALLEST
    return int((np.sqrt(9 + 8 * max(share * n, least)) - 3) / 2)


def reduce_features(rows: NDArray[np.float64], dimensions: int, seed: int = 0) -> NDArray[np.float64]:
    """Return (n, t) rows in the directions that best separate their small parts.

    1. The 2 √n widest principal components are kept. In many more directions, no partition of n rows would tell a
       small cluster from chance.
    2. k-means cuts the class into 60 parts (fewer where they would have fewer than ten rows), six times over: three
       times in the components as wide as they are, where large clusters show, three times in components of equal
       variance, where those show that lie apart in a narrow direction.
    3. Divided by the mean scatter within these parts, rows of different clusters are farther from each other than the
       rows of one, and k-means cuts the class six times more.
    4. The directions are those with the largest scatter between these parts against that of all rows, averaged over
       the partitions: Fisher's discriminant directions (Rao, J. Royal Stat. Soc. B 1948). Where rows merely spread,
       each partition cuts them elsewhere and the mean levels out; a cluster that lies apart is kept together.

    Neither the scale of the features nor adding constants to them matters. A cluster that lies apart only outside the
    2 √n widest principal components is lost.

    Args:
        rows: (n, t), finite, in an order that is a function of their content: k-means draws its starts by row number.
        dimensions: how many directions to return.
        seed: of k-means.

    Returns:
        (n, d) with mean 0 and variance 1 in each direction; d is ``dimensions``, or the rank of the principal
        components if that is lower, but at least 1: constant rows become zeros.

    Raises:
        UndoorError: fewer than one dimension is asked for.

    """
    if dimensions < 1:
        raise UndoorError(f"features are to be reduced to {dimensions} dimensions; give 1 or more, or None")
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
    within, axes = eigh(np.eye(len(deviations)) - _between(whitened, views, parts, seed))
    spread = whitened @ axes / np.sqrt(np.maximum(within, ROUNDING))
    between = _between(whitened, [spread] * PARTITIONS, parts, seed)
    reduced: NDArray[np.float64] = whitened @ eigh(between)[1][:, ::-1][:, :dimensions]
    return reduced


def principal_components(rows: NDArray[np.float64], most: int) -> NDArray[np.float64]:
    """Return (n, d) the widest principal components of (n, t) rows, at most ``most``, the widest first.

    Components within ``ROUNDING`` are left out: constant rows have none.
    """
    n, t = rows.shape
    centred = rows - rows.mean(axis=0)
    products = (centred @ centred.T if t > n else centred.T @ centred) / n
    size = len(products)
    variances, axes = eigh(products, subset_by_index=(max(size - most, 0), size - 1))
    kept = np.flatnonzero(variances > ROUNDING * max(float(variances[-1]), 0.0))[::-1]
    if t > n:  # the eigenvectors are the coordinates of the rows themselves, but for their length
        own: NDArray[np.float64] = axes[:, kept] * np.sqrt(n * variances[kept])
        return own
    components: NDArray[np.float64] = centred @ axes[:, kept]
    return components


def _between(
    whitened: NDArray[np.float64], views: list[NDArray[np.float64]], parts: int, seed: int
) -> NDArray[np.float64]:
    """Return (d, d) the scatter of the means of (n, d) rows in the parts into which k-means cuts the views of them."""
    n, d = whitened.shape
    scatter = np.zeros((d, d))
    for draw, view in enumerate(views):
        with warnings.catch_warnings():
            # Neither an early stop nor rows that coincide, and so fill fewer parts, are an accident.
            warnings.simplefilter("ignore", ConvergenceWarning)
            cut = KMeans(parts, init="random", n_init=1, max_iter=LLOYD, random_state=seed + draw)
            labels = cut.fit_predict(view.astype(np.float32))
        sums = np.zeros((parts, d))
        np.add.at(sums, labels, whitened)
        sizes = np.maximum(np.bincount(labels, minlength=parts), 1)
        scatter += (sums / sizes[:, None]).T @ sums / n / len(views)
    return scatter

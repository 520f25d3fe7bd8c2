"""Partitions of the images of a class from which EM starts: many small clusters, merged two by two."""

import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans, kmeans_plusplus
from sklearn.exceptions import ConvergenceWarning

LLOYD = 10
"""Iterations of k-means: the small clusters are merged, their borders need not be exact."""


def small_clusters(rows: NDArray[np.float32], k: int, seed: int) -> NDArray[np.int64]:
    """Return (n,) labels of at most k clusters of (n, t) rows, found by k-means from one k-means++ start."""
    with warnings.catch_warnings():
        # Neither an early stop nor rows that coincide, and so fill fewer clusters, are an accident.
        warnings.simplefilter("ignore", ConvergenceWarning)
        # One draw a centre: the merging evens out what several draws would gain, at most of the cost of k-means here.
        centres, _ = kmeans_plusplus(rows, k, random_state=seed, n_local_trials=1)
        labels: NDArray[np.int64] = KMeans(k, init=centres, n_init=1, max_iter=LLOYD).fit_predict(rows)
    return np.unique(labels, return_inverse=True)[1]


def hierarchy(
    rows: NDArray[np.float64], labels: NDArray[np.int64], ridge: NDArray[np.float64]
) -> dict[int, NDArray[np.int64]]:
    """Return a partition of the rows into K clusters for every K, made by merging small clusters two by two.

    Each step merges the pair whose union costs the least likelihood: that raises Σ n log |S + diag(ridge)|
    least, with the sizes n and covariances S of the clusters (Banfield, Raftery, Biometrics 1993). A cluster
    that consists of several groups, such as poisoned images of several source classes, is thus put together
    before it is compared with the rest; k-means with few centres often cuts through it.

    Args:
        rows: (n, t).
        labels: (n,), of the small clusters: 0 … k − 1.
        ridge: (t,), added to the diagonal of every covariance.

    Returns:
        labels for K = 1, …, k.

    """
    k = int(labels.max()) + 1
    sizes = np.bincount(labels).astype(np.float64)
    means = np.stack([rows[labels == part].mean(axis=0) for part in range(k)])
    scatters = np.stack([(apart := rows[labels == part] - means[part]).T @ apart for part in range(k)])

    def cost(sizes: NDArray[np.float64], scatters: NDArray[np.float64]) -> NDArray[np.float64]:
        logs: NDArray[np.float64] = np.linalg.slogdet(scatters / sizes[:, None, None] + np.diag(ridge))[1]
        return sizes * logs

    def united(one: int, others: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        n, apart = sizes[one] + sizes[others], means[others] - means[one]
        between = (sizes[one] * sizes[others] / n)[:, None, None] * apart[:, :, None] * apart[:, None, :]
        return n, scatters[one] + scatters[others] + between

    costs = cost(sizes, scatters)
    rises = np.full((k, k), np.inf)

    def compare(one: int, others: NDArray[np.int64]) -> None:
        if len(others):
            rise = cost(*united(one, others)) - costs[one] - costs[others]
            rises[np.minimum(one, others), np.maximum(one, others)] = rise

    for part in range(k):
        compare(part, np.arange(part + 1, k))
    partitions = {k: labels}
    left = np.arange(k)
    while len(left) > 1:
        one, other = (int(part) for part in np.unravel_index(rises.argmin(), rises.shape))
        n, scatter = united(one, np.array([other]))
        means[one] = (sizes[one] * means[one] + sizes[other] * means[other]) / n
        sizes[one], scatters[one] = n[0], scatter[0]
        costs[one] = cost(n, scatter)[0]
        rises[other], rises[:, other] = np.inf, np.inf
        left = left[left != other]
        compare(one, left[left != one])
        labels = np.where(labels == other, one, labels)
        partitions[len(left)] = np.unique(labels, return_inverse=True)[1]
    return partitions

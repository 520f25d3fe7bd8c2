"""Partitions of the rows of a class from which EM starts: k-means finds many small clusters, which are then merged."""

import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans, kmeans_plusplus
from sklearn.exceptions import ConvergenceWarning

KMEANS_ITERATIONS = 10
"""The small clusters are merged afterwards, so that their borders need not be exact."""


def canonical_order(features: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the order, (n,), that sorts (n, t) rows by their content.

    k-means draws its starts by row number; on rows in this order, its result depends on their content alone. Rows are
    compared by the big-endian bytes of their values, with −0 as 0. The order is therefore the same on every machine,
    and values that another machine rounds differently hardly change it.
    """
    content = np.ascontiguousarray(features + 0.0)  # −0 + 0 is 0
    big_endian = content.astype(content.dtype.newbyteorder(">"))
    return np.argsort(big_endian.view(np.dtype((np.void, big_endian[0].nbytes))).ravel(), kind="stable")


def small_clusters(rows: NDArray[np.float32], k: int, seed: int) -> NDArray[np.int64]:
    """Return (n,) labels of at most k clusters of (n, t) rows, found by k-means from one k-means++ start."""
    with warnings.catch_warnings():
        # An early stop is intended, and rows that coincide fill fewer than k clusters.
        warnings.simplefilter("ignore", ConvergenceWarning)
        # One trial per centre: the merging makes up for the gain of more trials, which would dominate the cost.
        centres, _ = kmeans_plusplus(rows, k, random_state=seed, n_local_trials=1)
        labels: NDArray[np.int64] = KMeans(k, init=centres, n_init=1, max_iter=KMEANS_ITERATIONS).fit_predict(rows)
    return np.unique(labels, return_inverse=True)[1]


def hierarchy(
    rows: NDArray[np.float64], labels: NDArray[np.int64], ridge: NDArray[np.float64]
) -> dict[int, NDArray[np.int64]]:
    """Return a partition of the rows into K clusters for every K, made by merging small clusters two by two.

    Each step merges the pair whose union costs the least likelihood, which is the pair that raises
    Σ n log |S + diag(ridge)| least, with the sizes n and the covariances S of the clusters (Banfield, Raftery,
    Biometrics 1993). A cluster of several groups, such as poisoned images of several source classes, is thus joined
    before it is compared with the rest. k-means with few centres often cuts through such a cluster.

    Args:
        rows: (n, t).
        labels: (n,), the small cluster of each row, 0 … k − 1.
        ridge: (t,), added to the diagonal of every covariance.

    Returns:
        The labels, (n,), for K = 1, …, k.

    """
    k = int(labels.max()) + 1
    sizes = np.bincount(labels).astype(np.float64)
    means = np.stack([rows[labels == cluster].mean(axis=0) for cluster in range(k)])
    scatters = np.stack([(centred := rows[labels == c] - means[c]).T @ centred for c in range(k)])

    def cost(sizes: NDArray[np.float64], scatters: NDArray[np.float64]) -> NDArray[np.float64]:
        logs: NDArray[np.float64] = np.linalg.slogdet(scatters / sizes[:, None, None] + np.diag(ridge))[1]
        return sizes * logs

    def unions(first: int, others: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        n, offsets = sizes[first] + sizes[others], means[others] - means[first]
        between = (sizes[first] * sizes[others] / n)[:, None, None] * offsets[:, :, None] * offsets[:, None, :]
        return n, scatters[first] + scatters[others] + between

    costs = cost(sizes, scatters)
    increases = np.full((k, k), np.inf)  # only above the diagonal

    def compare(first: int, others: NDArray[np.int64]) -> None:
        if len(others):
            increase = cost(*unions(first, others)) - costs[first] - costs[others]
            increases[np.minimum(first, others), np.maximum(first, others)] = increase

    for cluster in range(k):
        compare(cluster, np.arange(cluster + 1, k))
    partitions = {k: labels}
    remaining = np.arange(k)
    while len(remaining) > 1:
        kept, merged = (int(index) for index in np.unravel_index(increases.argmin(), increases.shape))
        n, scatter = unions(kept, np.array([merged]))
        means[kept] = (sizes[kept] * means[kept] + sizes[merged] * means[merged]) / n
        sizes[kept], scatters[kept] = n[0], scatter[0]
        costs[kept] = cost(n, scatter)[0]
        increases[merged], increases[:, merged] = np.inf, np.inf
        remaining = remaining[remaining != merged]
        compare(kept, remaining[remaining != kept])
        labels = np.where(labels == merged, kept, labels)
        partitions[len(remaining)] = np.unique(labels, return_inverse=True)[1]
    return partitions

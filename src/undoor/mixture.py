"""Gaussian mixtures of the features of one class, the number of components chosen by BIC.

The criterion is the one of Xiang, Miller, Kesidis (MLSP 2019); EM is scikit-learn's, its starts are ours.
"""

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from undoor.reduction import affordable_dimensions, reduce_features

PARTS = 24
"""Small clusters from which a hierarchy of partitions begins."""


@dataclass(frozen=True)
class MixtureSettings:
    """How mixtures are fitted; the defaults are the author's, but for the starts of EM and the reduction.

    Args:
        max_components: the largest K that is tried.
        patience: stop after this many values of K in a row without a lower criterion.
        regularisation: added to the diagonal of every covariance, in squared feature units; reduced features have
            variance 1.
        iterations: of EM, at most.
        restarts: hierarchies of partitions from which EM starts for every K; the likeliest fit is kept. Fits with
            nearly the same likelihood can isolate a poisoned cluster very differently.
        dimensions: to which wider features are reduced before the sweep; "auto" takes as many as a cluster of a
            hundredth of the class can pay for, None leaves the features as they are, as the author did.

    """

    max_components: int = 20
    patience: int = 2
    regularisation: float = 1e-3
    iterations: int = 100
    restarts: int = 3
    dimensions: int | Literal["auto"] | None = "auto"


@dataclass(frozen=True, eq=False)
class Clustering:
    """The mixture that BIC chose.

    Args:
        assignments: (n,) int64, the component with the highest posterior for each row (hard MAP).
        criteria: the value of ``bic`` for K = 1, 2, …, as far as the sweep went.

    """

    assignments: NDArray[np.int64]
    criteria: tuple[float, ...]

    @property
    def components(self) -> int:
        """K, the number of components of the chosen mixture."""
        return int(np.argmin(self.criteria)) + 1


def bic(log_likelihood: float, components: int, n: int, dimensions: int) -> float:
    """Return −log-likelihood + (t² + 3t + 2)/4 · K · log n, in nats; the lowest value wins.

    This is half of the usual criterion (−2 log-likelihood + parameters · log n) plus half of log n.
    """
    t = dimensions
    return -log_likelihood + (t * t + 3 * t + 2) / 4 * components * float(np.log(n))


def cluster(features: NDArray[np.float32], settings: MixtureSettings, seed: int) -> Clustering:
    """Fit full-covariance mixtures with K = 1, 2, … to (n, t) features and keep the K with the lowest BIC.

    Features of more than ``settings.dimensions`` are reduced to so many first, and t is theirs in the criterion.
    The result does not depend on the order of the rows. K never exceeds the number of distinct rows; a
    single row is one cluster.
    """
    n, t = features.shape
    if n == 1:  # no covariance can be fitted: the row is a cluster whatever its likelihood
        return Clustering(np.zeros(1, dtype=np.int64), (0.0,))
    # k-means draws its starts by row number: a canonical order makes them a function of the content.
    order = np.lexsort(features.T[::-1])
    rows = features[order].astype(np.float64)
    distinct = 1 + int((np.diff(rows, axis=0) != 0).any(axis=1).sum())
    wanted = affordable_dimensions(n) if settings.dimensions == "auto" else settings.dimensions
    if wanted is not None and wanted < t:
        rows = reduce_features(rows, wanted, seed)
        t = rows.shape[1]

    whitened = whiten(rows, settings.regularisation)
    parts = min(max(PARTS, settings.max_components), distinct)
    starts = [
        hierarchy(rows, _parts(whitened, parts, seed + restart), settings.regularisation)
        for restart in range(settings.restarts)
    ]

    criteria: list[float] = []
    best = np.zeros(n, dtype=np.int64)
    for k in range(1, min(settings.max_components, *map(len, starts)) + 1):
        if len(criteria) - 1 - int(np.argmin(criteria or [0.0])) >= settings.patience:
            break
        fits = [_fit(rows, start[k], settings) for start in (starts if k > 1 else starts[:1])]
        mixture = max(fits, key=lambda fit: float(fit.lower_bound_))
        criteria.append(bic(float(mixture.score(rows)) * n, k, n, t))
        if criteria[-1] == min(criteria):
            best[order] = mixture.predict(rows)
    return Clustering(best, tuple(criteria))


def whiten(rows: NDArray[np.float64], regularisation: float) -> NDArray[np.float64]:
    """Return (n, t) rows in their principal components, each divided by √(variance + ``regularisation``).

    The likelihood of full covariances does not know in which directions the rows spread widely; distances do.
    After whitening, k-means does not overlook a cluster that lies apart in a direction of small variance.
    """
    centred = rows - rows.mean(axis=0)
    variances, axes = np.linalg.eigh(centred.T @ centred / len(rows))
    whitened: NDArray[np.float64] = centred @ axes / np.sqrt(np.maximum(variances, 0) + regularisation)
    return whitened


def hierarchy(
    rows: NDArray[np.float64], labels: NDArray[np.int64], regularisation: float
) -> dict[int, NDArray[np.int64]]:
    """Return a partition of the rows into K clusters for every K, made by merging small clusters two by two.

    Each step merges the pair whose union costs the least likelihood: that raises Σ n log |S + regularisation · I|
    least, with the sizes n and covariances S of the clusters (Banfield, Raftery, Biometrics 1993). A cluster
    that consists of several groups, such as poisoned images of several source classes, is thus put together
    before it is compared with the rest; k-means with few centres often cuts through it.

    Args:
        rows: (n, t).
        labels: (n,), of the small clusters: 0 … k − 1.
        regularisation: in squared feature units.

    Returns:
        labels for K = 1, …, k.

    """
    k = int(labels.max()) + 1
    ridge = regularisation * np.eye(rows.shape[1])
    sizes = np.bincount(labels).astype(np.float64)
    means = np.stack([rows[labels == part].mean(axis=0) for part in range(k)])
    scatters = np.stack([(apart := rows[labels == part] - means[part]).T @ apart for part in range(k)])

    def cost(sizes: NDArray[np.float64], scatters: NDArray[np.float64]) -> NDArray[np.float64]:
        logs: NDArray[np.float64] = np.linalg.slogdet(scatters / sizes[:, None, None] + ridge)[1]
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


def _parts(whitened: NDArray[np.float64], k: int, seed: int) -> NDArray[np.int64]:
    with warnings.catch_warnings():
        # Rows that differ in their last bits only can coincide after whitening: then fewer clusters are found.
        warnings.simplefilter("ignore", ConvergenceWarning)
        labels: NDArray[np.int64] = KMeans(k, n_init=1, random_state=seed).fit_predict(whitened)
    return np.unique(labels, return_inverse=True)[1]


def _fit(rows: NDArray[np.float64], labels: NDArray[np.int64], settings: MixtureSettings) -> GaussianMixture:
    """Run EM from the weights, means and covariances of labelled rows, (n, t) and (n,)."""
    sizes = np.bincount(labels)
    parts = [rows[labels == k] for k in range(len(sizes))]
    covariances = [np.cov(part, rowvar=False, bias=True).reshape(rows.shape[1], -1) for part in parts]
    ridge = settings.regularisation * np.eye(rows.shape[1])
    mixture = GaussianMixture(
        len(sizes),
        reg_covar=settings.regularisation,
        max_iter=settings.iterations,
        weights_init=sizes / len(rows),
        means_init=np.stack([part.mean(axis=0) for part in parts]),
        precisions_init=np.stack([np.linalg.inv(covariance + ridge) for covariance in covariances]),
        init_params="random",  # all three are given; this is the cheapest to be thrown away
        random_state=0,
    )
    with warnings.catch_warnings():
        # Stopping EM after a set number of iterations is part of the method, not an accident.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return mixture.fit(rows)

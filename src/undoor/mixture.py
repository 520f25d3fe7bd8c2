"""Gaussian mixtures of the features of one class, the number of components chosen by BIC.

The criterion is the one of Xiang, Miller, Kesidis (MLSP 2019); scikit-learn's EM fits the mixtures.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

ROWS = 20_000
"""Rows that the starts of EM go through for every K, by default."""


@dataclass(frozen=True)
class MixtureSettings:
    """How mixtures are fitted; the defaults are those of the method's author, but for the restarts.

    Args:
        max_components: the largest K that is tried.
        patience: stop after this many values of K in a row without a lower criterion.
        regularisation: added to the diagonal of every covariance, in squared feature units.
        iterations: of EM, at most.
        restarts: starts of EM for every K, of which the likeliest fit is kept. Fits with nearly the same
            likelihood can isolate a poisoned cluster very differently, and one start often misses the likeliest.
            None takes as many as go through ``ROWS`` rows, but 5 to 20: small classes need more, and cost less.

    """

    max_components: int = 20
    patience: int = 2
    regularisation: float = 1e-3
    iterations: int = 100
    restarts: int | None = None

    def starts(self, n: int) -> int:
        """Return the number of starts for n rows."""
        return self.restarts or min(max(ROWS // n, 5), 20)


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

    whitened = whiten(rows, settings.regularisation)

    criteria: list[float] = []
    best = np.zeros(n, dtype=np.int64)
    for k in range(1, min(settings.max_components, distinct) + 1):
        if len(criteria) - 1 - int(np.argmin(criteria or [0.0])) >= settings.patience:
            break
        starts = range(seed, seed + (settings.starts(n) if k > 1 else 1))
        fits = [_fit(rows, _start(whitened, k, start), settings) for start in starts]
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


def _start(whitened: NDArray[np.float64], k: int, seed: int) -> NDArray[np.int64]:
    if k == 1:
        return np.zeros(len(whitened), dtype=np.int64)
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

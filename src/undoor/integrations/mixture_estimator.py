"""The Gaussian mixture that Cluster Impurity uses for clustering, as an estimator of scikit-learn."""

from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClusterMixin, DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from undoor.mixtures.em import Mixtures, joint_log_densities
from undoor.mixtures.sweep import MixtureSettings, bic, fit_mixtures

Floats = NDArray[np.float64]


class BicMixture(ClusterMixin, DensityMixin, BaseEstimator):  # type: ignore[misc] # scikit-learn has no types
    """A Gaussian mixture with full covariances that chooses its number of components by BIC.

    The settings are those of ``undoor.mixtures.sweep.MixtureSettings``, and the attributes have the names that they
    have in ``GaussianMixture``. The features are not reduced.

    Args:
        max_components: the largest number of components K that is tried.
        patience: the search stops after this many values of K in a row without a lower criterion.
        regularisation: it is added to the diagonal of every covariance, in squared units of the features.
        iterations: the most iterations of EM.
        restarts: the number of starts of EM for every K; the most likely fit is kept.
        random_state: for the starts.

    Attributes:
        n_components_: K.
        weights_: (K,) float64, with sum 1.
        means_: (K, t) float64.
        covariances_: (K, t, t) float64.
        precisions_cholesky_: (K, t, t) float64, W with Wᵀ Σ W = 1, upper triangular.
        labels_: (n,) int64, the most likely component of every row of the training data.

    """

    def __init__(
        self,
        max_components: int = 20,
        *,
        patience: int = 2,
        regularisation: float = 1e-3,
        iterations: int = 100,
        restarts: int = 3,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.max_components = max_components
        self.patience = patience
        self.regularisation = regularisation
        self.iterations = iterations
        self.restarts = restarts
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: None = None) -> Self:  # noqa: ARG002, N803 - the interface has both
        """Fit to (n, t) finite rows."""
        settings = MixtureSettings(
            self.max_components, self.patience, self.regularisation, self.iterations, self.restarts, dimensions=None
        )
        rows = validate_data(self, X, dtype=np.float64)
        seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        # The fit computes in float32. Without their mean, rows far from the origin keep their digits.
        centre = rows.mean(axis=0)
        mixtures = fit_mixtures([rows - centre], settings, seed)
        self.weights_: Floats = mixtures.weights[0].numpy()
        self.means_: Floats = mixtures.means[0].numpy() + centre
        self.precisions_cholesky_: Floats = mixtures.whitenings[0].numpy()
        inverses = np.linalg.inv(self.precisions_cholesky_)
        self.covariances_: Floats = inverses.transpose(0, 2, 1) @ inverses
        self.n_components_ = len(self.weights_)
        self.labels_: NDArray[np.int64] = self._joint(rows).argmax(axis=1)
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:  # noqa: N803
        """Return the most likely component of every row, (n,) int64."""
        labels: NDArray[np.int64] = self._joint_of(X).argmax(axis=1)
        return labels

    def predict_proba(self, X: ArrayLike) -> Floats:  # noqa: N803
        """Return the posterior probability of every component, (n, K)."""
        joint = self._joint_of(X)
        posterior: Floats = np.exp(joint - np.logaddexp.reduce(joint, axis=1, keepdims=True))
        return posterior

    def score_samples(self, X: ArrayLike) -> Floats:  # noqa: N803
        """Return the log-likelihood of every row, (n,), in nats."""
        likelihoods: Floats = np.logaddexp.reduce(self._joint_of(X), axis=1)
        return likelihoods

    def score(self, X: ArrayLike, y: None = None) -> float:  # noqa: ARG002, N803
        """Return the mean log-likelihood of the rows, in nats."""
        return float(self.score_samples(X).mean())

    def bic(self, X: ArrayLike) -> float:  # noqa: N803
        """Return −2 log-likelihood + parameters · log n, in nats; the lowest value is best."""
        likelihoods = self.score_samples(X)
        n = len(likelihoods)
        halved = bic(float(likelihoods.sum()), self.n_components_, n, self.n_features_in_)
        return 2 * halved - float(np.log(n))

    def _joint_of(self, X: ArrayLike) -> Floats:  # noqa: N803
        check_is_fitted(self)
        rows: Any = validate_data(self, X, dtype=np.float64, reset=False)
        return self._joint(rows)

    def _joint(self, rows: Floats) -> Floats:
        """Return the logarithms of the joint densities of rows and components, (n, K)."""
        parts = (self.weights_, self.means_, self.precisions_cholesky_)
        mixtures = Mixtures(*(torch.tensor(part)[None] for part in parts))
        joint: Floats = joint_log_densities(torch.tensor(rows)[None], mixtures)[0].numpy().T
        return joint

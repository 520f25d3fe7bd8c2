"""The null of a layer: for every class, a mixture of Gaussians that describes the clean images of the class."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from undoor.errors import UndoorError
from undoor.mixtures.em import Mixtures, posterior
from undoor.mixtures.sweep import MixtureSettings, fit_mixtures

IMAGES_PER_DIRECTION = 10
"""There must be at least this many clean images for each direction that is kept. Directions of small variance are
dropped until that holds."""

ROUNDING = 1e-6
"""A direction with less than this share of the largest variance holds nothing but the rounding errors of float32."""


@dataclass(frozen=True, eq=False)
class Null:
    """The distribution of the clean images of every class at one layer, in coordinates that all classes share.

    Args:
        mean: (t,) float64, the mean of the features.
        axes: (t, d) float64. Within the classes, features · axes have variance 1 and no covariance.
        mixtures: K mixtures, one a class. Those with fewer components than others are filled up with weights of 0.

    """

    mean: NDArray[np.float64]
    axes: NDArray[np.float64]
    mixtures: Mixtures

    @property
    def components(self) -> tuple[int, ...]:
        """The number of components in the mixture of every class."""
        return tuple(int(count) for count in (self.mixtures.weights > 0).sum(1))

    def log_densities(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return log f(z | c), (n, K), of (n, t) features, up to a constant that is the same for all classes."""
        rows = torch.from_numpy((features - self.mean) @ self.axes)
        return posterior(rows[None], self.mixtures)[0].numpy().T


def fit_null(
    features: NDArray[np.float32], labels: NDArray[np.int64], classes: int, settings: MixtureSettings, seed: int
) -> Null:
    """Fit a mixture to the features of every class, with the number of components chosen by BIC.

    Densities of different classes are compared, so all are taken in the same coordinates: the principal axes of the
    scatter within the classes, scaled to variance 1. The regularisation of the mixtures, added to the diagonals of
    their covariances, then shrinks every class towards the scatter that all share, as regularised discriminant analysis
    does (Friedman, JASA 1989). A class therefore needs no more images than there are features.

    Args:
        features: (n, t), finite.
        labels: (n,), each of 0 … K − 1 occurs.
        classes: K.
        settings: how the mixtures are fitted.
        seed: for the starts of the mixtures.

    Raises:
        UndoorError: if no feature varies within the classes.

    """
    exact = features.astype(np.float64)
    means = np.stack([exact[labels == label].mean(axis=0) for label in range(classes)])
    within = exact - means[labels]
    if not within.any():
        raise UndoorError("its input does not vary within the classes; watch other layers")
    directions = max(1, min(*within.shape, len(within) // IMAGES_PER_DIRECTION))
    principal = PCA(directions, random_state=seed).fit(within)
    kept = principal.explained_variance_ > ROUNDING * principal.explained_variance_[0]
    axes = principal.components_[kept].T / np.sqrt(principal.explained_variance_[kept])
    mean = exact.mean(axis=0)
    rows = (exact - mean) @ axes
    return Null(mean, axes, fit_mixtures([rows[labels == label] for label in range(classes)], settings, seed))

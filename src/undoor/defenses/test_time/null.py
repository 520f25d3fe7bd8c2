"""The null of a layer: for every class, a mixture of Gaussians that clean images of the class are drawn from."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from undoor.errors import UndoorError
from undoor.mixtures.em import Mixtures, posterior
from undoor.mixtures.sweep import MixtureSettings, fit_mixtures

IMAGES_A_DIRECTION = 10
"""Clean images there must be for every direction that is kept; the directions of least variance go first."""

ROUNDING = 1e-6
"""Directions with less than this share of the largest variance hold nothing but the rounding of float32."""


@dataclass(frozen=True, eq=False)
class Null:
    """What the clean images of every class look like at one layer, in coordinates that all classes share.

    Args:
        mean: (t,) float64, of the features.
        axes: (t, d) float64: features · axes have variance 1 within the classes, and no covariance.
        mixtures: one a class, K of them; those with fewer components than others are filled up with weights 0.

    """

    mean: NDArray[np.float64]
    axes: NDArray[np.float64]
    mixtures: Mixtures

    @property
    def components(self) -> tuple[int, ...]:
        """How many components the mixture of every class has."""
        return tuple(int(count) for count in (self.mixtures.weights > 0).sum(1))

    def log_densities(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return log f(z | c), (n, K), of (n, t) features, up to a constant that is the same for all classes."""
        rows = torch.from_numpy((features - self.mean) @ self.axes)
        return posterior(rows[None], self.mixtures)[0].numpy().T


def fit_null(
    features: NDArray[np.float32], labels: NDArray[np.int64], classes: int, settings: MixtureSettings, seed: int
) -> Null:
    """Fit a mixture to the features of every class, its order chosen by BIC.

    Densities of different classes are compared, so that all are taken in the same coordinates: the principal axes of
    the scatter within the classes, scaled to variance 1. There the regularisation of the mixtures, added to the
    diagonals of their covariances, shrinks every class towards the scatter that all share, as regularised
    discriminant analysis does (Friedman, JASA 1989): a class then needs no more images than there are features.

    Args:
        features: (n, t), finite.
        labels: (n,), every one of 0 … K − 1 occurs.
        classes: K.
        settings: of the mixtures.
        seed: of their starts.

    Raises:
        UndoorError: if no feature varies within the classes.

    """
    exact = features.astype(np.float64)
    means = np.stack([exact[labels == label].mean(axis=0) for label in range(classes)])
    apart = exact - means[labels]
    most = max(1, min(*apart.shape, len(apart) // IMAGES_A_DIRECTION))
    if not apart.any():
        raise UndoorError("its input does not vary within the classes; watch other layers")
    within = PCA(most, random_state=seed).fit(apart)
    kept = within.explained_variance_ > ROUNDING * within.explained_variance_[0]
    axes = within.components_[kept].T / np.sqrt(within.explained_variance_[kept])
    mean = exact.mean(axis=0)
    rows = (exact - mean) @ axes
    return Null(mean, axes, fit_mixtures([rows[labels == label] for label in range(classes)], settings, seed))

"""Gaussian mixtures of the features of a class, where BIC chooses the number of components K.

The criterion is that of Xiang, Miller, Kesidis (MLSP 2019).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from itertools import groupby
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from undoor.engine import Workers, map_items
from undoor.errors import UndoorError
from undoor.mixtures.em import Mixtures, fit_from_starts, from_labels, posterior
from undoor.mixtures.memory import memory
from undoor.mixtures.partitions import canonical_order, hierarchy, small_clusters
from undoor.mixtures.reduction import affordable_dimensions, reduce_features

SMALL_CLUSTERS = 24
"""Every hierarchy of partitions begins with this many small clusters, or with ``max_components`` if that is more."""

FLOAT32_RIDGE = 1e-4
"""EM computes in float32 if the ridge is at least this share of the variance along every axis. The rounding errors of
float32 then stay below the ridge."""


@dataclass(frozen=True)
class MixtureSettings:
    """How mixtures are fitted. The defaults are those of the author's code, except ``restarts`` and ``dimensions``.

    Args:
        max_components: the largest K that is tried.
        patience: the sweep over K stops after this many values in a row that do not lower the criterion.
        regularisation: added to the diagonal of every covariance, in squared feature units. Reduced features have
            variance 1.
        iterations: the largest number of EM steps.
        restarts: the number of hierarchies of partitions. EM starts from each of them for every K, and the likeliest
            fit is kept. Fits of nearly the same likelihood can isolate a poisoned cluster very differently.
        dimensions: the number of dimensions to which wider features are reduced before the sweep. None keeps all
            features, as the author's code does. "few" takes as many dimensions as a cluster of a hundredth of the class
            can pay for. "auto" is "few" for a class with fewer images than one component has parameters, else None.

    Raises:
        UndoorError: a setting is out of range.

    """

    max_components: int = 20
    patience: int = 2
    regularisation: float = 1e-3
    iterations: int = 100
    restarts: int = 3
    dimensions: int | Literal["auto", "few"] | None = "auto"

    def __post_init__(self) -> None:
        for name in ("max_components", "patience", "iterations", "restarts"):
            if getattr(self, name) < 1:
                raise UndoorError(f"{name} of the mixtures is {getattr(self, name)}; give 1 or more")
        if isinstance(self.dimensions, int) and self.dimensions < 1:
            raise UndoorError(f"features are to be reduced to {self.dimensions} dimensions; give 1 or more, or None")
        if not self.regularisation > 0:
            raise UndoorError(f"the regularisation of the mixtures is {self.regularisation}; give a number above 0")

    def dimensions_of(self, n: int, t: int) -> int:
        """Return the number of dimensions, at most t, to which a class of n images with t features is reduced."""
        if self.dimensions is None or (self.dimensions == "auto" and t * (t + 3) / 2 <= n):
            return t
        return min(t, self.dimensions if isinstance(self.dimensions, int) else affordable_dimensions(n))


@dataclass(frozen=True, eq=False)
class Clustering:
    """The clusters of one class: the components of the mixture that BIC chose.

    Args:
        assignments: (n,) int64, the most probable component of each row (hard MAP).
        criteria: the value of ``bic`` for K = 1, 2, …, up to the last K that was tried. Only the lowest value belongs
            to a mixture that has converged: EM stops early where the value cannot become the lowest any more.

    """

    assignments: NDArray[np.int64]
    criteria: tuple[float, ...]

    @property
    def components(self) -> int:
        """K, the number of components of the chosen mixture."""
        return int(np.argmin(self.criteria)) + 1


def bic(log_likelihood: float, components: int, n: int, dimensions: int) -> float:
    """Return the criterion of the paper, −log-likelihood + (t² + 3t + 2)/4 · K · log n, in nats. The lowest value wins.

    It equals half of the usual criterion (−2 log-likelihood + parameters · log n) plus half of log n.

    Args:
        log_likelihood: of all n rows, in nats.
        components: K.
        n: the number of rows.
        dimensions: t, the number of features.

    >>> round(bic(-1500.0, components=2, n=100, dimensions=4), 1)
    1569.1

    """
    t = dimensions
    return -log_likelihood + (t * t + 3 * t + 2) / 4 * components * float(np.log(n))


def cluster(features: NDArray[np.float32], settings: MixtureSettings, seed: int) -> Clustering:
    """Fit full-covariance mixtures with K = 1, 2, … to (n, t) features and keep the K with the lowest BIC.

    Features of more than ``settings.dimensions`` dimensions are reduced first, and the criterion then counts the
    reduced dimensions. The result does not depend on the order of the rows. K never exceeds the number of distinct
    rows.

    Raises:
        UndoorError: there is no row, or the features are not finite.

    """
    return cluster_classes([features], settings, seed)[0]


def cluster_classes(
    classes: Sequence[NDArray[np.float32]],
    settings: MixtureSettings,
    seed: int,
    device: str = "cpu",
    workers: Workers = 1,
) -> list[Clustering]:
    """Return the clustering of each class, (n, t), as ``cluster`` does, but fit all classes at once, which suits a GPU.

    The starts of EM are computed by ``workers``, an engine or a number of threads.
    """
    remembered = memory.get()
    if remembered is None:
        return _cluster_classes(classes, settings, seed, device, workers)
    keys = [(sha256(x.tobytes()).digest(), x.shape, x.dtype, settings, seed, device) for x in classes]
    missing = {key: features for key, features in zip(keys, classes, strict=True) if key not in remembered}
    found = _cluster_classes(list(missing.values()), settings, seed, device, workers)
    remembered.update(zip(missing, found, strict=True))
    return [remembered[key] for key in keys]


def fit_mixtures(classes: Sequence[NDArray[np.float64]], settings: MixtureSettings, seed: int) -> Mixtures:
    """Return a mixture for the (n, d) rows of every class, fitted from the clusters that BIC chooses.

    Mixtures with fewer components than others are filled up with components of weight 0.
    """
    clusterings = cluster_classes([rows.astype(np.float32) for rows in classes], settings, seed)
    fitted = []
    for rows, clustering in zip(classes, clusterings, strict=True):
        labels = torch.from_numpy(np.unique(clustering.assignments, return_inverse=True)[1])[None]
        class_of, exact = torch.zeros(1, dtype=torch.int64), torch.from_numpy(rows)[None]
        ridge = torch.full((1, rows.shape[1]), settings.regularisation, dtype=torch.float64)
        start = from_labels(exact, labels, class_of, int(labels.max()) + 1, ridge)
        floor = torch.tensor([-torch.inf], dtype=torch.float64)
        present = torch.ones(1, len(rows), dtype=torch.bool)
        fitted.append(fit_from_starts(exact, present, start, class_of, ridge, floor, settings.iterations))
    parts = ([mixture.weights[0], mixture.means[0], mixture.whitenings[0]] for mixture in fitted)
    weights, means, whitenings = (pad_sequence(list(part), batch_first=True) for part in zip(*parts, strict=True))
    whitenings[weights == 0] = torch.eye(whitenings.shape[-1], dtype=torch.float64)
    return Mixtures(weights, means, whitenings)


def whiten(rows: NDArray[np.float64], regularisation: float) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Return (n, t) rows in their principal components, each divided by √(variance + ``regularisation``).

    Full covariances fit stretched rows as well as whitened rows. k-means does not: it overlooks a cluster that lies
    apart in a direction of small variance, unless the rows are whitened.

    The other results are what ``regularisation`` becomes along the whitened axes, (t,), kept above the rounding errors
    of float64, and by how many nats whitening raises the log-likelihood of each row.
    """
    centred = rows - rows.mean(axis=0)
    variances, axes = np.linalg.eigh(centred.T @ centred / len(rows))
    total = np.maximum(variances, 0) + regularisation
    whitened: NDArray[np.float64] = centred @ axes / np.sqrt(total)
    return whitened, np.maximum(regularisation / total, 1e-10), float(np.log(total).sum() / 2)


def _cluster_classes(
    classes: Sequence[NDArray[np.float32]], settings: MixtureSettings, seed: int, device: str, workers: Workers
) -> list[Clustering]:
    sweeps = map_items(partial(_Sweep.begin, settings=settings, seed=seed), classes, workers)
    for k in range(1, settings.max_components + 1):
        unfinished = sorted((sweep for sweep in sweeps if sweep.continues_with(k, settings)), key=_kind)
        for _, alike in groupby(unfinished, key=_kind):
            _fit(list(alike), k, settings, device)
    return [Clustering(sweep.assignments, tuple(sweep.criteria)) for sweep in sweeps]


@dataclass(eq=False)
class _Sweep:
    """The search for K in one class: the results of ``whiten`` for its rows in ``order``, and what was found so far."""

    rows: NDArray[np.float64]
    order: NDArray[np.int64]
    ridge: NDArray[np.float64]
    log_scale: float
    starts: list[dict[int, NDArray[np.int64]]]
    assignments: NDArray[np.int64]
    criteria: list[float] = field(default_factory=list)

    @classmethod
    def begin(cls, features: NDArray[np.float32], settings: MixtureSettings, seed: int) -> "_Sweep":
        if features.ndim != 2 or 0 in features.shape:
            raise UndoorError(f"features of a class have shape {features.shape}; give (n, t) with one row or more")
        if not np.isfinite(features).all():
            raise UndoorError("features of a class are not finite; mend the model or remove these samples")
        order = canonical_order(features)
        rows = features[order].astype(np.float64)
        distinct = 1 + int((np.diff(rows, axis=0) != 0).any(axis=1).sum())
        dimensions = settings.dimensions_of(*rows.shape)
        if dimensions < rows.shape[1]:
            rows = reduce_features(rows, dimensions, seed)
        whitened, ridge, log_scale = whiten(rows, settings.regularisation)
        parts = min(max(SMALL_CLUSTERS, settings.max_components), distinct)
        starts = [
            hierarchy(whitened, small_clusters(whitened.astype(np.float32), parts, seed + restart), ridge)
            for restart in range(settings.restarts)
        ]
        return cls(whitened, order, ridge, log_scale, starts, np.zeros(len(rows), dtype=np.int64))

    def continues_with(self, k: int, settings: MixtureSettings) -> bool:
        if k == 1:
            return True
        if len(self.rows) == 1 or k > min(map(len, self.starts)):
            return False
        return len(self.criteria) == k - 1 and k - 2 - int(np.argmin(self.criteria)) < settings.patience

    def log_likelihood_to_beat(self, k: int) -> float:
        """Return the log-likelihood of the whitened rows above which k components have the lowest criterion."""
        if not self.criteria:
            return -np.inf
        n, t = self.rows.shape
        return bic(-n * self.log_scale, k, n, t) - min(self.criteria)

    def add(self, log_likelihood: float, assignments: NDArray[np.int64], k: int) -> None:
        """Add the fit with k components."""
        n, t = self.rows.shape
        self.criteria.append(bic(log_likelihood - n * self.log_scale, k, n, t))
        if self.criteria[-1] == min(self.criteria):
            self.assignments[self.order] = assignments


def _kind(sweep: _Sweep) -> tuple[int, bool]:
    """Return what sweeps must have in common to be fitted at once: the dimensions, and whether they need float64."""
    return sweep.rows.shape[1], bool(sweep.ridge.min() < FLOAT32_RIDGE)


def _fit(sweeps: list[_Sweep], k: int, settings: MixtureSettings, device: str) -> None:
    """Fit mixtures of k components to the rows of all sweeps, which are of one kind."""
    exact = _stack([sweep.rows for sweep in sweeps], 0.0, device)
    rows = exact if _kind(sweeps[0])[1] else exact.float()
    ridge = torch.tensor(np.stack([sweep.ridge for sweep in sweeps]), device=device)
    floor = torch.tensor([sweep.log_likelihood_to_beat(k) for sweep in sweeps], dtype=torch.float64, device=device)
    starts = settings.restarts if k > 1 else 1
    labels = _stack([start[k] for sweep in sweeps for start in sweep.starts[:starts]], -1, device)
    class_of = torch.arange(len(sweeps), device=device).repeat_interleave(starts)
    present = labels[::starts] >= 0
    begin = from_labels(rows, labels, class_of, k, ridge)
    mixtures = fit_from_starts(rows, present, begin, class_of, ridge, floor, settings.iterations)
    results = (result.cpu() for result in (present, *posterior(exact, mixtures)))
    for sweep, real, likelihoods, components in zip(sweeps, *results, strict=True):
        sweep.add(float(likelihoods[real].sum()), components[real].numpy(), k)


def _stack(arrays: Sequence[NDArray[np.float64] | NDArray[np.int64]], filling: float, device: str) -> Tensor:
    """Return arrays of different lengths as one tensor, filled up with ``filling``. A single array is not copied."""
    tensors = [torch.from_numpy(array) for array in arrays]
    if len(tensors) == 1:
        return tensors[0][None].to(device)
    return pad_sequence(tensors, batch_first=True, padding_value=filling).to(device)

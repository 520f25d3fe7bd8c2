"""Gaussian mixtures of the features of a class, the number of components chosen by BIC.

The criterion is the one of Xiang, Miller, Kesidis (MLSP 2019).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from undoor.engine import Workers, map_items
from undoor.errors import UndoorError
from undoor.mixtures.em import Mixtures, from_labels, posterior, race
from undoor.mixtures.partitions import hierarchy, small_clusters
from undoor.mixtures.reduction import affordable_dimensions, reduce_features

PARTS = 24
"""Small clusters from which a hierarchy of partitions begins."""

SINGLE = 1e-4
"""Of the variance along an axis: with a larger ridge EM computes in float32, whose rounding errors stay below it."""


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
        dimensions: to which wider features are reduced before the sweep. None leaves the features as they are, as the
            author did; "few" takes as many as a cluster of a hundredth of the class can pay for; "auto" is None, but
            "few" in a class with fewer images than one component has parameters.

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
        """Return to how many dimensions a class of n images with t features is reduced, at most t."""
        if self.dimensions is None or (self.dimensions == "auto" and t * (t + 3) / 2 <= n):
            return t
        return min(t, self.dimensions if isinstance(self.dimensions, int) else affordable_dimensions(n))


@dataclass(frozen=True, eq=False)
class Clustering:
    """The mixture that BIC chose.

    Args:
        assignments: (n,) int64, the component with the highest posterior for each row (hard MAP).
        criteria: the value of ``bic`` for K = 1, 2, …, as far as the sweep went. Only the lowest is of a mixture that
            was followed to the end: EM stops early where it cannot become the lowest any more.

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
    return cluster_classes([features], settings, seed)[0]


def cluster_classes(
    classes: Sequence[NDArray[np.float32]],
    settings: MixtureSettings,
    seed: int,
    device: str = "cpu",
    workers: Workers = 1,
) -> list[Clustering]:
    """Return what ``cluster`` finds in each class, (n, t), by fitting all classes at once, as suits a GPU.

    The starts are found by ``workers``, an engine or threads.
    """
    sweeps = map_items(partial(_Sweep.of, settings=settings, seed=seed), classes, workers)
    for k in range(1, settings.max_components + 1):
        going = sorted((sweep for sweep in sweeps if sweep.goes_on_to(k, settings)), key=_kind)
        for _, alike in groupby(going, key=_kind):
            _fit(list(alike), k, settings, device)
    return [Clustering(sweep.assignments, tuple(sweep.criteria)) for sweep in sweeps]


def fit_mixtures(classes: Sequence[NDArray[np.float64]], settings: MixtureSettings, seed: int) -> Mixtures:
    """Return a mixture for the (n, d) rows of every class, with the clusters that BIC chooses as the start of EM."""
    found = cluster_classes([rows.astype(np.float32) for rows in classes], settings, seed)
    fitted = []
    for rows, clustering in zip(classes, found, strict=True):
        labels = torch.from_numpy(np.unique(clustering.assignments, return_inverse=True)[1])[None]
        of, exact = torch.zeros(1, dtype=torch.int64), torch.from_numpy(rows)[None]
        ridge = torch.full((1, rows.shape[1]), settings.regularisation, dtype=torch.float64)
        start = from_labels(exact, labels, of, int(labels.max()) + 1, ridge)
        floor = torch.tensor([-torch.inf], dtype=torch.float64)
        present = torch.ones(1, len(rows), dtype=torch.bool)
        fitted.append(race(exact, present, start, of, ridge, floor, settings.iterations))
    return _stacked(fitted)


def _stacked(fitted: Sequence[Mixtures]) -> Mixtures:
    """Return mixtures of different orders as one tensor each; what is filled up has weight 0."""
    f, k, t = len(fitted), max(one.weights.shape[1] for one in fitted), fitted[0].means.shape[2]
    eye = torch.eye(t, dtype=torch.float64).expand(f, k, t, t).clone()
    stacked = Mixtures(torch.zeros(f, k, dtype=torch.float64), torch.zeros(f, k, t, dtype=torch.float64), eye)
    for number, one in enumerate(fitted):
        order = one.weights.shape[1]
        stacked.weights[number, :order] = one.weights[0]
        stacked.means[number, :order] = one.means[0]
        stacked.whitenings[number, :order] = one.whitenings[0]
    return stacked


def whiten(rows: NDArray[np.float64], regularisation: float) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Return (n, t) rows in their principal components, each divided by √(variance + ``regularisation``).

    The likelihood of full covariances does not know in which directions the rows spread widely; distances do. After
    whitening, k-means does not overlook a cluster that lies apart in a direction of small variance. The likelihood
    loses the second value a row. What ``regularisation`` adds to every variance becomes the third, (t,), of the
    whitened ones; it is kept above the rounding errors of float64.
    """
    centred = rows - rows.mean(axis=0)
    variances, axes = np.linalg.eigh(centred.T @ centred / len(rows))
    total = np.maximum(variances, 0) + regularisation
    whitened: NDArray[np.float64] = centred @ axes / np.sqrt(total)
    return whitened, np.maximum(regularisation / total, 1e-10), float(np.log(total).sum() / 2)


@dataclass(eq=False)
class _Sweep:
    """The search for K in one class: its whitened rows in canonical order, and what has been found so far."""

    rows: NDArray[np.float64]
    order: NDArray[np.int64]
    ridge: NDArray[np.float64]
    log_scale: float
    starts: list[dict[int, NDArray[np.int64]]]
    assignments: NDArray[np.int64]
    criteria: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, features: NDArray[np.float32], settings: MixtureSettings, seed: int) -> "_Sweep":
        if features.ndim != 2 or 0 in features.shape:
            raise UndoorError(f"features of a class have shape {features.shape}; give (n, t) with one row or more")
        if not np.isfinite(features).all():
            raise UndoorError("features of a class are not finite; mend the model or remove these samples")
        # k-means draws its starts by row number: a canonical order makes them a function of the content. It is that of
        # the values, whose first bytes are here the highest: rows that another machine rounds otherwise stay in place.
        content = np.ascontiguousarray(features + 0.0)  # for which −0 is 0
        bytewise = content.astype(content.dtype.newbyteorder(">"))
        order = np.argsort(bytewise.view(np.dtype((np.void, bytewise[0].nbytes))).ravel(), kind="stable")
        rows = content[order].astype(np.float64)
        distinct = 1 + int((np.diff(rows, axis=0) != 0).any(axis=1).sum())
        dimensions = settings.dimensions_of(*rows.shape)
        if dimensions < rows.shape[1]:
            rows = reduce_features(rows, dimensions, seed)
        whitened, ridge, log_scale = whiten(rows, settings.regularisation)
        parts = min(max(PARTS, settings.max_components), distinct)
        starts = [
            hierarchy(whitened, small_clusters(whitened.astype(np.float32), parts, seed + restart), ridge)
            for restart in range(settings.restarts)
        ]
        return cls(whitened, order, ridge, log_scale, starts, np.zeros(len(rows), dtype=np.int64))

    def goes_on_to(self, k: int, settings: MixtureSettings) -> bool:
        if k == 1:
            return True
        if len(self.rows) == 1 or k > min(map(len, self.starts)):
            return False
        return len(self.criteria) == k - 1 and k - 2 - int(np.argmin(self.criteria)) < settings.patience

    def log_likelihood_to_beat(self, k: int) -> float:
        """Return the log-likelihood of the whitened rows from which on k components have the lowest criterion."""
        if not self.criteria:
            return -np.inf
        n, t = self.rows.shape
        return bic(-n * self.log_scale, k, n, t) - min(self.criteria)

    def take(self, log_likelihood: float, assignments: NDArray[np.int64], k: int) -> None:
        n, t = self.rows.shape
        self.criteria.append(bic(log_likelihood - n * self.log_scale, k, n, t))
        if self.criteria[-1] == min(self.criteria):
            self.assignments[self.order] = assignments


def _kind(sweep: _Sweep) -> tuple[int, bool]:
    """Return what sweeps must have in common to be fitted at once: dimensions and precision."""
    return sweep.rows.shape[1], bool(sweep.ridge.min() < SINGLE)


def _fit(sweeps: list[_Sweep], k: int, settings: MixtureSettings, device: str) -> None:
    """Fit mixtures of k components to the rows of all sweeps."""
    exact = _stack([sweep.rows for sweep in sweeps], 0.0, device)
    rows = exact if _kind(sweeps[0])[1] else exact.float()
    ridge = torch.tensor(np.stack([sweep.ridge for sweep in sweeps]), device=device)
    floor = torch.tensor([sweep.log_likelihood_to_beat(k) for sweep in sweeps], dtype=torch.float64, device=device)
    starts = settings.restarts if k > 1 else 1
    labels = _stack([start[k] for sweep in sweeps for start in sweep.starts[:starts]], -1, device)
    of = torch.arange(len(sweeps), device=device).repeat_interleave(starts)
    present = labels[::starts] >= 0
    mixtures = race(rows, present, from_labels(rows, labels, of, k, ridge), of, ridge, floor, settings.iterations)
    likelihoods, assignments = posterior(exact, mixtures)
    for sweep, here, each, found in zip(sweeps, present.cpu(), likelihoods.cpu(), assignments.cpu(), strict=True):
        sweep.take(float(each[here].sum()), found[here].numpy(), k)


def _stack(arrays: Sequence[NDArray[np.float64] | NDArray[np.int64]], filling: float, device: str) -> Tensor:
    """Return arrays of different lengths as one tensor; one alone is not copied."""
    tensors = [torch.from_numpy(array) for array in arrays]
    if len(tensors) == 1:
        return tensors[0][None].to(device)
    return pad_sequence(tensors, batch_first=True, padding_value=filling).to(device)

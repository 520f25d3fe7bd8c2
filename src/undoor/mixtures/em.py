"""EM for Gaussian mixtures with full covariances, many of them at once (Dempster, Laird, Rubin, JRSS B 1977).

There are C classes of n rows in t dimensions, (C, n, t), and F mixtures of K components. Several mixtures can start in
one class: ``class_of``, (F,) int64, is the class of each mixture. Classes of different sizes are padded to the same n,
and ``present``, (C, n) bool, is False where a row is padding.

Means, covariances and Cholesky factors are float64; densities are logarithms. The two large products of a step, n · t²
multiplications for each component, are computed in the precision of the rows.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import log, pi

import torch
from torch import Tensor

TOLERANCE = 1e-3
"""EM has converged when a step raises the mean log-likelihood by less than this many nats per row."""

STEPS_AHEAD = 4
"""A start is given up if this many more steps, each as large as its last step, would leave it behind the best start."""

BLOCK = {"cpu": 2**21, "cuda": 2**28}
"""How many differences between rows and means are computed at a time: so many fit into a CPU's cache, or fill a GPU."""


@dataclass(frozen=True, eq=False)
class Mixtures:
    """F mixtures of K components in t dimensions.

    Args:
        weights: (F, K) float64; the weights of a mixture add up to 1.
        means: (F, K, t) float64.
        whitenings: (F, K, t, t) float64, the matrices W with Wᵀ Σ W = 1. W is the transposed inverse of the Cholesky
            factor of Σ.

    """

    weights: Tensor
    means: Tensor
    whitenings: Tensor

    def take(self, index: Tensor) -> "Mixtures":
        """Return the mixtures at ``index``, (…) int64."""
        return Mixtures(self.weights[index], self.means[index], self.whitenings[index])

    def put(self, index: Tensor, others: "Mixtures") -> None:
        """Replace the mixtures at ``index`` in place."""
        self.weights[index], self.means[index] = others.weights, others.means
        self.whitenings[index] = others.whitenings


def log_densities(differences: Tensor, mixtures: Mixtures) -> Tensor:
    """Return log w + log N(x; μ, Σ), (F, K, n), given the differences x − μ, (F, K, n, t)."""
    f, k, n, t = differences.shape
    whitenings = mixtures.whitenings.to(differences.dtype).view(f * k, t, t)
    distances = torch.linalg.vector_norm(torch.bmm(differences.view(f * k, n, t), whitenings), dim=2).view(f, k, n)
    peaks = mixtures.weights.log() + mixtures.whitenings.diagonal(dim1=2, dim2=3).log().sum(2) - t / 2 * log(2 * pi)
    logs: Tensor = distances.square_().mul_(-0.5).add_(peaks.to(differences.dtype)[:, :, None])
    return logs


def joint_log_densities(rows: Tensor, mixtures: Mixtures) -> Tensor:
    """Return log w + log N(x; μ, Σ), (C, K, n), of the rows of each class, (C, n, t), under that class's mixture."""
    return torch.cat(
        [log_densities(_differences(rows[:, block], mixtures), mixtures) for block in _blocks(rows, mixtures)], dim=2
    )


def posterior(rows: Tensor, mixtures: Mixtures) -> tuple[Tensor, Tensor]:
    """Return the log-likelihood of every row, (C, n) float64, and its most probable component, (C, n) int64.

    The rows of each class, (C, n, t), are taken under that class's mixture.
    """
    logs = joint_log_densities(rows, mixtures)
    return logs.logsumexp(1).double(), logs.argmax(1)


def from_labels(rows: Tensor, labels: Tensor, class_of: Tensor, k: int, ridge: Tensor) -> Mixtures:
    """Return the mixtures whose components are the k parts of the given partitions.

    Args:
        rows: (C, n, t).
        labels: (F, n) int64 in 0 … k − 1, and −1 for padding.
        class_of: (F,) int64.
        k: the number of components.
        ridge: (C, t), added to the diagonals of the covariances.

    """
    parts = (labels[:, None] == torch.arange(k, device=rows.device)[:, None]).to(rows.dtype)
    means = (parts @ _by_mixture(rows, class_of)).double() / parts.sum(2, keepdim=True)
    guess = Mixtures(torch.ones_like(means[..., 0]), means, torch.empty(0))
    x, added = _by_mixture(rows, class_of), _by_mixture(ridge, class_of)
    return _maximise(x, guess, added, lambda _, block: parts[:, :, block])


def step(rows: Tensor, present: Tensor, mixtures: Mixtures, ridge: Tensor) -> tuple[Tensor, Mixtures]:
    """Return the log-likelihoods (F,) float64 of the mixtures, and the mixtures after one step of EM.

    ``rows`` (F, n, t), ``present`` (F, n) and ``ridge`` (F, t) belong to the mixtures, not to the classes. Their first
    dimension is 1 if all mixtures share them.
    """
    total = torch.zeros(len(mixtures.weights), dtype=torch.float64, device=rows.device)

    def responsibilities(differences: Tensor, block: slice) -> Tensor:
        logs = log_densities(differences, mixtures)
        likelihoods = logs.logsumexp(1, keepdim=True)
        total.add_((likelihoods[:, 0] * present[:, block]).double().sum(1))
        return logs.sub_(likelihoods).exp_().mul_(present[:, None, block])

    better = _maximise(rows, mixtures, ridge, responsibilities)  # which also adds up the total
    return total, better


def fit_from_starts(
    rows: Tensor, present: Tensor, starts: Mixtures, class_of: Tensor, ridge: Tensor, floor: Tensor, iterations: int
) -> Mixtures:
    """Run EM from several starts in every class and return the likeliest mixture of each class.

    A start ends when it has converged. It is given up early when ``STEPS_AHEAD`` more steps, each as large as its last
    one, would lift it neither to the likeliest start of its class nor to ``floor``.

    Args:
        rows: (C, n, t).
        present: (C, n) bool.
        starts: F mixtures; they are changed in place.
        class_of: (F,) int64; every class occurs.
        ridge: (C, t), added to the diagonals of the covariances.
        floor: (C,) float64, the log-likelihood below which a mixture is useless.
        iterations: the largest number of steps.

    """
    sizes = present.sum(1)[class_of]
    reached = torch.full_like(floor[class_of], -torch.inf)
    running = torch.arange(len(class_of), device=rows.device)
    for _ in range(iterations):
        classes = class_of[running]
        x, real, added = (_by_mixture(values, classes) for values in (rows, present, ridge))
        likelihoods, better = step(x, real, starts.take(running), added)
        gains = likelihoods - reached[running]
        reached[running] = likelihoods
        starts.put(running, better)
        best = floor.scatter_reduce(0, class_of, reached, "amax")
        promising = likelihoods + STEPS_AHEAD * gains >= best[classes]
        running = running[promising & (gains >= TOLERANCE * sizes[running])]
        if len(running) == 0:
            break
    belongs = torch.arange(len(rows), device=rows.device)[:, None] == class_of
    return starts.take(torch.where(belongs, reached, -torch.inf).argmax(1))


def _by_mixture(values: Tensor, class_of: Tensor) -> Tensor:
    """Return for every mixture the values of its class. If there is only one class, nothing is copied."""
    return values if len(values) == 1 else values[class_of]


def _blocks(rows: Tensor, mixtures: Mixtures) -> Iterator[slice]:
    """Return slices of the rows, each with about ``BLOCK`` differences from all means."""
    size = max(64, BLOCK[rows.device.type] // mixtures.means.numel())
    return (slice(begin, begin + size) for begin in range(0, rows.shape[1], size))


def _differences(rows: Tensor, mixtures: Mixtures) -> Tensor:
    return rows[:, None] - mixtures.means[:, :, None].to(rows.dtype)


def _maximise(
    rows: Tensor, mixtures: Mixtures, ridge: Tensor, responsibilities: Callable[[Tensor, slice], Tensor]
) -> Mixtures:
    """Return the likeliest mixtures, given the responsibilities of the components for the rows of a block.

    Sums of squares are taken around the former means, which lie close to the new means. Around the origin, a tight
    cluster far away from it would lose its digits.
    """
    f, k, t = mixtures.means.shape
    count, first = torch.zeros_like(mixtures.weights), torch.zeros_like(mixtures.means)
    second = mixtures.means.new_zeros(f * k, t, t)
    for block in _blocks(rows, mixtures):
        differences = _differences(rows[:, block], mixtures)
        shares = responsibilities(differences, block)
        count += shares.double().sum(2)
        first += (shares[:, :, None] @ differences)[:, :, 0].double()
        weighted = (differences * shares[..., None]).view(f * k, -1, t)
        second += torch.bmm(weighted.mT, differences.view(f * k, -1, t)).double()
    count += torch.finfo(torch.float64).tiny ** 0.5
    shift = first / count[..., None]
    covariances = second.view(f, k, t, t) / count[..., None, None] - shift[..., None] * shift[..., None, :]
    factors = torch.linalg.cholesky(covariances + torch.diag_embed(ridge)[:, None])
    unit = torch.eye(t, dtype=factors.dtype, device=factors.device).expand_as(factors)
    whitenings = torch.linalg.solve_triangular(factors, unit, upper=False).mT.contiguous()
    return Mixtures(count / count.sum(1, keepdim=True), mixtures.means + shift, whitenings)

"""EM for Gaussian mixtures with full covariances, many of them at once (Dempster, Laird, Rubin, JRSS B 1977).

Statistics, covariances and Cholesky factors are float64, densities are logarithms throughout. The two large products
of a step, n · t² multiplications a component, are computed in the precision of the rows.

F mixtures (starts of different classes) of K components each are fitted to the rows of C classes, (C, n, t). ``of``,
(F,) int64, says to which class a mixture belongs. Where classes differ in size, the tensor is filled up and
``present``, (C, n), is False for what fills it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import log, pi

import torch
from torch import Tensor

TOLERANCE = 1e-3
"""Nats a row: a gain of the mean log-likelihood below which EM has converged."""

PROMISE = 4
"""Steps of the size of its last one with which a start may still get ahead of the others; else it is given up."""

BLOCK = {"cpu": 2**21, "cuda": 2**28}
"""Differences of rows and means that are held at one time: what stays in a processor's cache, what fills a GPU."""


@dataclass(frozen=True, eq=False)
class Mixtures:
    """F mixtures of K components in t dimensions.

    Args:
        weights: (F, K) float64, of sum 1.
        means: (F, K, t) float64.
        whitenings: (F, K, t, t) float64, W with Wᵀ Σ W = 1: the inverses of the Cholesky factors, transposed.

    """

    weights: Tensor
    means: Tensor
    whitenings: Tensor

    def take(self, which: Tensor) -> "Mixtures":
        """Return the mixtures at ``which``, (…) int64."""
        return Mixtures(self.weights[which], self.means[which], self.whitenings[which])

    def put(self, which: Tensor, others: "Mixtures") -> None:
        """Replace the mixtures at ``which``."""
        self.weights[which], self.means[which] = others.weights, others.means
        self.whitenings[which] = others.whitenings


def log_densities(apart: Tensor, mixtures: Mixtures) -> Tensor:
    """Return log w + log N(x; μ, Σ), (F, K, n), of the differences x − μ, (F, K, n, t)."""
    f, k, n, t = apart.shape
    whitenings = mixtures.whitenings.to(apart.dtype).view(f * k, t, t)
    distances = torch.linalg.vector_norm(torch.bmm(apart.view(f * k, n, t), whitenings), dim=2).view(f, k, n)
    heights = mixtures.weights.log() + mixtures.whitenings.diagonal(dim1=2, dim2=3).log().sum(2) - t / 2 * log(2 * pi)
    logs: Tensor = distances.square_().mul_(-0.5).add_(heights.to(apart.dtype)[:, :, None])
    return logs


def joint_log_densities(rows: Tensor, mixtures: Mixtures) -> Tensor:
    """Return log w + log N(x; μ, Σ), (C, K, n), of rows, (C, n, t), under one mixture each."""
    return torch.cat(
        [log_densities(_apart(rows[:, block], mixtures), mixtures) for block in _blocks(rows, mixtures)], dim=2
    )


def posterior(rows: Tensor, mixtures: Mixtures) -> tuple[Tensor, Tensor]:
    """Return the log-likelihoods of rows, (C, n) float64, under one mixture each, and their likeliest components."""
    logs = joint_log_densities(rows, mixtures)
    return logs.logsumexp(1).double(), logs.argmax(1)


def from_labels(rows: Tensor, labels: Tensor, of: Tensor, k: int, ridge: Tensor) -> Mixtures:
    """Return the mixtures whose components are the k parts of given partitions.

    Args:
        rows: (C, n, t).
        labels: (F, n) int64 in 0 … k − 1, −1 for rows that only fill up the tensor.
        of: (F,).
        k: the number of components.
        ridge: (C, t), added to the diagonals of the covariances.

    """
    parts = (labels[:, None] == torch.arange(k, device=rows.device)[:, None]).to(rows.dtype)
    means = (parts @ _of(rows, of)).double() / parts.sum(2, keepdim=True)
    guess = Mixtures(torch.ones_like(means[..., 0]), means, torch.empty(0))
    return _maximise(_of(rows, of), guess, _of(ridge, of), lambda _, block: parts[:, :, block])


def step(rows: Tensor, present: Tensor, mixtures: Mixtures, ridge: Tensor) -> tuple[Tensor, Mixtures]:
    """Return the log-likelihoods (F,) float64 of the mixtures, and the mixtures after one step of EM.

    The first dimension of ``rows`` (F, n, t), ``present`` (F, n) and ``ridge`` (F, t) is 1 if all share them.
    """
    total = torch.zeros(len(mixtures.weights), dtype=torch.float64, device=rows.device)

    def respond(apart: Tensor, block: slice) -> Tensor:
        logs = log_densities(apart, mixtures)
        likelihoods = logs.logsumexp(1, keepdim=True)
        total.add_((likelihoods[:, 0] * present[:, block]).double().sum(1))
        return logs.sub_(likelihoods).exp_().mul_(present[:, None, block])

    better = _maximise(rows, mixtures, ridge, respond)
    return total, better


def race(
    rows: Tensor, present: Tensor, starts: Mixtures, of: Tensor, ridge: Tensor, floor: Tensor, iterations: int
) -> Mixtures:
    """Run EM from several starts a class and return the likeliest mixture of each class.

    A start ends when it has converged. It is given up when ``PROMISE`` more steps of the size of its last one would
    not take it to the likeliest start of its class, or to the floor: what can still win is followed to the end.

    Args:
        rows: (C, n, t).
        present: (C, n).
        starts: F of them.
        of: (F,), every class occurs.
        ridge: (C, t), added to the diagonals of the covariances.
        floor: (C,) float64, the log-likelihood from which on a mixture is of use.
        iterations: at most.

    """
    sizes = present.sum(1)[of]
    reached = torch.full_like(floor[of], -torch.inf)
    running = torch.arange(len(of), device=rows.device)
    for _ in range(iterations):
        mine = of[running]
        likelihoods, better = step(_of(rows, mine), _of(present, mine), starts.take(running), _of(ridge, mine))
        gains = likelihoods - reached[running]
        reached[running] = likelihoods
        starts.put(running, better)
        best = floor.scatter_reduce(0, of, reached, "amax")
        promising = likelihoods + PROMISE * gains >= best[mine]
        running = running[promising & (gains >= TOLERANCE * sizes[running])]
        if len(running) == 0:
            break
    of_class = torch.arange(len(rows), device=rows.device)[:, None] == of
    return starts.take(torch.where(of_class, reached, -torch.inf).argmax(1))


def _of(values: Tensor, of: Tensor) -> Tensor:
    """Return the values of the class of every mixture; of one class only, they are not copied."""
    return values if len(values) == 1 else values[of]


def _blocks(rows: Tensor, mixtures: Mixtures) -> Iterator[slice]:
    size = max(64, BLOCK[rows.device.type] // mixtures.means.numel())
    return (slice(begin, begin + size) for begin in range(0, rows.shape[1], size))


def _apart(rows: Tensor, mixtures: Mixtures) -> Tensor:
    return rows[:, None] - mixtures.means[:, :, None].to(rows.dtype)


def _maximise(rows: Tensor, mixtures: Mixtures, ridge: Tensor, respond: Callable[[Tensor, slice], Tensor]) -> Mixtures:
    """Return the likeliest mixtures under given responsibilities.

    Sums of squares are taken around the former means, which lie close to the new ones: around the origin, a tight
    cluster far away from it would lose its digits.
    """
    f, k, t = mixtures.means.shape
    count, first = torch.zeros_like(mixtures.weights), torch.zeros_like(mixtures.means)
    second = mixtures.means.new_zeros(f * k, t, t)
    for block in _blocks(rows, mixtures):
        apart = _apart(rows[:, block], mixtures)
        shares = respond(apart, block)
        count += shares.double().sum(2)
        first += (shares[:, :, None] @ apart)[:, :, 0].double()
        second += torch.bmm((apart * shares[..., None]).view(f * k, -1, t).mT, apart.view(f * k, -1, t)).double()
    count += torch.finfo(torch.float64).tiny ** 0.5
    shift = first / count[..., None]
    covariances = second.view(f, k, t, t) / count[..., None, None] - shift[..., None] * shift[..., None, :]
    factors = torch.linalg.cholesky(covariances + torch.diag_embed(ridge)[:, None])
    unit = torch.eye(t, dtype=factors.dtype, device=factors.device).expand_as(factors)
    whitenings = torch.linalg.solve_triangular(factors, unit, upper=False).mT.contiguous()
    return Mixtures(count / count.sum(1, keepdim=True), mixtures.means + shift, whitenings)

"""The smallest perturbations that send the images of one class to another (arXiv 1908.10498 and 2010.07489).

For an ordered pair (s, t) a pattern v is sought such that f(clip(x + v)) = t for a share π of the images x of class s,
with the smallest norm ‖v‖₂. A trigger is such a pattern: a backdoor makes the norm small for its pairs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name the field uses
from numpy.typing import NDArray
from torch import Tensor

from undoor.errors import UndoorError

Forward = Callable[[Tensor], Tensor]
Pair = tuple[int, int]
Images = Mapping[int, Tensor]
OnPair = Callable[[int, int], None]

TINY = torch.finfo(torch.float32).tiny
"""Keeps divisions by a norm of zero finite."""


class Perturbations(NamedTuple):
    """The result of a search, with one row a pair.

    Args:
        patterns: (P, C, H, W) float32, v. Where no pattern reached the share π, it is the last that was tried.
        norms: (P,), ‖v‖₂ of images in [0, 1].
        shares: (P,), the share of the images that v sends to the target.
        reached: (P,) bool, whether that share is at least π. If not, the smallest norm is only known to be larger than
            the norms that were tried.
        steps: (P,), how often the images of the pair went through the network.

    """

    patterns: NDArray[np.float32]
    norms: NDArray[np.float64]
    shares: NDArray[np.float64]
    reached: NDArray[np.bool_]
    steps: NDArray[np.int64]


class _Trials:
    """The state of a search for P pairs: the pattern on trial of each, the shortest one that reached π, and the pace.

    ``rows`` are the pairs that the search still works on.
    """

    def __init__(self, pairs: Sequence[Pair], image: Tensor, pace: float) -> None:
        self.pairs = pairs
        self.rows = torch.arange(len(pairs), device=image.device)
        self.v = torch.zeros((len(pairs), *image.shape), device=image.device)
        self.best = torch.zeros_like(self.v)
        self.norms = torch.full((len(pairs),), torch.inf, device=image.device)
        self.shares = torch.zeros_like(self.norms)
        self.pace = torch.full_like(self.norms, pace)
        self.hit = torch.zeros_like(self.norms, dtype=torch.bool)
        self.steps = torch.zeros_like(self.norms, dtype=torch.int64)

    def rounds(self, most: int, on_pair: OnPair | None) -> Iterator[tuple[int, list[Pair]]]:
        """Yield the number of each round and its pairs, until none is left; report the progress after each.

        A pair under way counts in part, by the rounds that it may still take.
        """
        for number in range(most):
            yield number, [self.pairs[row] for row in self.rows.tolist()]
            if on_pair is not None:
                remaining = len(self.rows) * (1 - (number + 1) / most)
                on_pair(round(len(self.pairs) - remaining), len(self.pairs))
            if not len(self.rows):
                return

    def record(self, shares: Tensor, norms: Tensor, hit: Tensor) -> Tensor:
        """Record what a round has shown of the pairs ``rows``; return which of them have reached π so far."""
        rows = self.rows
        turned = self.norms[rows].isfinite() & (hit != self.hit[rows])
        self.pace[rows[turned]] /= 2
        self.hit[rows] = hit
        self.steps[rows] += 1
        shorter = hit & (norms < self.norms[rows])
        kept = rows[shorter]
        self.best[kept], self.norms[kept], self.shares[kept] = self.v[kept], norms[shorter], shares[shorter]
        reached = self.norms[rows].isfinite()
        failed = rows[~reached]
        self.best[failed], self.shares[failed] = self.v[failed], shares[~reached]
        return reached

    def next_norms(self, norms: Tensor) -> Tensor:
        """Return smaller norms for pairs whose last pattern reached π, and larger ones for the others."""
        return norms * torch.exp(torch.where(self.hit[self.rows], -1, 1) * self.pace[self.rows])

    def result(self) -> Perturbations:
        reached = self.norms.isfinite()
        norms = torch.where(reached, self.norms, lengths(self.best)).double()
        parts = (self.best, norms, self.shares.double(), reached, self.steps)
        return Perturbations(*(part.cpu().numpy() for part in parts))


@dataclass(frozen=True)
class Descent:
    """Descend the mean cross-entropy to t from v = 0 until the share π is reached, then narrow the norm down.

    The paper's step size has to be fitted to the network. Here the length of a step is set and only its direction is
    the gradient's, so that neither the scale of the logits nor that of the gradient matters. The norm at which v first
    reaches π depends on the step size. Therefore ‖v‖ then shrinks while π is reached and grows while it is not, at a
    pace that halves whenever the direction changes, and v turns along the gradient at that norm. The shortest v that
    reached π is kept.

    Args:
        steps: the most steps of all; a pair that has not reached π by then never does.
        first: the length of the first step, as a share of √(CHW), the norm of a change of all pixels from 0 to 1.
        growth: the factor by which steps grow while π has not been reached.
        pace: by how much log ‖v‖ changes in a step, at first, once π has been reached.
        last_pace: a pair is done when its pace is smaller.
        turn: the length of a step along the gradient at a set norm, as a share of the norm.

    """

    steps: int = 40
    first: float = 0.003
    growth: float = 1.05
    pace: float = 0.2
    last_pace: float = 0.02
    turn: float = 0.3

    def __call__(
        self,
        forward: Forward,
        images: Images,
        pairs: Sequence[Pair],
        *,
        share: float,
        batch_size: int,
        seed: int,
        leaving: Images | None = None,
        on_pair: OnPair | None = None,
    ) -> Perturbations:
        """Return the perturbations of the ``pairs``. All pairs take their steps together, until each is done.

        Args:
            forward: returns the logits of a batch of images.
            images: the (n, C, H, W) images of each class s, in [0, 1].
            pairs: (s, t), source and target class.
            share: π.
            batch_size: the most images in a forward pass, unless one pair alone has more.
            seed: not used; this search draws nothing.
            leaving: for each target t, images labelled t, some of which may be poisoned. If given, v is also to send
                these away from t when it is subtracted, as in arXiv 2010.07489: the mean of −log(1 − p_t(x − v)) over
                them is added to the loss.
            on_pair: called with about how many pairs are done, and how many there are.

        Raises:
            UndoorError: if the gradients vanish or are not finite.

        """
        del seed
        image = images[pairs[0][0]][0]
        trials = _Trials(pairs, image, self.pace)
        length = self.first * image.numel() ** 0.5
        for step, active in trials.rounds(self.steps, on_pair):
            v = trials.v[trials.rows]
            shares, gradients = _shares_and_gradients(forward, images, active, v, batch_size)
            if leaving is not None:
                gradients = gradients + _leaving_gradients(forward, leaving, active, v)
            norms, slopes, hit = lengths(v), lengths(gradients), shares >= share
            _refuse_flat(slopes[~hit], step)
            reached = trials.record(shares, norms, hit)
            unit = gradients / _wide(slopes.clamp_min(TINY))
            free = v - length * self.growth**step * unit
            turned = v - _wide(self.turn * norms) * unit
            turned *= _wide(trials.next_norms(norms) / lengths(turned).clamp_min(TINY))
            trials.v[trials.rows] = torch.where(_wide(reached), turned, free)
            trials.rows = trials.rows[~reached | (trials.pace[trials.rows] >= self.last_pace)]
        return trials.result()


@dataclass(frozen=True)
class RandomDirection:
    """A control: how far a pattern drawn at random must be scaled to reach the share π. It uses no gradient.

    Args:
        steps: the most steps.
        first: the norm that is tried first, as a share of √(CHW); it doubles until π is reached.
        last_pace: a pair is done when log ‖v‖ changes by less than this in a step.

    """

    steps: int = 20
    first: float = 0.003
    last_pace: float = 0.02

    def __call__(
        self,
        forward: Forward,
        images: Images,
        pairs: Sequence[Pair],
        *,
        share: float,
        batch_size: int,
        seed: int,
        on_pair: OnPair | None = None,
    ) -> Perturbations:
        """Return the scaled patterns, one for every pair; the arguments are those of ``Descent``."""
        image = images[pairs[0][0]][0]
        trials = _Trials(pairs, image, float(np.log(2)))
        largest = image.numel() ** 0.5
        drawn = np.random.default_rng(seed).standard_normal((len(pairs), *image.shape))
        unit = torch.tensor(drawn, dtype=torch.float32, device=image.device)
        unit /= _wide(lengths(unit))
        norms = torch.full((len(pairs),), self.first * largest, device=image.device)
        for _, active in trials.rounds(self.steps, on_pair):
            rows = trials.rows
            trials.v[rows] = _wide(norms[rows]) * unit[rows]
            shares, _ = _shares_and_gradients(forward, images, active, trials.v[rows], batch_size, differentiate=False)
            reached = trials.record(shares, norms[rows], shares >= share)
            beyond = ~reached & (norms[rows] >= largest)
            norms[rows] = trials.next_norms(norms[rows])
            trials.rows = rows[~beyond & (trials.pace[rows] >= self.last_pace)]
        return trials.result()


def lengths(patterns: Tensor) -> Tensor:
    """Return ‖v‖₂, (P,), of (P, C, H, W) patterns."""
    norms: Tensor = torch.linalg.vector_norm(patterns.flatten(1), dim=1)
    return norms


def clipped(images: Tensor) -> Tensor:
    """Return images clipped to [0, 1] such that a pixel at 0 or 1 has a gradient, as a pixel between them has.

    ``Tensor.clamp`` has that gradient up to PyTorch 2.13 and not from 2.14 on: a black pixel would then stay black.
    """
    return torch.where((images >= 0) & (images <= 1), images, images.detach().clamp(0, 1))


def _wide(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _shares_and_gradients(
    forward: Forward,
    images: Images,
    pairs: Sequence[Pair],
    v: Tensor,
    batch_size: int,
    *,
    differentiate: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return, for every pair, the share of its images that v sends to t, and the gradient of their mean loss in v."""
    shares: list[Tensor] = []
    gradients: list[Tensor] = []
    for part in _parts([len(images[s]) for s, _ in pairs], batch_size):
        counts = [len(images[s]) for s, _ in pairs[part]]
        patterns = v[part].detach().requires_grad_(differentiate)
        moved = torch.cat([images[s] + pattern for (s, _), pattern in zip(pairs[part], patterns, strict=True)])
        logits = forward(clipped(moved).contiguous(memory_format=torch.channels_last))
        targets = torch.tensor([t for _, t in pairs[part]], device=v.device)
        targets = targets.repeat_interleave(torch.tensor(counts, device=v.device))
        hits = torch.split((logits.detach().argmax(1) == targets).float(), counts)
        shares += [hits_of_pair.mean() for hits_of_pair in hits]
        if differentiate:
            losses = torch.split(F.cross_entropy(logits, targets, reduction="none"), counts)
            gradients.append(_gradient(torch.stack([loss.mean() for loss in losses]).sum(), patterns))
    return torch.stack(shares), torch.cat(gradients) if differentiate else torch.zeros_like(v)


def _leaving_gradients(forward: Forward, leaving: Images, pairs: Sequence[Pair], v: Tensor) -> Tensor:
    """Return, for every pair, the gradient in v of the mean of −log(1 − p_t(x − v)) over the images ``leaving[t]``."""
    gradients = []
    for pattern, (_, t) in zip(v.detach(), pairs, strict=True):
        pattern.requires_grad_(True)
        log_p = forward(clipped(leaving[t] - pattern)).log_softmax(1)
        others = torch.cat([log_p[:, :t], log_p[:, t + 1 :]], dim=1)
        gradients.append(_gradient(-others.logsumexp(1).mean(), pattern))
    return torch.stack(gradients)


def _gradient(loss: Tensor, patterns: Tensor) -> Tensor:
    if not loss.requires_grad:
        raise UndoorError(
            "no gradient flows from the model's logits to its images; give a model that is differentiable"
        )
    (gradient,) = torch.autograd.grad(loss, patterns)
    return gradient


def _parts(counts: Sequence[int], batch_size: int) -> Iterator[slice]:
    """Yield slices of pairs that together have at most ``batch_size`` images, or one pair each."""
    start, images = 0, 0
    for stop, count in enumerate(counts):
        if stop > start and images + count > batch_size:
            yield slice(start, stop)
            start, images = stop, 0
        images += count
    yield slice(start, len(counts))


def _refuse_flat(slopes: Tensor, step: int) -> None:
    """Raise if a gradient is not finite, or vanishes in the first step; ``slopes`` are the gradients' norms."""
    if not bool(slopes.isfinite().all()):
        raise UndoorError(
            "the model's gradients are not finite on these images; mend its weights or give another model"
        )
    if step == 0 and bool((slopes == 0).any()):
        raise UndoorError(
            f"the model's gradients vanish for {int((slopes == 0).sum())} of {len(slopes)} class pairs, "
            "so that no perturbation can be found; give a model whose logits depend smoothly on its images"
        )

"""The smallest perturbations that send the images of one class to another (arXiv 1908.10498 and 2010.07489).

For an ordered pair (s, t) a pattern v is sought with f(clip(x + v)) = t for a share π of the images x of class s, and
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


class Perturbations(NamedTuple):
    """One row a pair.

    Args:
        patterns: (P, C, H, W) float32, v. Where none reached the share it is the last that was tried.
        norms: (P,) ‖v‖₂, of images in [0, 1].
        shares: (P,) of the images that v sends to the target.
        reached: (P,) bool: whether that is the share that was asked for; else the smallest norm is unknown, and
            ``norms`` tells how far was sought.
        steps: (P,) how often the images of the pair went through the network.

    """

    patterns: NDArray[np.float32]
    norms: NDArray[np.float64]
    shares: NDArray[np.float64]
    reached: NDArray[np.bool_]
    steps: NDArray[np.int64]


class _State:
    """What is known of P pairs: the pattern under trial, the shortest that reached the share, and the pace."""

    def __init__(self, pairs: int, image: Tensor, pace: float) -> None:
        self.v = torch.zeros((pairs, *image.shape), device=image.device)
        self.best = torch.zeros_like(self.v)
        self.norms = torch.full((pairs,), torch.inf, device=image.device)
        self.shares = torch.zeros_like(self.norms)
        self.pace = torch.full_like(self.norms, pace)
        self.hit = torch.zeros_like(self.norms, dtype=torch.bool)
        self.steps = torch.zeros_like(self.norms, dtype=torch.int64)

    def note(self, rows: Tensor, shares: Tensor, norms: Tensor, hit: Tensor) -> Tensor:
        """Keep what a step has shown of the pairs ``rows``; return which of them have reached the share by now."""
        turned = self.norms[rows].isfinite() & (hit != self.hit[rows])
        self.pace[rows[turned]] /= 2
        self.hit[rows] = hit
        self.steps[rows] += 1
        shorter = hit & (norms < self.norms[rows])
        kept = rows[shorter]
        self.best[kept], self.norms[kept], self.shares[kept] = self.v[kept], norms[shorter], shares[shorter]
        reached = self.norms[rows].isfinite()
        last = rows[~reached]
        self.best[last], self.shares[last] = self.v[last], shares[~reached]
        return reached

    def result(self) -> Perturbations:
        reached = self.norms.isfinite()
        norms = torch.where(reached, self.norms, lengths(self.best)).double()
        whole = (self.best, norms, self.shares.double(), reached, self.steps)
        return Perturbations(*(part.cpu().numpy() for part in whole))


@dataclass(frozen=True)
class Descent:
    """Descend the mean cross-entropy to t from v = 0 until the share π is reached, then narrow the norm down.

    The paper's step has to be fitted to the network. Here its length is set and its direction the gradient's, so that
    neither the scale of the logits nor that of the gradient matters. How long v is when it first reaches π depends on
    the steps. So ‖v‖ then shrinks while π is reached and grows while it is not, by a pace that halves at every turn,
    and v turns along the gradient at that norm. The shortest v that reached π is kept.

    Args:
        steps: at most, in all; a pair that has not reached π by then never does.
        first: length of the first step as a share of √(CHW), the norm of a change of all pixels from 0 to 1.
        growth: of the steps while π has not been reached.
        pace: at first, of log ‖v‖.
        last_pace: below it a pair is done.
        turn: length of a step at a set norm, as a share of the norm.

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
        share: float,
        batch_size: int,
        seed: int,
        leaving: Images | None = None,
        on_pair: OnPair | None = None,
    ) -> Perturbations:
        """Return the perturbations of the ``pairs``; ``images[s]`` are the (n, C, H, W) images of class s.

        All pairs take their steps together, and those that are done drop out. With ``leaving[t]``, images of class t,
        some of which may be poisoned, v is also to send these away when it is subtracted, as in arXiv 2010.07489:
        the mean of −log(1 − p_t(x − v)) over them is added to the loss. ``on_pair`` is told about how many of how many
        pairs are done: one under way counts in part, by the steps that it may still take.

        Raises:
            UndoorError: if the gradients vanish or are not finite.

        """
        del seed  # nothing is drawn
        image = images[pairs[0][0]][0]
        state = _State(len(pairs), image, self.pace)
        length = self.first * image.numel() ** 0.5
        rows = torch.arange(len(pairs), device=image.device)
        for step in range(self.steps):
            v = state.v[rows]
            todo = [pairs[row] for row in rows.tolist()]
            shares, gradients = _look(forward, images, todo, v, batch_size)
            if leaving is not None:
                gradients = gradients + _look_back(forward, leaving, todo, v)
            norms, slopes, hit = lengths(v), lengths(gradients), shares >= share
            _refuse_flat(slopes[~hit], step)
            reached = state.note(rows, shares, norms, hit)
            unit = gradients / _wide(slopes.clamp_min(TINY))
            free = v - length * self.growth**step * unit
            turned = v - _wide(self.turn * norms) * unit
            norms = norms * torch.exp(torch.where(hit, -1, 1) * state.pace[rows])
            turned *= _wide(norms / lengths(turned).clamp_min(TINY))
            state.v[rows] = torch.where(_wide(reached), turned, free)
            rows = rows[~reached | (state.pace[rows] >= self.last_pace)]
            _tell(on_pair, len(pairs), len(rows), (step + 1) / self.steps)
            if not len(rows):
                break
        return state.result()


@dataclass(frozen=True)
class RandomDirection:
    """A control: how far a pattern drawn at random must be scaled to reach the share π. It looks at no gradient.

    Args:
        steps: at most.
        first: the norm that is tried first, as a share of √(CHW); it doubles until π is reached.
        last_pace: the factor between the norms that reach π and do not is narrowed down to about its exponential.

    """

    steps: int = 20
    first: float = 0.003
    last_pace: float = 0.02

    def __call__(
        self,
        forward: Forward,
        images: Images,
        pairs: Sequence[Pair],
        share: float,
        batch_size: int,
        seed: int,
        on_pair: OnPair | None = None,
    ) -> Perturbations:
        """Return the scaled patterns, one for every pair, as ``Descent`` does."""
        image = images[pairs[0][0]][0]
        state = _State(len(pairs), image, float(np.log(2)))
        largest = image.numel() ** 0.5
        drawn = np.random.default_rng(seed).standard_normal((len(pairs), *image.shape))
        unit = torch.tensor(drawn, dtype=torch.float32, device=image.device)
        unit /= _wide(lengths(unit))
        norms = torch.full((len(pairs),), self.first * largest, device=image.device)
        rows = torch.arange(len(pairs), device=image.device)
        for step in range(self.steps):
            state.v[rows] = _wide(norms[rows]) * unit[rows]
            todo = [pairs[row] for row in rows.tolist()]
            shares, _ = _look(forward, images, todo, state.v[rows], batch_size, slopes=False)
            hit = shares >= share
            reached = state.note(rows, shares, norms[rows], hit)
            beyond = ~reached & (norms[rows] >= largest)
            norms[rows] *= torch.exp(torch.where(hit, -1, 1) * state.pace[rows])
            rows = rows[~beyond & (state.pace[rows] >= self.last_pace)]
            _tell(on_pair, len(pairs), len(rows), (step + 1) / self.steps)
            if not len(rows):
                break
        return state.result()


def lengths(patterns: Tensor) -> Tensor:
    """Return ‖v‖₂, (P,), of (P, C, H, W) patterns."""
    norms: Tensor = torch.linalg.vector_norm(patterns.flatten(1), dim=1)
    return norms


def clipped(images: Tensor) -> Tensor:
    """Return images clipped to [0, 1]; a pixel on a bound has the gradient of one inside.

    ``Tensor.clamp`` has it up to PyTorch 2.13 and none from 2.14 on: a black pixel would stay black for ever.
    """
    return torch.where((images >= 0) & (images <= 1), images, images.detach().clamp(0, 1))


def _tell(on_pair: OnPair | None, pairs: int, left: int, progress: float) -> None:
    """Tell how many pairs are done; those under way count in part, by the steps that they may still take."""
    if on_pair is not None:
        on_pair(round(pairs - left * (1 - progress)), pairs)


def _wide(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _look(
    forward: Forward,
    images: Images,
    pairs: Sequence[Pair],
    v: Tensor,
    batch_size: int,
    *,
    slopes: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return, for every pair, the share of its images that v sends to t, and the gradient of their mean loss in v."""
    shares: list[Tensor] = []
    gradients: list[Tensor] = []
    for part in _parts([len(images[s]) for s, _ in pairs], batch_size):
        counts = [len(images[s]) for s, _ in pairs[part]]
        patterns = v[part].detach().requires_grad_(slopes)
        moved = torch.cat([images[s] + pattern for (s, _), pattern in zip(pairs[part], patterns, strict=True)])
        logits = forward(clipped(moved).contiguous(memory_format=torch.channels_last))
        targets = torch.tensor([t for _, t in pairs[part]], device=v.device)
        to = targets.repeat_interleave(torch.tensor(counts, device=v.device))
        hits = torch.split((logits.detach().argmax(1) == to).float(), counts)
        shares += [one.mean() for one in hits]
        if slopes:
            losses = torch.split(F.cross_entropy(logits, to, reduction="none"), counts)
            gradients.append(_gradient(torch.stack([loss.mean() for loss in losses]).sum(), patterns))
    return torch.stack(shares), torch.cat(gradients) if slopes else torch.zeros_like(v)


def _look_back(forward: Forward, leaving: Images, pairs: Sequence[Pair], v: Tensor) -> Tensor:
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
    start, sum_ = 0, 0
    for stop, count in enumerate(counts):
        if stop > start and sum_ + count > batch_size:
            yield slice(start, stop)
            start, sum_ = stop, 0
        sum_ += count
    yield slice(start, len(counts))


def _refuse_flat(slopes: Tensor, step: int) -> None:
    if not bool(slopes.isfinite().all()):
        raise UndoorError(
            "the model's gradients are not finite on these images; mend its weights or give another model"
        )
    if step == 0 and bool((slopes == 0).any()):
        raise UndoorError(
            f"the model's gradients vanish for {int((slopes == 0).sum())} of {len(slopes)} class pairs, "
            "so that no perturbation can be found; give a model whose logits depend smoothly on its images"
        )

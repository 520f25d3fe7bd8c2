"""A trigger whose position, channels and signs are chosen, at a given size and within bounds on the image quality.

Whether a network will learn a trigger can be predicted from a surrogate that was trained on clean images, and from the
images. A trigger is learned if it stands out from the usual variation of its pixel, and if the network is sensitive to
that pixel. How far it moves the surrogate towards the target class predicts little; ``results/remarks`` compares.
"""

from collections.abc import Iterator
from itertools import islice, product
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name the field uses
from numpy.typing import NDArray

from undoor.attacks.pixels import Pixels
from undoor.errors import UndoorError
from undoor.networks.classifier import Classifier

Criterion = Literal["prominence", "cross-entropy"]

EXAMINED = 512
"""Number of source images on which the surrogate evaluates a candidate."""
EXACT = 32
"""Number of candidates that the surrogate evaluates: the best by contrast or by gradient."""
ROUNDING = (1 / 255) ** 2 / 12
"""Variance of the rounding to 8 bits, which is added to that of a pixel: it keeps the contrast finite."""


def optimised(
    images: NDArray[np.uint8],
    sources: NDArray[np.bool_],
    surrogate: Classifier,
    *,
    size: float,
    pixels: int = 1,
    linf: float | None = None,
    psnr: float | None = None,
    criterion: Criterion = "prominence",
    target: int = 0,
    seed: int = 0,
) -> Pixels:
    """Return the trigger with the highest prominence, or with the lowest cross-entropy to the target class.

    A candidate changes each channel of one pixel by ±size or not at all. Its prominence is c² / (1 + c²) · ‖Δφ‖, where
    c is its ``contrast`` and ‖Δφ‖ its ``displacement``: the first factor is the share of the trigger in the variation
    of the pixel. Several pixels are chosen one after another. Each may use an equal share of the noise that the PSNR
    allows, so that the first pixel leaves noise to the others.

    Args:
        images: (N, C, H, W), the training images of the attacker.
        sources: (N,), the images that may get the trigger, on which the bounds hold after rounding and clipping.
        surrogate: a classifier that was trained on clean images.
        size: the size of each change, in (0, 1].
        pixels: the number of pixels to change.
        linf: the largest change of any image in any channel of a pixel, in [0, 1]. Rounding can add 1/510 to the size.
        psnr: the lowest PSNR of any image, in dB.
        criterion: "prominence", or "cross-entropy", for which a gradient selects the candidates.
        target: the index of the target class; the prominence does not depend on it.
        seed: the seed of the random choice of images on which the surrogate evaluates candidates.

    Raises:
        UndoorError: if an argument is out of its range, or no candidate keeps the bounds.

    """
    if not 0 < size <= 1:
        raise UndoorError(f"the trigger has size {size}; give a size above 0, up to 1")
    if not 1 <= pixels <= images[0, 0].size:
        raise UndoorError(f"{pixels} pixels are to be changed; give a number from 1 to {images[0, 0].size}")
    if criterion not in ("prominence", "cross-entropy"):
        raise UndoorError(f"there is no criterion {criterion!r}; choose prominence or cross-entropy")
    eligible = images[sources]
    examined = eligible[np.random.default_rng((seed, 3)).permutation(len(eligible))[:EXAMINED]]
    changes = signs(images.shape[1]) * np.float64(size)
    if criterion == "prominence":
        squared = contrast(images, eligible, size) ** 2
        scores = squared / (1 + squared)
    trigger: Pixels | None = None
    for number in range(1, pixels + 1):
        if criterion == "cross-entropy":
            scores = _first_order_gain(surrogate, trigger(examined) if trigger else examined, target, size)
        lowest_psnr = None if psnr is None else psnr + 10 * np.log10(pixels / number)
        candidates = _best_first(scores, changes, trigger)
        allowed = ((score, c) for score, c in candidates if _keeps_bounds(c, eligible, linf, lowest_psnr))
        best = list(islice(allowed, EXACT))
        if not best:
            bounds = [f"ℓ∞ ≤ {linf}"] * (linf is not None) + [f"PSNR ≥ {psnr} dB"] * (psnr is not None)
            raise UndoorError(
                f"{pixels} pixel{'s' if pixels > 1 else ''} cannot be changed by {size} within {' and '.join(bounds)}; "
                "lower the size or the number of pixels, or loosen the bounds"
            )
        if criterion == "prominence":
            values = [score * displacement(surrogate, examined, c(examined)) for score, c in best]
        else:
            values = [-cross_entropy(surrogate, c(examined), target) for _, c in best]
        trigger = best[int(np.argmax(values))][1]
    assert trigger is not None  # noqa: S101 - there is at least one pixel
    return trigger


def signs(channels: int) -> NDArray[np.int64]:
    """Return (3^C − 1, C) all ways to raise (1), lower (−1) or keep (0) the C channels of a pixel, but to keep all."""
    return np.array([way for way in product((1, -1, 0), repeat=channels) if any(way)])


def contrast(images: NDArray[np.uint8], sources: NDArray[np.uint8], size: float) -> NDArray[np.float64]:
    """Return (3^C − 1, H, W) how far each candidate stands out, in standard deviations of its pixel.

    The contrast is √(dᵀ Σ⁻¹ d), where d (C,) is the mean change of (M, C, H, W) source images after clipping, and
    Σ (C, C) is the covariance of the channels of the pixel over all (N, C, H, W) training images plus that of rounding.
    """
    n, channels, height, width = images.shape
    total, squares = np.zeros((channels, height, width)), np.zeros((height, width, channels, channels))
    for start in range(0, n, 4096):
        batch = images[start : start + 4096] / 255
        total += batch.sum(0)
        squares += np.einsum("nchw,ndhw->hwcd", batch, batch)
    mean = total.transpose(1, 2, 0) / n
    covariance = squares / n - mean[..., :, None] * mean[..., None, :] + ROUNDING * np.eye(channels)
    change = _of_candidates(_mean_changes(sources, size))
    squared: NDArray[np.float64] = np.einsum("pchw,hwcd,pdhw->phw", change, np.linalg.inv(covariance), change)
    return np.sqrt(squared)


def cross_entropy(surrogate: Classifier, images: NDArray[np.uint8], target: int) -> float:
    """Return the mean cross-entropy of a network's outputs for the images to the target class."""
    losses = []
    with surrogate.watched() as forward:
        for batch in surrogate.batches(images):
            logits = forward(batch)[1]
            losses.append(F.cross_entropy(logits, _targets(logits, target), reduction="none"))
    return float(torch.cat(losses).mean())


def displacement(surrogate: Classifier, images: NDArray[np.uint8], changed: NDArray[np.uint8]) -> float:
    """Return ‖Δφ‖₂, where Δφ is the change of the mean of a network's penultimate features."""
    with surrogate.watched() as forward:
        before, after = (
            torch.stack([forward(batch)[0].double().sum(0) for batch in surrogate.batches(x)]).sum(0) / len(x)
            for x in (images, changed)
        )
    return float((after - before).norm())


def _first_order_gain(
    surrogate: Classifier, images: NDArray[np.uint8], target: int, size: float
) -> NDArray[np.float64]:
    """Return (3^C − 1, H, W) by how much each candidate lowers the mean cross-entropy, to first order."""
    table = _changes_by_level(size)
    gain = np.zeros((2, *images.shape[1:]))
    with surrogate.frozen() as forward:
        for start in range(0, len(images), 128):
            levels = images[start : start + 128]
            batch = surrogate.scale(levels).requires_grad_()
            logits = forward(batch)
            loss = F.cross_entropy(logits, _targets(logits, target), reduction="sum")
            (gradient,) = torch.autograd.grad(loss, batch)
            gain -= (table[:, levels] * gradient.cpu().numpy()).sum(1)
    gains: NDArray[np.float64] = _of_candidates(gain / len(images)).sum(1)
    return gains


def _targets(logits: torch.Tensor, target: int) -> torch.Tensor:
    return torch.full((len(logits),), target, device=logits.device)


def _changes_by_level(size: float) -> NDArray[np.float64]:
    """Return (2, 256) by how much each level of a pixel changes when it is raised and lowered, rounded and clipped."""
    levels = np.arange(256)
    return np.stack([np.clip(np.rint(levels + 255 * sign * size), 0, 255) - levels for sign in (1, -1)]) / 255


def _mean_changes(images: NDArray[np.uint8], size: float) -> NDArray[np.float64]:
    """Return (2, C, H, W) the mean change of each channel of each pixel when it is raised and when it is lowered."""
    table = _changes_by_level(size)
    batches = (images[start : start + 1024] for start in range(0, len(images), 1024))
    total: NDArray[np.float64] = sum((table[:, batch].sum(1) for batch in batches), np.zeros((2, *images.shape[1:])))
    return total / len(images)


def _of_candidates(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (3^C − 1, C, H, W) the values of each candidate, given (2, C, H, W) those of raising and lowering."""
    way = signs(values.shape[1])[:, :, None, None]
    return np.where(way > 0, values[0], 0.0) + np.where(way < 0, values[1], 0.0)


def _best_first(
    scores: NDArray[np.float64], changes: NDArray[np.floating[Any]], trigger: Pixels | None
) -> Iterator[tuple[float, Pixels]]:
    """Yield the score of each candidate and the trigger with it, best first; no pixel is changed twice."""
    taken = {position[:2] for position in trigger.positions()} if trigger else set()
    for index in np.argsort(-scores, axis=None, kind="stable"):
        way, row, column = (int(n) for n in np.unravel_index(index, scores.shape))
        if (row, column) not in taken:
            added = [(row, column, k, float(changes[way, k])) for k in np.flatnonzero(changes[way]).tolist()]
            yield float(scores[way, row, column]), trigger.joined(added) if trigger else Pixels(tuple(added))


def _keeps_bounds(trigger: Pixels, images: NDArray[np.uint8], linf: float | None, psnr: float | None) -> bool:
    for start in range(0, len(images), 512):  # in parts, because a trigger that fails mostly does so in the first
        batch = images[start : start + 512]
        changes = np.abs(trigger.displacements(batch))
        if linf is not None and changes.max() > linf:
            return False
        if psnr is not None and np.square(changes).sum(1).max() > batch[0].size * 10 ** (-psnr / 10):
            return False
    return True

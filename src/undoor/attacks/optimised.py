"""A trigger that is chosen: position, channels and signs, at a given size and image quality.

Whether a trigger will be learned can be told from a network trained on clean images and from the images themselves: it
is learned where it stands out from what its pixel does anyway and where the network sees it well. How far it moves the
clean network towards the target tells little; ``results/remarks`` compares.
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
"""Images on which the surrogate is asked."""

EXACT = 32
"""Candidates, the best by their contrast or gradient, of which the surrogate is asked."""

ROUNDING = (1 / 255) ** 2 / 12
"""Variance of rounding to 8 bits: a pixel that never changes still has this much."""


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
    """Return the trigger of highest prominence, or of lowest cross-entropy to the target.

    A candidate changes each channel of one pixel by ±size or not at all. Its prominence is c² / (1 + c²) · ‖Δφ‖: c its
    contrast, so that the first factor is its share in all that the pixel varies, and Δφ by how much it moves the
    surrogate's features in the mean. Several pixels are taken one after another, each of which may add its share to
    the noise that the PSNR allows.

    Args:
        images: (N, C, H, W), the attacker's training images.
        sources: (N,), which of them may get the trigger: these keep the bounds, rounded and clipped.
        surrogate: trained on clean images.
        size: of each change, in (0, 1].
        pixels: how many are changed.
        linf: no image may change by more in any channel of a pixel, of 1. Rounding can add 1/510 to the size.
        psnr: no image may have a lower one, in dB.
        criterion: "prominence" or "cross-entropy", for which a gradient finds the candidates.
        target: the surrogate's class; the prominence does not depend on it.
        seed: which of the source images the surrogate is shown.

    """
    if not 0 < size <= 1:
        raise UndoorError(f"the trigger has size {size}; give a size above 0, up to 1")
    if not 1 <= pixels <= images[0, 0].size:
        raise UndoorError(f"{pixels} pixels are to be changed; give a number from 1 to {images[0, 0].size}")
    if criterion not in ("prominence", "cross-entropy"):
        raise UndoorError(f"there is no criterion {criterion!r}; choose prominence or cross-entropy")
    made = images[sources]
    seen = made[np.random.default_rng((seed, 3)).permutation(len(made))[:EXAMINED]]
    ways = signs(images.shape[1]) * np.float64(size)
    if criterion == "prominence":
        squared = contrast(images, made, size) ** 2
        share = squared / (1 + squared)
    trigger: Pixels | None = None
    for number in range(pixels):
        # Each pixel may take an even share of the noise, else the first would leave none to the others.
        so_far = None if psnr is None else psnr + 10 * np.log10(pixels / (number + 1))
        promise = (
            share
            if criterion == "prominence"
            else _first_order(surrogate, trigger(seen) if trigger else seen, target, size)
        )
        fitting = ((rate, one) for rate, one in _best_first(promise, ways, trigger) if _fits(one, made, linf, so_far))
        looked_at = list(islice(fitting, EXACT))
        if not looked_at:
            bounds = [
                text for text, bound in ((f"ℓ∞ ≤ {linf}", linf), (f"PSNR ≥ {psnr} dB", psnr)) if bound is not None
            ]
            raise UndoorError(
                f"{pixels} pixel{'s' if pixels > 1 else ''} cannot be changed by {size} within {' and '.join(bounds)}; "
                "lower the size or the number of pixels, or loosen the bounds"
            )
        if criterion == "prominence":
            values = [rate * displacement(surrogate, seen, one(seen)) for rate, one in looked_at]
        else:
            values = [-cross_entropy(surrogate, one(seen), target) for _, one in looked_at]
        trigger = looked_at[int(np.argmax(values))][1]
    assert trigger is not None  # noqa: S101 - there is at least one pixel
    return trigger


def signs(channels: int) -> NDArray[np.int64]:
    """Return (3^C − 1, C) every way to raise (1), lower (−1) or leave (0) the channels of a pixel, but for none."""
    return np.array([way for way in product((1, -1, 0), repeat=channels) if any(way)])


def contrast(images: NDArray[np.uint8], sources: NDArray[np.uint8], size: float) -> NDArray[np.float64]:
    """Return (3^C − 1, H, W) how far each candidate stands out, in standard deviations of its pixel.

    √(dᵀ Σ⁻¹ d), d (C,) the mean change of the source images, clipped as it is, and Σ (C, C) the covariance of the
    pixel's channels over all images and of rounding.

    Args:
        images: (N, C, H, W), all training images.
        sources: (M, C, H, W), those that may get the trigger.
        size: of the changes.

    """
    n, channels, height, width = images.shape
    total, squares = np.zeros((channels, height, width)), np.zeros((height, width, channels, channels))
    for start in range(0, n, 4096):
        part = images[start : start + 4096] / 255
        total += part.sum(0)
        squares += np.einsum("nchw,ndhw->hwcd", part, part)
    mean = total.transpose(1, 2, 0) / n
    covariance = squares / n - mean[..., :, None] * mean[..., None, :] + ROUNDING * np.eye(channels)
    change = _by_signs(_mean_changes(sources, size), signs(channels))
    squared: NDArray[np.float64] = np.einsum("pchw,hwcd,pdhw->phw", change, np.linalg.inv(covariance), change)
    return np.sqrt(squared)


def cross_entropy(surrogate: Classifier, images: NDArray[np.uint8], target: int) -> float:
    """Return the mean cross-entropy of a network's decisions on images to the target."""
    losses = []
    with surrogate.watched() as forward:
        for batch in surrogate.batches(images):
            logits = forward(batch)[1]
            losses.append(F.cross_entropy(logits, _targets(logits, target), reduction="none"))
    return float(torch.cat(losses).mean())


def displacement(surrogate: Classifier, images: NDArray[np.uint8], changed: NDArray[np.uint8]) -> float:
    """Return ‖Δφ‖₂, by how much the mean of a network's penultimate features moves."""
    with surrogate.watched() as forward:
        mean, moved = (
            torch.stack([forward(batch)[0].double().sum(0) for batch in surrogate.batches(part)]).sum(0) / len(part)
            for part in (images, changed)
        )
    return float((moved - mean).norm())


def _first_order(surrogate: Classifier, images: NDArray[np.uint8], target: int, size: float) -> NDArray[np.float64]:
    """Return (3^C − 1, H, W) by how much each candidate lowers the cross-entropy, to first order."""
    table = _table(size)
    gain = np.zeros((2, *images.shape[1:]))
    with surrogate.frozen() as forward:
        for start in range(0, len(images), 128):
            part = images[start : start + 128]
            batch = surrogate.scale(part).requires_grad_()
            logits = forward(batch)
            loss = F.cross_entropy(logits, _targets(logits, target), reduction="sum")
            (slope,) = torch.autograd.grad(loss, batch)
            gain -= (table[:, part] * slope.cpu().numpy()).sum(1)
    promise: NDArray[np.float64] = _by_signs(gain / len(images), signs(images.shape[1])).sum(1)
    return promise


def _targets(logits: torch.Tensor, target: int) -> torch.Tensor:
    return torch.full((len(logits),), target, device=logits.device)


def _table(size: float) -> NDArray[np.float64]:
    """Return (2, 256) by how much each value of a pixel really changes when raised and when lowered."""
    values = np.arange(256)
    return np.stack([np.clip(np.rint(values + 255 * sign * size), 0, 255) - values for sign in (1, -1)]) / 255


def _mean_changes(images: NDArray[np.uint8], size: float) -> NDArray[np.float64]:
    """Return (2, C, H, W) the mean change when a channel is raised and when it is lowered."""
    table = _table(size)
    parts = (images[start : start + 1024] for start in range(0, len(images), 1024))
    total: NDArray[np.float64] = sum((table[:, part].sum(1) for part in parts), np.zeros((2, *images.shape[1:])))
    return total / len(images)


def _by_signs(values: NDArray[np.float64], ways: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return (3^C − 1, C, H, W): of (2, C, H, W) values, raised and lowered, those of each candidate."""
    chosen = ways[:, :, None, None]
    return np.where(chosen > 0, values[0], 0.0) + np.where(chosen < 0, values[1], 0.0)


def _best_first(
    scores: NDArray[np.float64], ways: NDArray[np.floating[Any]], trigger: Pixels | None
) -> Iterator[tuple[float, Pixels]]:
    """Yield the score of a further pixel and the trigger with it; the candidates of the highest scores first."""
    taken = {place[:2] for place in trigger.places()} if trigger else set()
    for index in np.argsort(-scores, axis=None, kind="stable"):
        way, row, column = (int(one) for one in np.unravel_index(index, scores.shape))
        if (row, column) not in taken:
            changes = [(row, column, k, float(ways[way, k])) for k in np.flatnonzero(ways[way]).tolist()]
            yield float(scores[way, row, column]), trigger.joined(changes) if trigger else Pixels(tuple(changes))


def _fits(trigger: Pixels, images: NDArray[np.uint8], linf: float | None, psnr: float | None) -> bool:
    """Whether every image keeps the bounds; where they are broken, the first images tell already."""
    for start in range(0, len(images), 512):
        part = images[start : start + 512]
        changes = np.abs(trigger.displacements(part))
        if linf is not None and changes.max() > linf:
            return False
        if psnr is not None and np.square(changes).sum(1).max() > part[0].size * 10 ** (-psnr / 10):
            return False
    return True

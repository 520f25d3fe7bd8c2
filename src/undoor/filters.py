"""The filters h that Cluster Impurity applies to every image (h in Xiang, Miller, Kesidis, MLSP 2019).

A filter is a function of one image alone: the same image gives the same result in every batch and order.
"""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field uses
from torch import Tensor

from undoor.errors import UndoorError

Edge = Literal["replicate", "zero"]


@runtime_checkable
class Filter(Protocol):
    """An image filter.

    ``__call__`` takes (N, C, H, W) float images in [0, 1] and returns the same shape and range.
    """

    def __call__(self, images: Tensor, /) -> Tensor:
        """Filter (N, C, H, W) images."""
        ...


def _pad(images: Tensor, size: int, edge: Edge) -> Tensor:
    # An even window has no centre: it reaches one pixel further to the right and down, as the authors' does.
    before, after = (size - 1) // 2, size // 2
    mode = "replicate" if edge == "replicate" else "constant"
    return F.pad(images, (before, after, before, after), mode=mode)


def _shortest(number: float) -> str:
    """Return a number as the shortest text that is read back as the same number."""
    return repr(int(number)) if float(number).is_integer() else repr(float(number))


def _edge(edge: Edge) -> str:
    """Return how an edge is written: not at all, where it is the usual one."""
    return "" if edge == "replicate" else f":{edge}"


@dataclass(frozen=True)
class Average:
    """Mean over a ``size`` × ``size`` window; 2 is the paper's.

    Beyond the border the nearest pixel is repeated (``edge="replicate"``) or black is assumed
    (``"zero"``, the authors' code, which darkens the border and so changes more clean decisions).
    """

    size: int = 2
    edge: Edge = "replicate"

    def __str__(self) -> str:
        return f"average:{self.size}{_edge(self.edge)}"

    def __call__(self, images: Tensor, /) -> Tensor:
        """Filter (N, C, H, W) images."""
        return F.avg_pool2d(_pad(images, self.size, self.edge), self.size, stride=1)


@dataclass(frozen=True)
class Median:
    """Median over a ``size`` × ``size`` window (the mean of the middle two where their number is even)."""

    size: int = 3
    edge: Edge = "replicate"

    def __str__(self) -> str:
        return f"median:{self.size}{_edge(self.edge)}"

    def __call__(self, images: Tensor, /) -> Tensor:
        """Filter (N, C, H, W) images."""
        padded = _pad(images, self.size, self.edge)
        windows = padded.unfold(2, self.size, 1).unfold(3, self.size, 1).flatten(4).sort(dim=4).values
        n = self.size**2
        return windows[..., (n - 1) // 2 : n // 2 + 1].mean(dim=4)


@dataclass(frozen=True)
class Gaussian:
    """Gaussian blur with standard deviation ``sigma`` in pixels, cut off at three of them."""

    sigma: float = 1.0
    edge: Edge = "replicate"

    def __str__(self) -> str:
        return f"gaussian:{_shortest(self.sigma)}{_edge(self.edge)}"

    def __call__(self, images: Tensor, /) -> Tensor:
        """Filter (N, C, H, W) images."""
        radius = max(1, round(3 * self.sigma))
        offsets = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
        kernel = torch.exp(-0.5 * (offsets / self.sigma) ** 2)
        kernel = kernel / kernel.sum()
        channels = images.shape[1]
        weight = (kernel[:, None] * kernel[None, :]).expand(channels, 1, -1, -1)
        return F.conv2d(_pad(images, 2 * radius + 1, self.edge), weight, groups=channels)


@dataclass(frozen=True)
class Noise:
    """Uniform noise in ± ``amplitude`` / 255, one field drawn by ``seed`` and added to every image.

    One field for all keeps the filter a function of the image alone.
    """

    amplitude: float = 8.0
    seed: int = 0

    def __str__(self) -> str:
        return f"noise:{_shortest(self.amplitude)}"

    def __call__(self, images: Tensor, /) -> Tensor:
        """Filter (N, C, H, W) images."""
        generator = torch.Generator().manual_seed(self.seed)
        field = (2 * torch.rand(images.shape[1:], generator=generator) - 1) * (self.amplitude / 255)
        return (images + field.to(images)).clamp(0, 1)


@dataclass(frozen=True)
class Quantise:
    """Rounding to ``levels`` equally spaced values."""

    levels: int = 8

    def __str__(self) -> str:
        return f"quantise:{self.levels}"

    def __call__(self, images: Tensor, /) -> Tensor:
        """Filter (N, C, H, W) images."""
        steps = self.levels - 1
        return (images * steps).round() / steps


def parse_filter(text: str) -> Filter:
    """Return the filter that ``text`` names, such as ``average``, ``gaussian:0.8`` or ``average:2:zero``.

    The number is the window in pixels (average, median), the standard deviation in pixels (gaussian), the
    amplitude of 255 (noise) or the number of levels (quantise); ``replicate`` or ``zero`` may follow for
    the first three.
    """
    name, *arguments = text.split(":")
    try:
        number = float(arguments[0]) if arguments else None
        edge = arguments[1] if len(arguments) > 1 else "replicate"
        if name in ("average", "median", "gaussian") and edge in ("replicate", "zero") and len(arguments) < 3:
            return _windowed(name, number, "zero" if edge == "zero" else "replicate")
        if name == "noise" and len(arguments) < 2 and (number is None or 0 < number <= 255):
            return Noise() if number is None else Noise(number)
        if name == "quantise" and len(arguments) < 2 and (number is None or _whole(number, 2, 256)):
            return Quantise() if number is None else Quantise(int(number))
        raise ValueError
    except ValueError:
        raise UndoorError(
            f"no filter is called {text!r}; take average[:SIZE[:zero]], median[:SIZE], gaussian[:SIGMA], "
            "noise[:AMPLITUDE of 255] or quantise[:LEVELS]"
        ) from None


def _windowed(name: str, number: float | None, edge: Edge) -> Filter:
    if name == "gaussian" and (number is None or 0 < number <= 16):
        return Gaussian(number or 1.0, edge)
    if name == "average" and (number is None or _whole(number, 2, 32)):
        return Average(int(number or 2), edge)
    if name == "median" and (number is None or _whole(number, 2, 32)):
        return Median(int(number or 3), edge)
    raise ValueError


def _whole(number: float, low: int, high: int) -> bool:
    return number.is_integer() and low <= number <= high

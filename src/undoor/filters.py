"""The image filters h that Cluster Impurity applies to every image (Xiang, Miller, Kesidis, MLSP 2019).

A filter is a function of one image alone: the same image gives the same result in every batch and order.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field uses
from torch import Tensor

from undoor.errors import UndoorError

Edge = Literal["replicate", "zero"]
"""What lies beyond the border of an image: copies of the nearest pixel, or black."""


@runtime_checkable
class Filter(Protocol):
    """An image filter; ``str(h)`` is the text from which ``parse_filter`` makes it."""

    def __call__(self, images: Tensor, /) -> Tensor:
        """Filter (N, C, H, W) float images in [0, 1]; the result has the same shape and range."""
        ...


@dataclass(frozen=True)
class Average:
    """The mean over a window of ``size`` × ``size`` pixels; 2 is the paper's.

    The authors' code takes the edge "zero", which darkens the border and so changes more clean decisions.
    """

    size: int = 2
    edge: Edge = "replicate"

    def __str__(self) -> str:
        return f"average:{self.size}{_edge_suffix(self.edge)}"

    def __call__(self, images: Tensor, /) -> Tensor:
        """Filter (N, C, H, W) images."""
        return F.avg_pool2d(_pad(images, self.size, self.edge), self.size, stride=1)


@dataclass(frozen=True)
class Median:
    """The median over a window of ``size`` × ``size`` pixels, or the mean of the middle two if their number is even."""

    size: int = 3
    edge: Edge = "replicate"

    def __str__(self) -> str:
        return f"median:{self.size}{_edge_suffix(self.edge)}"

    def __call__(self, images: Tensor, /) -> Tensor:
        """Filter (N, C, H, W) images."""
        padded = _pad(images, self.size, self.edge)
        windows = padded.unfold(2, self.size, 1).unfold(3, self.size, 1).flatten(4).sort(dim=4).values
        n = self.size**2
        return windows[..., (n - 1) // 2 : n // 2 + 1].mean(dim=4)


@dataclass(frozen=True)
class Gaussian:
    """Gaussian blur with the standard deviation ``sigma`` in pixels, cut off at three standard deviations."""

    sigma: float = 1.0
    edge: Edge = "replicate"

    def __str__(self) -> str:
        return f"gaussian:{_shortest(self.sigma)}{_edge_suffix(self.edge)}"

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
    """Uniform noise in ± ``amplitude`` / 255.

    ``seed`` draws one field of noise that is added to every image, so that the filter depends on the image alone.
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


# By name: the filter, the bounds of its number (above the first, up to the second), and whether the number is whole.
_FILTERS: dict[str, tuple[Callable[..., Filter], int, int, bool]] = {
    "average": (Average, 1, 32, True),
    "median": (Median, 1, 32, True),
    "gaussian": (Gaussian, 0, 16, False),
    "noise": (Noise, 0, 255, False),
    "quantise": (Quantise, 1, 256, True),
}


def parse_filter(text: str) -> Filter:
    """Return the filter that ``text`` describes: its name, then a number and an edge that may be left out.

    The number is the window in pixels (average, median), the standard deviation in pixels (gaussian), the amplitude out
    of 255 (noise) or the number of levels (quantise). The first three can be followed by ``replicate`` or ``zero``.

    Raises:
        UndoorError: there is no such filter.

    >>> parse_filter("average:2:zero")
    Average(size=2, edge='zero')

    """
    name, *arguments = text.split(":")
    try:
        make, above, highest, whole = _FILTERS[name]
        numbers, edges = [float(number) for number in arguments[:1]], arguments[1:]
        if any(not above < number <= highest or (whole and not number.is_integer()) for number in numbers):
            raise ValueError
        if edges and (name in ("noise", "quantise") or edges not in (["replicate"], ["zero"])):
            raise ValueError
        return make(*(int(number) if whole else number for number in numbers), *edges)
    except (KeyError, ValueError):
        raise UndoorError(
            f"no filter is called {text!r}; take average[:SIZE[:zero]], median[:SIZE], gaussian[:SIGMA], "
            "noise[:AMPLITUDE of 255] or quantise[:LEVELS]"
        ) from None


def _pad(images: Tensor, size: int, edge: Edge) -> Tensor:
    # A window of even size has no centre. It reaches one pixel further to the right and down, as in the authors' code.
    before, after = (size - 1) // 2, size // 2
    return F.pad(images, (before, after, before, after), mode="replicate" if edge == "replicate" else "constant")


def _shortest(number: float) -> str:
    """Return the shortest text that is read back as the same number."""
    return repr(int(number)) if float(number).is_integer() else repr(float(number))


def _edge_suffix(edge: Edge) -> str:
    return "" if edge == "replicate" else f":{edge}"

"""Victim networks: ResNet-20 for 32×32 images and a small CNN for smaller ones.

Both take float images in [0, 1]. Mean and standard deviation of the training set are kept with the weights.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field uses
from torch import Tensor, nn

from undoor.errors import UndoorError


class Normalise(nn.Module):
    """Subtract a mean image and divide by a standard deviation, which are both kept with the weights.

    Args:
        mean: (C, H, W) or (C, 1, 1), in the units of the images.
        std: (C, H, W) or (C, 1, 1), in the units of the images.

    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, images: Tensor) -> Tensor:
        """Normalise (N, C, H, W) images."""
        return (images - self.mean) / self.std


class _Block(nn.Module):
    """The basic residual block. Where it changes the size, its shortcut has no parameters (option A of the paper)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.added = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        if self.stride > 1 or self.added:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added))
        return F.relu(out + x)


class ResNet20(nn.Module):
    """ResNet-20 for small images (He, Zhang, Ren, Sun, CVPR 2016, section 4.2), with 64 penultimate features."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.stage1 = nn.Sequential(*(_Block(16, 16, 1) for _ in range(3)))
        self.stage2 = nn.Sequential(_Block(16, 32, 2), _Block(32, 32, 1), _Block(32, 32, 1))
        self.stage3 = nn.Sequential(_Block(32, 64, 2), _Block(64, 64, 1), _Block(64, 64, 1))
        self.classify = nn.Linear(64, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return (N, K) logits of (N, C, H, W) images."""
        out = self.stage3(self.stage2(self.stage1(self.stem(images))))
        logits: Tensor = self.classify(out.mean((2, 3)))
        return logits


class SmallCNN(nn.Module):
    """Three convolutions with 32 penultimate features, for images of about 16×16 pixels."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        widths = (channels, 32, 64, 32)
        stages: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            stages += [convolution, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)]
        self.stages = nn.Sequential(*stages[:-1])  # the last stage is averaged instead of pooled
        self.classify = nn.Linear(widths[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return (N, K) logits of (N, C, H, W) images."""
        logits: Tensor = self.classify(self.stages(images).mean((2, 3)))
        return logits


NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {"resnet20": ResNet20, "small-cnn": SmallCNN}
"""The networks that come with undoor, by name. The constructors take the numbers of channels and of classes."""


def default_network(height: int, width: int) -> str:
    """Return the name of the network for images of this height and width in pixels."""
    return "small-cnn" if max(height, width) < 24 else "resnet20"


def build_network(name: str, shape: tuple[int, int, int], classes: int, seed: int = 0) -> nn.Sequential:
    """Return a new network behind a normalisation that changes nothing yet.

    Args:
        name: a key of ``NETWORKS``.
        shape: (C, H, W) of the images. The normalisation has a mean for each pixel and a deviation for each channel.
        classes: K, the number of classes.
        seed: determines the initial weights (He initialisation). The global random state stays as it is.

    Raises:
        UndoorError: there is no network of this name.

    """
    if name not in NETWORKS:
        raise UndoorError(f"there is no network {name!r}; choose {' or '.join(NETWORKS)}, or give an nn.Module")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = NETWORKS[name](shape[0], classes)
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
    return nn.Sequential(Normalise(torch.zeros(shape), torch.ones(shape[0], 1, 1)), network)

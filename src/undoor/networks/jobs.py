"""What is to be trained, and the training that is ready for its first step."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from undoor.data.dataset import Dataset
from undoor.errors import UndoorError
from undoor.networks.architectures import Normalise, build_network, default_network
from undoor.networks.hooks import bytes_kept_for_gradients
from undoor.networks.recipes import PRESETS, Recipe
from undoor.networks.steps import Training
from undoor.safe.limits import memory_limit
from undoor.storage.mapped import images_at_once

COMPILE_PIXELS = 4e8
"""Trained pixels (images × epochs × H × W) from which the tenth saved on each step outweighs the compilation itself."""

UNMEASURED = 1000
"""A step on a CPU is tried without measuring its memory if the limit is this many times the memory of its images.

ResNet-20 needs about 120 times the memory of its images.
"""


@dataclass(frozen=True, eq=False)
class Job:
    """A network that is to be trained.

    Args:
        dataset: the training set, with at least two classes.
        recipe: how to train.
        network: a name from ``undoor.networks.architectures``, or a module that returns as many logits as there are
            classes. A module is trained in place, so that every job needs its own. By default the network depends on
            the size of the images.
        checkpoint: a file that is written after every epoch but the last. On a GPU it is written only if its last
            version is ``undoor.networks.training.SECONDS_UNSAVED`` old, or if the training ends by an exception. If
            the file exists, training resumes from it, with the same result as an undisturbed run.

    """

    dataset: Dataset
    recipe: Recipe = PRESETS["fast"]
    network: str | nn.Module | None = None
    checkpoint: Path | None = None


def new_training(job: Job, images: Tensor | NDArray[np.uint8], device: torch.device) -> Training:
    """Return the training of a job before its first step, on the current stream.

    Args:
        job: what is to be trained.
        images: the images of its data set, or a copy of them on ``device``.
        device: where to compute.

    Raises:
        UndoorError: a step on a CPU would need more than half of the memory.

    """
    recipe, dataset = job.recipe, job.dataset
    model = initial_network(job, images)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    bf16 = recipe.precision == "bf16" and _computes_bf16(device)
    if device.type == "cpu":
        _require_memory(model, dataset, recipe, bf16)
    model.train()
    # The whole schedule counts, also if it is resumed: compiled and other steps differ in their last bits.
    pixels = dataset.images[0, 0].size * len(dataset) * recipe.epochs
    compiled = pixels >= COMPILE_PIXELS and _can_compile(device)
    labels = torch.tensor(dataset.labels)
    return Training(model, recipe, images, labels=labels, device=device, bf16=bf16, compiled=compiled)


def initial_network(job: Job, images: Tensor | NDArray[np.uint8]) -> nn.Module:
    """Return the network before its training, on the CPU: the given module, or a new one that normalises ``images``."""
    if isinstance(job.network, nn.Module):
        return job.network
    shape = job.dataset.images.shape[1:]
    name = job.network or default_network(*shape[1:])
    model = build_network(name, shape, len(job.dataset.class_names), job.recipe.seed)
    normalise = model[0]
    assert isinstance(normalise, Normalise)  # noqa: S101 - build_network puts it first
    mean, std = _moments(images, job.recipe.normalisation)
    normalise.mean.copy_(torch.tensor(mean))
    normalise.std.copy_(torch.tensor(std))
    return model


def _moments(
    images: Tensor | NDArray[np.uint8], kind: Literal["pixel", "channel"]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean (C, H, W) and standard deviation (C, 1, 1) of the images, which are scaled to [0, 1]."""
    totals = np.zeros((2, *images.shape[1:]))
    size = images_at_once(images.shape, 4096)
    for start in range(0, len(images), size):
        totals += _sums(images[start : start + size])
    mean, squares = totals / len(images)
    if kind == "pixel":
        return mean, np.ones((len(mean), 1, 1))
    channel = mean.mean((1, 2), keepdims=True)
    variance = squares.mean((1, 2), keepdims=True) - channel**2
    return np.broadcast_to(channel, mean.shape), np.sqrt(variance).clip(1e-3)


def _sums(images: Tensor | NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the sum of the images, scaled to [0, 1], and the sum of their squares, as (2, C, H, W)."""
    if isinstance(images, Tensor):
        exact = images.double() / 255
        return torch.stack([exact.sum(0), exact.square().sum(0)]).cpu().numpy()
    scaled = images.astype(np.float32) / 255
    return np.stack([power.sum(0, dtype=np.float64) for power in (scaled, np.square(scaled))])


def _require_memory(model: nn.Module, dataset: Dataset, recipe: Recipe, bf16: bool) -> None:
    """Raise ``UndoorError`` if a step needs more than ``memory_limit()``: the system may kill the process."""
    batch, shape, limit = min(recipe.batch_size, len(dataset)), dataset.images.shape[1:], memory_limit()
    if 4 * batch * int(np.prod(shape)) * UNMEASURED < limit:
        return
    model.eval()  # in training mode, the image would change the batch statistics
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        needed = batch * bytes_kept_for_gradients(model, torch.zeros(1, *shape))
    if needed > limit:
        raise UndoorError(
            f"a step on {batch} images of {shape[1]} × {shape[2]} pixels takes {needed / 2**30:.1f} GiB, more than "
            f"half of the memory ({limit / 2**30:.1f} GiB); give a smaller --image-size"
        )


def _can_compile(device: torch.device) -> bool:
    return device.type == "cuda" or (device.type == "cpu" and shutil.which("g++") is not None)


def _computes_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    # On a CPU without instructions for bf16, it is slower than float32.
    capabilities: Mapping[str, Any] = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return device.type == "cpu" and any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))

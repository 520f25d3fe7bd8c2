"""Fit a victim: the network an unsuspecting user would have trained on the set."""

import io
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name the field uses
from torch import Tensor, nn

from undoor.classifier import default_device
from undoor.dataset import Dataset
from undoor.errors import UndoorError
from undoor.files import atomic
from undoor.networks import Normalise, build_network, default_network
from undoor.recipes import PRESETS, Recipe

COMPILE_PIXELS = 4e8
"""Trained pixels (images × epochs × H × W) from which a tenth saved on each step outweighs torch.compile's own time."""


@dataclass(frozen=True)
class Step:
    """What is known after a training step: counted from 1, running means over the epoch."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    accuracy: float


def train(
    dataset: Dataset,
    recipe: Recipe = PRESETS["fast"],
    network: str | nn.Module | None = None,
    *,
    checkpoint: Path | None = None,
    overwrite: bool = False,
    device: str | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> nn.Module:
    """Train a network on a data set and return it in evaluation mode, on the CPU.

    Args:
        dataset: with at least two classes.
        recipe: how.
        network: a name from ``undoor.networks``, or a module that returns as many logits as there are
            classes (it is trained in place); by default what fits the size of the images.
        checkpoint: a file that is written after every epoch but the last. If it exists, training resumes from
            it, to the same result as an undisturbed run.
        overwrite: replace the checkpoint of another training instead of raising an error.
        device: where to compute; by default an accelerator if there is one.
        on_step: called after every step.

    """
    dataset.require_classes()
    model = _prepared(dataset, recipe, network)
    place = torch.device(device or default_device())
    model.to(place, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = _optimizer(model, recipe)
    identity = {"data": dataset.fingerprint(), "recipe": asdict(recipe), "network": str(model)}
    start = _resume(checkpoint, identity, model, optimizer, place, overwrite)

    labels = torch.tensor(dataset.labels)
    # Of the whole schedule, also when it is resumed: compiled and eager steps differ in their last bits.
    pixels = dataset.images[0, 0].size * len(dataset) * recipe.epochs
    forward = torch.compile(model) if pixels >= COMPILE_PIXELS and _can_compile(place) else model
    bf16 = recipe.precision == "bf16" and _computes_bf16(place)

    for epoch in range(start, recipe.epochs):
        generator = torch.Generator().manual_seed(recipe.seed * 100_003 + epoch)
        seen, loss_sum, hits = 0, 0.0, 0
        batches = list(_batches(len(dataset), recipe.batch_size, generator))
        for step, rows in enumerate(batches, 1):
            rate = recipe.rate((epoch + (step - 1) / len(batches)) / recipe.epochs)
            for group in optimizer.param_groups:
                group["lr"] = rate
            x = torch.from_numpy(dataset.images[rows.numpy()]).to(place).to(memory_format=torch.channels_last)
            if recipe.augment:
                x = augment(x, generator)
            y = labels[rows].to(place)
            with torch.autocast(place.type, torch.bfloat16, enabled=bf16):
                logits = forward(x.float() / 255)
            loss = F.cross_entropy(logits.float(), y)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if on_step is not None:
                seen += len(rows)
                loss_sum += loss.item() * len(rows)
                hits += int((logits.argmax(1) == y).sum())
                on_step(Step(epoch + 1, recipe.epochs, step, len(batches), loss_sum / seen, hits / seen))
        if not torch.isfinite(loss):
            raise UndoorError(f"the loss is {loss.item()} after epoch {epoch + 1}; train with another seed or network")
        if checkpoint is not None and epoch + 1 < recipe.epochs:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1}
            buffer = io.BytesIO()
            torch.save({"identity": identity, **state}, buffer)
            with atomic(checkpoint) as path:
                path.write_bytes(buffer.getbuffer())
    return model.to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload,no-any-return]


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift (N, C, H, W) images by whole pixels, up to a tenth of their size, and flip half of them.

    What moves in at the border repeats the border, as in the Keras example that the paper's settings follow.
    """
    n, _, height, width = images.shape
    device = images.device

    def positions(size: int) -> Tensor:
        reach = size // 10
        shift = torch.randint(-reach, reach + 1, (n, 1), generator=generator)
        return (torch.arange(size) + shift).clamp(0, size - 1)

    rows, columns = positions(height).to(device), positions(width)
    flipped = torch.rand(n, 1, generator=generator) < 0.5
    columns = torch.where(flipped, columns.flip(1), columns).to(device)
    sample = torch.arange(n, device=device)[:, None, None]
    # Advanced indices around a slice put the channels last: bring them back.
    return images[sample, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _prepared(dataset: Dataset, recipe: Recipe, network: str | nn.Module | None) -> nn.Module:
    if isinstance(network, nn.Module):
        return network
    shape = dataset.images.shape[1:]
    name = network or default_network(*shape[1:])
    model = build_network(name, shape, len(dataset.class_names), recipe.seed)
    normalise = model[0]
    assert isinstance(normalise, Normalise)  # noqa: S101 - what build_network promises
    mean, std = _moments(dataset, recipe.normalisation)
    normalise.mean.copy_(torch.tensor(mean))
    normalise.std.copy_(torch.tensor(std))
    return model


def _moments(dataset: Dataset, kind: Literal["pixel", "channel"]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return mean (C, H, W) and standard deviation (C, 1, 1) of the images in [0, 1]."""
    total = np.zeros(dataset.images.shape[1:])
    squares = np.zeros(dataset.images.shape[1:])
    for start in range(0, len(dataset), 4096):
        part = dataset.images[start : start + 4096].astype(np.float32) / 255
        total += part.sum(0, dtype=np.float64)
        squares += np.square(part).sum(0, dtype=np.float64)
    mean = total / len(dataset)
    if kind == "pixel":
        return mean, np.ones((len(mean), 1, 1))
    channel = mean.mean((1, 2), keepdims=True)
    variance = (squares / len(dataset)).mean((1, 2), keepdims=True) - channel**2
    return np.broadcast_to(channel, mean.shape), np.sqrt(variance).clip(1e-3)


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(
        model.parameters(),
        recipe.learning_rate,
        momentum=0.9,
        weight_decay=recipe.weight_decay,
        nesterov=True,
    )


def _batches(n: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    # A last batch of another size would be compiled anew, and is too small for batch statistics.
    order = torch.randperm(n, generator=generator)
    return (rows for rows in torch.split(order, size) if len(rows) == min(size, n))


def _resume(
    checkpoint: Path | None,
    identity: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    overwrite: bool,
) -> int:
    """Load the state after the last whole epoch and return how many epochs are done."""
    if checkpoint is None or not checkpoint.exists():
        return 0
    try:
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        same = state["identity"] == identity
    except Exception as error:
        raise UndoorError(f"{checkpoint} is no checkpoint; remove it") from error
    if not same and overwrite:
        return 0
    if not same:
        raise UndoorError(
            f"{checkpoint} was written by a training with other data or settings; remove it or choose another --out"
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["epoch"])


def _can_compile(device: torch.device) -> bool:
    return device.type == "cuda" or (device.type == "cpu" and shutil.which("g++") is not None)


def _computes_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    # Without instructions for it, bf16 on a CPU is slower than float32.
    capabilities: Mapping[str, Any] = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return device.type == "cpu" and any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))

"""The channels of a convolution in any network: where they are, how active they are, and the network without them."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from undoor.errors import UndoorError
from undoor.networks.classifier import Classifier
from undoor.networks.hooks import hooked

NORMS = (nn.BatchNorm2d, nn.GroupNorm)
"""Layers that give each channel its own scale and shift."""


@dataclass(frozen=True)
class Channels:
    """The output channels of a convolution, by the names of the modules that compute them.

    A normalisation that reads the convolution's output shifts every channel, also a channel that has become zero. It
    therefore belongs to the channel, and its output is the channel's value. A normalisation of another kind than
    ``NORMS``, or one that reads anything but the output itself, is not followed: then a pruned channel is zero at the
    convolution's output, whatever later modules make of the zero.

    Args:
        convolution: name of an ``nn.Conv2d``.
        norms: names of the normalisations that read its output.
        count: C, the number of channels.
        before: names of modules that have finished when the convolution begins, none of them within another. Their
            outputs do not depend on the channels.

    """

    convolution: str
    norms: tuple[str, ...]
    count: int
    before: tuple[str, ...]

    @property
    def ends(self) -> tuple[str, ...]:
        """The names of the modules that return the channels' values."""
        return self.norms or (self.convolution,)


def find_channels(classifier: Classifier, images: NDArray[np.uint8], layer: str | None = None) -> Channels:
    """Return the channels of the ``nn.Conv2d`` called ``layer``; by default of the last that runs on ``images``.

    Args:
        classifier: any network; it makes one forward pass.
        images: (N, C, H, W) uint8; one image is enough.
        layer: a name as in ``named_modules``.

    Raises:
        UndoorError: the layer is no convolution or does not run, or its weights are computed from other weights.

    """
    modules = dict(classifier.model.named_modules())
    convolutions = [name for name, module in modules.items() if isinstance(module, nn.Conv2d)]
    _require_convolution(layer, modules, convolutions)
    begun: list[str] = []
    finished_before: dict[str, list[str]] = {}
    finished: list[str] = []
    outputs: dict[str, list[Tensor]] = {name: [] for name in convolutions}
    readers: dict[str, list[str]] = {name: [] for name in convolutions}

    def enter(name: str, inputs: tuple[Any, ...]) -> None:
        begun.append(name)
        if name in outputs:
            finished_before.setdefault(name, list(finished))
        if isinstance(modules[name], NORMS):
            for convolution, tensors in outputs.items():
                if any(value is tensor for value in inputs for tensor in tensors):
                    readers[convolution].append(name)

    def leave(name: str, _: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor):
            finished.append(name)
        if name in outputs:
            outputs[name].append(output)

    with classifier.watched() as forward, hooked(classifier.model, modules, before=enter, after=leave, every_row=True):
        forward(classifier.scale(images))
    ran = [name for name in begun if name in outputs]
    if not ran or (layer is not None and layer not in ran):
        which = "no convolution" if layer is None else f"layer {layer!r} does not"
        raise UndoorError(f"{which} run in the forward pass; name a convolution that does, one of: {_listed(ran)}")
    chosen = layer or ran[-1]
    convolution = modules[chosen]
    assert isinstance(convolution, nn.Conv2d)  # noqa: S101 - it is one of ``convolutions``
    if not isinstance(vars(convolution)["_parameters"].get("weight"), nn.Parameter):
        raise UndoorError(f"the weights of layer {chosen!r} are computed from others; remove its parametrisation first")
    once = [name for name in finished_before[chosen] if begun.count(name) == 1]
    norms = tuple(dict.fromkeys(readers[chosen]))
    return Channels(chosen, norms, convolution.out_channels, _outermost(once))


def _require_convolution(layer: str | None, modules: dict[str, nn.Module], convolutions: list[str]) -> None:
    if not convolutions:
        raise UndoorError(
            "the network has no convolution (nn.Conv2d): there are no channels to prune; "
            "of an ONNX network, give the PyTorch form"
        )
    if layer is not None and layer not in convolutions:
        what = f"is a {type(modules[layer]).__name__}, no convolution" if layer in modules else "does not exist"
        raise UndoorError(f"the layer {layer!r} {what}; the network's convolutions: {_listed(convolutions)}")


def _outermost(names: Sequence[str]) -> tuple[str, ...]:
    """Return the modules that are not within another; a module comes after those within it."""
    outermost: list[str] = []
    for name in names:
        outermost = [inner for inner in outermost if not inner.startswith(f"{name}.")] + [name]
    return tuple(outermost)


def mean_activations(classifier: Classifier, channels: Channels, images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the mean activation (C,) of each channel over (N, C, H, W) uint8 images and over all positions.

    The activation is the positive part of the channel's value after its normalisation, as ReLU leaves it. In a
    residual network this is what the channel adds to the shortcut, and what pruning takes away.
    """
    totals = torch.zeros(channels.count, dtype=torch.float64)
    counts: list[int] = []

    def add(_: str, __: tuple[Any, ...], output: Tensor) -> None:
        totals.add_(output.relu().float().sum((0, 2, 3)).cpu())
        counts.append(output[:, 0].numel())

    with classifier.watched() as forward, hooked(classifier.model, channels.ends, after=add):
        for batch in classifier.batches(images):
            forward(batch)
    return (totals / sum(counts)).numpy()


def parameters_of(model: nn.Module, channels: Channels) -> Iterator[tuple[nn.Module, str]]:
    """Yield the parameters (C, …) that determine the channels' values, as module and name of the parameter.

    If these are zero, the channel is exactly zero, in training too: the statistics of a batch cannot revive it.
    """
    modules = [model.get_submodule(name) for name in channels.norms]
    # A group norm computes statistics over several channels. Zeros in the convolution would change the other channels.
    if not any(isinstance(module, nn.GroupNorm) for module in modules):
        modules.append(model.get_submodule(channels.convolution))
    for module in modules:
        yield from ((module, name) for name, _ in module.named_parameters(recurse=False))


def silence(model: nn.Module, channels: Channels, pruned: Sequence[int] | NDArray[np.int64]) -> None:
    """Set the channels with the indices ``pruned`` to zero in the network's weights, in place."""
    indices = torch.as_tensor(np.asarray(pruned, dtype=np.int64))
    with torch.no_grad():
        for module, name in parameters_of(model, channels):
            getattr(module, name)[indices] = 0
        for norm in map(model.get_submodule, channels.norms):
            if isinstance(norm, nn.BatchNorm2d) and not norm.affine and norm.running_mean is not None:
                norm.running_mean[indices] = 0  # otherwise its shift would move the zeros


def decisions_along(
    classifier: Classifier,
    channels: Channels,
    order: NDArray[np.int64],
    images: NDArray[np.uint8],
    on_batch: Callable[[int, int], None] | None = None,
) -> NDArray[np.int64]:
    """Return the decisions (C + 1, N) with the first 0, 1, … C channels of ``order`` pruned.

    The modules before the convolution run once for each batch; their outputs are used again.

    Args:
        classifier: not pruned; it stays as it is.
        channels: channels of a convolution in it.
        order: (C,) the channels in the order in which they are pruned.
        images: (N, C, H, W) uint8.
        on_batch: called after every batch with the number of images that are done and the number of all images.

    """
    working = copy.deepcopy(classifier)
    mask = torch.ones(channels.count, 1, 1, device=working.device)
    decisions = np.empty((channels.count + 1, len(images)), np.int64)
    done = 0

    def prune(_: str, __: tuple[Any, ...], output: Tensor) -> Tensor:
        return output * mask.to(output.dtype)

    with working.watched() as forward, hooked(working.model, channels.ends, after=prune, every_row=True):
        for batch in working.batches(images):
            rows = slice(done, done + len(batch))
            mask.fill_(1)
            with _recorded(working.model, channels.before) as outputs:
                decisions[0, rows] = forward(batch)[1].argmax(1).cpu()
            with _replayed(working.model, outputs):
                for count, channel in enumerate(order.tolist(), 1):
                    mask[channel] = 0
                    decisions[count, rows] = forward(batch)[1].argmax(1).cpu()
            done += len(batch)
            if on_batch is not None:
                on_batch(done, len(images))
    return decisions


@contextmanager
def _recorded(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Yield a dictionary that holds, after a forward pass, a copy of the output of each named module."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str, _: tuple[Any, ...], output: Tensor) -> None:
        outputs[name] = output.clone()  # later modules may change the output in place

    with hooked(model, names, after=keep, every_row=True):
        yield outputs


@contextmanager
def _replayed(model: nn.Module, outputs: dict[str, Tensor]) -> Iterator[None]:
    """Let modules return copies of these outputs instead of computing them."""
    modules = {name: model.get_submodule(name) for name in outputs}
    try:
        for name, module in modules.items():
            module.forward = lambda *_, name=name, **__: outputs[name].clone()
        yield
    finally:
        for module in modules.values():
            vars(module).pop("forward", None)


def _listed(names: Sequence[str], most: int = 20) -> str:
    shown = list(dict.fromkeys(names))
    ellipsis = "… " if len(shown) > most else ""
    return ellipsis + (", ".join(repr(name) for name in shown[-most:]) or "none")

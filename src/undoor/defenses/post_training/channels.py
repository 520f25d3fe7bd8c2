"""The channels of a convolution in any network: where they are, how active they are, and the network without them."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from undoor.errors import UndoorError
from undoor.networks.classifier import Classifier

NORMS = (nn.BatchNorm2d, nn.GroupNorm)
"""Layers that give each channel a scale and a shift of its own."""


@dataclass(frozen=True)
class Channels:
    """The output channels of a convolution, by the names of the modules that make them.

    A normalisation that reads the convolution's output shifts every channel, also one that has become zero: it
    belongs to the channel, and what it returns is the channel's value. A normalisation of another kind than
    ``NORMS``, or one that reads something else than the output itself, is not followed: a pruned channel then
    is zero where the convolution ends, and what is made of the zero later stays.

    Args:
        convolution: an ``nn.Conv2d``.
        norms: the normalisations that read its output.
        count: C, of channels.
        before: modules whose work is done when the convolution begins, none within another: what they return
            does not depend on the channels.

    """

    convolution: str
    norms: tuple[str, ...]
    count: int
    before: tuple[str, ...]

    @property
    def ends(self) -> tuple[str, ...]:
        """The modules that return the channels' values."""
        return self.norms or (self.convolution,)


def find_channels(classifier: Classifier, images: NDArray[np.uint8], layer: str | None = None) -> Channels:
    """Return the channels of the ``nn.Conv2d`` called ``layer``; by default of the last that runs on ``images``.

    Args:
        classifier: any network; its layers are watched during one forward pass.
        images: (N, C, H, W) uint8, one will do.
        layer: a name as ``named_modules`` knows it.

    """
    modules = dict(classifier.model.named_modules())
    convolutions = [name for name, module in modules.items() if isinstance(module, nn.Conv2d)]
    _refuse(layer, modules, convolutions)
    calls: list[tuple[str, str]] = []
    results: dict[str, list[Tensor]] = {name: [] for name in convolutions}
    read: dict[str, list[str]] = {name: [] for name in convolutions}

    def entered(_: nn.Module, inputs: tuple[Any, ...], name: str) -> None:
        calls.append(("in", name))
        if isinstance(modules[name], NORMS):
            for convolution, outputs in results.items():
                if any(given is output for given in inputs for output in outputs):
                    read[convolution].append(name)

    def left(_: nn.Module, __: Any, output: Any, name: str) -> None:
        calls.append(("out" if isinstance(output, Tensor) else "no tensor", name))
        if name in results:
            results[name].append(output)

    with ExitStack() as stack:
        forward = stack.enter_context(classifier.watched())
        for name, module in modules.items():
            stack.callback(module.register_forward_pre_hook(partial(entered, name=name)).remove)
            stack.callback(module.register_forward_hook(partial(left, name=name)).remove)
        forward(classifier.scale(images))
    ran = [name for kind, name in calls if kind == "in" and name in results]
    if not ran or (layer is not None and layer not in ran):
        which = "no convolution" if layer is None else f"layer {layer!r} does not"
        raise UndoorError(f"{which} run in the forward pass; name a convolution that does, one of: {_listed(ran)}")
    chosen = layer or ran[-1]
    convolution = modules[chosen]
    assert isinstance(convolution, nn.Conv2d)  # noqa: S101 - as chosen
    if not isinstance(vars(convolution)["_parameters"].get("weight"), nn.Parameter):
        raise UndoorError(f"the weights of layer {chosen!r} are computed from others; remove its parametrisation first")
    norms = tuple(dict.fromkeys(read[chosen]))
    return Channels(chosen, norms, convolution.out_channels, _done_before(chosen, calls))


def _refuse(layer: str | None, modules: dict[str, nn.Module], convolutions: list[str]) -> None:
    if not convolutions:
        raise UndoorError(
            "the network has no convolution (nn.Conv2d): there are no channels to prune; "
            "of an ONNX network, give the PyTorch form"
        )
    if layer is not None and layer not in convolutions:
        what = f"is a {type(modules[layer]).__name__}, no convolution" if layer in modules else "does not exist"
        raise UndoorError(f"the layer {layer!r} {what}; the network's convolutions: {_listed(convolutions)}")


def _done_before(convolution: str, calls: list[tuple[str, str]]) -> tuple[str, ...]:
    """Return the outermost modules that run once, return a tensor, and are done when the convolution begins."""
    ran = [name for kind, name in calls if kind == "in"]
    done: list[str] = []
    for kind, name in calls[: calls.index(("in", convolution))]:
        if kind == "out" and ran.count(name) == 1:
            done = [inner for inner in done if not inner.startswith(f"{name}.")] + [name]
    return tuple(done)


def mean_activations(classifier: Classifier, channels: Channels, images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the mean activation (C,) of each channel over (N, C, H, W) uint8 images and over all positions.

    The activation is the channel's value, after its normalisation, where it is above zero: what ReLU leaves of
    it. In a residual network it is what the channel adds to the shortcut, which is what pruning takes away.
    """
    totals = torch.zeros(channels.count, dtype=torch.float64)
    positions = 0

    def add(_: nn.Module, __: Any, output: Tensor) -> None:
        nonlocal positions
        totals.add_(output.relu().float().sum((0, 2, 3)).cpu())
        positions += output[:, 0].numel()

    with ExitStack() as stack:
        forward = stack.enter_context(classifier.watched())
        for name in channels.ends:
            stack.callback(classifier.model.get_submodule(name).register_forward_hook(add).remove)
        for batch in classifier.batches(images):
            forward(batch)
    return (totals / positions).numpy()


def parameters_of(model: nn.Module, channels: Channels) -> Iterator[tuple[nn.Module, str]]:
    """Yield the parameters (C, …) that make the channels' values, as module and name.

    At zero, a channel is exactly zero, in training too: no statistics of a batch can revive it.
    """
    modules = [model.get_submodule(name) for name in channels.norms]
    # Where channels are normalised together, a convolution of zeros would change the statistics of the others.
    if not any(isinstance(module, nn.GroupNorm) for module in modules):
        modules.append(model.get_submodule(channels.convolution))
    for module in modules:
        yield from ((module, name) for name, _ in module.named_parameters(recurse=False))


def silence(model: nn.Module, channels: Channels, pruned: Sequence[int] | NDArray[np.int64]) -> None:
    """Set the channels at ``pruned`` to zero in the network's weights, in place."""
    rows = torch.as_tensor(np.asarray(pruned, dtype=np.int64))
    with torch.no_grad():
        for module, name in parameters_of(model, channels):
            getattr(module, name)[rows] = 0
        for norm in map(model.get_submodule, channels.norms):
            if isinstance(norm, nn.BatchNorm2d) and not norm.affine and norm.running_mean is not None:
                norm.running_mean[rows] = 0  # a channel of zeros then stays one


def decisions_along(
    classifier: Classifier,
    channels: Channels,
    order: NDArray[np.int64],
    images: NDArray[np.uint8],
    on_batch: Callable[[int, int], None] | None = None,
) -> NDArray[np.int64]:
    """Return the decisions (C + 1, N) with the first 0, 1, … C channels of ``order`` pruned.

    What comes before the convolution runs once a batch: its results are remembered.

    Args:
        classifier: not pruned; it stays as it is.
        channels: of a convolution in it.
        order: (C,), the channel that is pruned first comes first.
        images: (N, C, H, W) uint8.
        on_batch: called with the number of images that are done, and of all.

    """
    working = copy.deepcopy(classifier)
    kept = torch.ones(channels.count, 1, 1, device=working.device)
    decisions = np.empty((channels.count + 1, len(images)), np.int64)
    done = 0
    with ExitStack() as stack:
        forward = stack.enter_context(working.watched())
        for name in channels.ends:
            module = working.model.get_submodule(name)
            stack.callback(module.register_forward_hook(lambda _, __, output: output * kept.to(output.dtype)).remove)
        for batch in working.batches(images):
            kept.fill_(1)
            rows = slice(done, done + len(batch))
            with _remembered(working.model, channels.before) as remember:
                decisions[0, rows] = forward(batch)[1].argmax(1).cpu()
                remember()
                for count, channel in enumerate(order.tolist(), 1):
                    kept[channel] = 0
                    decisions[count, rows] = forward(batch)[1].argmax(1).cpu()
            done += len(batch)
            if on_batch is not None:
                on_batch(done, len(images))
    return decisions


@contextmanager
def _remembered(model: nn.Module, names: Sequence[str]) -> Iterator[Callable[[], None]]:
    """Yield a function: once it is called, the named modules return what they last returned instead of computing."""
    results: dict[str, Tensor] = {}
    modules = {name: model.get_submodule(name) for name in names}

    def keep(_: nn.Module, __: Any, output: Tensor, name: str) -> None:
        results[name] = output.clone()  # what follows may work in place

    def remember() -> None:
        for handle in handles:
            handle.remove()
        for name, module in modules.items():
            module.forward = lambda *_, name=name, **__: results[name].clone()

    handles = [module.register_forward_hook(partial(keep, name=name)) for name, module in modules.items()]
    try:
        yield remember
    finally:
        for handle in handles:
            handle.remove()
        for module in modules.values():
            vars(module).pop("forward", None)


def _listed(names: Sequence[str], most: int = 20) -> str:
    shown = list(dict.fromkeys(names))
    last = "… " if len(shown) > most else ""
    return last + (", ".join(repr(name) for name in shown[-most:]) or "none")

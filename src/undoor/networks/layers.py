"""What goes into the layers of any network, seen by hooks that are always removed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from undoor.errors import UndoorError

WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layers with weights: what goes into them are the activations of those before."""


def pooled(layer: nn.Module, inputs: Tensor) -> Tensor:
    """Return (N, t): the largest value of each feature over all places of a map, or over all tokens of a sequence.

    The features of a linear layer are the last dimension of its input, those of any other layer the second. The mean
    over the places would level out what a trigger of one pixel leaves in a few of them.
    """
    if inputs.ndim <= 2:
        return inputs
    return inputs.flatten(1, -2).amax(1) if isinstance(layer, nn.Linear) else inputs.flatten(2).amax(2)


@contextmanager
def watched_inputs(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Yield a dictionary that holds, after a forward pass, what went into each of the ``layers``, pooled to (N, t).

    A layer that runs more than once is seen as it ran last.

    Raises:
        UndoorError: the model has no layer of such a name; the message lists the layers with weights.

    """
    modules = dict(model.named_modules())
    for name in layers:
        if name not in modules or not name:
            candidates = ", ".join(repr(n) for n, module in modules.items() if isinstance(module, WEIGHTED))
            raise UndoorError(f"the model has no layer {name!r}; its layers with weights: {candidates or 'none'}")
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[name] = pooled(module, inputs[0]).float()

        return look

    handles = [modules[name].register_forward_pre_hook(watch(name)) for name in layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def deep_layers(model: nn.Module, forward: Callable[[], object], count: int) -> tuple[str, ...]:
    """Return the names of the last ``count`` layers with weights that run in ``forward``, the deepest last.

    The first layer that runs is left out: what goes into it is the image.
    """
    order: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda *_, name=name: order.append(name))
        for name, module in model.named_modules()
        if isinstance(module, WEIGHTED)
    ]
    try:
        with torch.inference_mode():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    deep = list(dict.fromkeys(reversed([name for name in order if name != order[0]])))[:count]
    if not deep:
        raise UndoorError(
            "the model has no layer with weights behind its first one; name the layers to watch "
            "(an ONNX network has 'head' alone)"
        )
    return tuple(reversed(deep))


def kept_for_gradients(model: nn.Module, images: Tensor) -> int:
    """Return the bytes that a forward pass on ``images`` keeps for the gradients, besides the weights."""
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = model(images)  # while it is there, no two of the tensors can have lain at one place
    del outputs
    return sum(kept.values())

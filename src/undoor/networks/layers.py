"""What goes into the layers of a network."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from undoor.errors import UndoorError
from undoor.networks.classifier import BATCH_SIZE, Classifier
from undoor.networks.hooks import hooked

WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layers with weights. The input of such a layer is the activations of the layers before it."""


def pooled(layer: nn.Module, inputs: Tensor) -> Tensor:
    """Return (N, t): the largest value of each feature over all positions of a map, or over all tokens of a sequence.

    The features of a linear layer are the last dimension of its input, those of any other layer the second dimension.
    The maximum is taken because a trigger of one pixel shows in a few positions only, and a mean would hide it.
    """
    if inputs.ndim <= 2:
        return inputs
    return inputs.flatten(1, -2).amax(1) if isinstance(layer, nn.Linear) else inputs.flatten(2).amax(2)


@contextmanager
def watched_inputs(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Yield a dictionary that holds, after a forward pass, the input of each of the ``layers``, pooled to (N, t).

    If a layer runs more than once, the input of its last run is held.

    Raises:
        UndoorError: the model has no layer of such a name; the message lists the layers with weights.

    """
    modules = dict(model.named_modules())
    for name in layers:
        if name not in modules or not name:
            candidates = ", ".join(repr(n) for n, module in modules.items() if isinstance(module, WEIGHTED))
            raise UndoorError(f"the model has no layer {name!r}; its layers with weights: {candidates or 'none'}")
    layer_inputs: dict[str, Tensor] = {}

    def keep(name: str, inputs: tuple[Any, ...]) -> None:
        layer_inputs[name] = pooled(modules[name], inputs[0]).float()

    with hooked(model, layers, before=keep):
        yield layer_inputs


def deep_layers(model: nn.Module, forward: Callable[[], object], count: int) -> tuple[str, ...]:
    """Return the names of the last ``count`` layers with weights that run in ``forward``, the deepest last.

    The first layer that runs is left out, because its input is the image.
    """
    order: list[str] = []
    weighted = [name for name, module in model.named_modules() if isinstance(module, WEIGHTED)]
    with hooked(model, weighted, before=lambda name, _: order.append(name)), torch.inference_mode():
        forward()
    deep = list(dict.fromkeys(reversed([name for name in order if name != order[0]])))[:count]
    if not deep:
        raise UndoorError(
            "the model has no layer with weights behind its first one; name the layers to watch "
            "(an ONNX network has 'head' alone)"
        )
    return tuple(reversed(deep))


def layer_outputs(
    classifier: Classifier,
    images: NDArray[np.uint8],
    layers: Sequence[str],
    batch_size: int = BATCH_SIZE,
    on_batch: Callable[[int, int], None] | None = None,
) -> tuple[list[NDArray[np.float32]], NDArray[np.float32]]:
    """Return the inputs of the L ``layers``, as L arrays (N, t), and the logits (N, K).

    Args:
        classifier: the network.
        images: (N, C, H, W) uint8.
        layers: names of layers; may be empty.
        batch_size: number of images in a forward pass.
        on_batch: called after every batch with the number of images that are done and the number of all images.

    Raises:
        UndoorError: there is no image; a layer does not exist or does not run; an input or the logits are not finite.

    """
    inputs: list[list[Tensor]] = [[] for _ in layers]
    logits: list[Tensor] = []
    done = 0
    with classifier.watched() as forward, watched_inputs(classifier.model, layers) as layer_inputs:
        for batch in classifier.batches(images, batch_size):
            layer_inputs.clear()
            logits.append(forward(batch)[1])
            for name, parts in zip(layers, inputs, strict=True):
                if name not in layer_inputs:
                    raise UndoorError(f"layer {name!r} does not run in the forward pass; watch another")
                parts.append(layer_inputs[name].clone())  # a view would keep its whole base in memory
            done += len(batch)
            if on_batch is not None:
                on_batch(done, len(images))
    if not done:
        raise UndoorError("there is no image to look at; give one or more")
    arrays = [torch.cat(parts).cpu().numpy() for parts in (logits, *inputs)]
    titles = ["the logits", *(f"the input of layer {name!r}" for name in layers)]
    for title, values in zip(titles, arrays, strict=True):
        if values.ndim != 2 or len(values) != done or not np.isfinite(values).all():
            raise UndoorError(f"no finite (N, t) array: {title}; watch another layer, or mend the model")
    return arrays[1:], arrays[0]

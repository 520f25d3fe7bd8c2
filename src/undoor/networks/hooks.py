"""Every hook on a network: no other module of undoor registers one, and all of them are removed again.

A batch of one image is computed as a batch of two equal images (``doubled_if_alone``), so that hooks see two rows.
``observed`` and ``given_rows`` hand out the rows of the images that were given.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

Before = Callable[[str, tuple[Any, ...]], None]
"""Takes the name of a module and the inputs it is called with; inputs that are given by keyword come last."""

After = Callable[[str, tuple[Any, ...], Any], Any]
"""Takes also the module's output. A result other than None replaces the output."""

_doubled: ContextVar[bool] = ContextVar("_doubled", default=False)


@contextmanager
def doubled_if_alone(images: Tensor) -> Iterator[Tensor]:
    """Yield the images (N, …), or a single image twice.

    Networks compute a single image with other kernels than a batch, and the last bits of the results differ. With at
    least two images in every batch, the results do not depend on the size of the batch.
    """
    token = _doubled.set(len(images) == 1)
    try:
        yield torch.cat([images, images]) if len(images) == 1 else images
    finally:
        _doubled.reset(token)


def given_rows(value: Any) -> Any:
    """Return the rows of a tensor that belong to the given images; anything but a tensor with rows is returned as is.

    Within ``doubled_if_alone`` these are the first half of the rows if the image was alone, and all rows otherwise.
    """
    if _doubled.get() and isinstance(value, Tensor) and value.ndim > 0:
        return value[: (len(value) + 1) // 2]
    return value


@contextmanager
def hooked(
    model: nn.Module, names: Iterable[str], *, before: Before | None = None, after: After | None = None
) -> Iterator[None]:
    """Call ``before`` and ``after`` around every run of the named modules.

    They receive the tensors themselves, in which a single image stands twice. This is for functions that replace an
    output or compare tensors by identity; every other function belongs into ``observed``.

    Args:
        model: the network.
        names: names of its modules as in ``named_modules``.
        before: called before a module runs.
        after: called after a module has run.

    """
    with ExitStack() as stack:
        for name in names:
            module = model.get_submodule(name)
            if before is not None:
                handle = module.register_forward_pre_hook(_before_hook(name, before), with_kwargs=True)
                stack.callback(handle.remove)
            if after is not None:
                handle = module.register_forward_hook(_after_hook(name, after), with_kwargs=True)
                stack.callback(handle.remove)
        yield


def _before_hook(name: str, before: Before) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    return lambda _, inputs, keywords: before(name, (*inputs, *keywords.values()))


def _after_hook(name: str, after: After) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Any]:
    return lambda _, inputs, keywords, output: after(name, (*inputs, *keywords.values()), output)


@contextmanager
def observed(
    model: nn.Module, names: Iterable[str], *, before: Before | None = None, after: After | None = None
) -> Iterator[None]:
    """Call ``before`` and ``after`` around every run of the named modules, with the rows of the given images alone.

    Args:
        model: the network.
        names: names of its modules as in ``named_modules``.
        before: called before a module runs.
        after: called after a module has run; its result is ignored.

    """

    def observe_inputs(name: str, inputs: tuple[Any, ...]) -> None:
        if before is not None:
            before(name, tuple(map(given_rows, inputs)))

    def observe_output(name: str, inputs: tuple[Any, ...], output: Any) -> None:
        if after is not None:
            after(name, tuple(map(given_rows, inputs)), given_rows(output))

    with hooked(model, names, before=observe_inputs, after=observe_output):
        yield


def bytes_kept_for_gradients(model: nn.Module, images: Tensor) -> int:
    """Return the bytes that a forward pass on ``images`` keeps for the gradients, besides the weights."""
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def record(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        outputs = model(images)  # the graph keeps its tensors alive, so that no two share an address
    del outputs
    return sum(kept.values())

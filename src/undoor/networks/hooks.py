"""Every hook on a network: no other module of undoor registers one, and all of them are removed again."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

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
    """Return the rows of a tensor that belong to the given images; other values are returned as they are.

    Within ``doubled_if_alone`` these are the first half of the rows if the image was alone, and all rows otherwise.
    """
    if _doubled.get() and isinstance(value, Tensor) and value.ndim > 0:
        return value[: (len(value) + 1) // 2]
    return value


@contextmanager
def hooked(
    model: nn.Module,
    names: Iterable[str],
    *,
    before: Callable[[str, tuple[Any, ...]], None] | None = None,
    after: Callable[[str, tuple[Any, ...], Any], Any] | None = None,
    every_row: bool = False,
) -> Iterator[None]:
    """Call ``before`` and ``after`` around every run of the named modules.

    Args:
        model: the network.
        names: names of its modules as in ``named_modules``.
        before: takes the name of a module and its inputs; inputs that are given by keyword come last.
        after: takes also the module's output.
        every_row: hand out the tensors themselves, in which a single image stands twice, instead of the rows of the
            given images. A result of ``after`` other than None then replaces the module's output.

    """

    def rows(*values: Any) -> tuple[Any, ...]:
        return values if every_row else tuple(map(given_rows, values))

    def enter(name: str, _: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if before is not None:
            before(name, rows(*inputs, *keywords.values()))

    def leave(name: str, _: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> Any:
        result = None if after is None else after(name, rows(*inputs, *keywords.values()), *rows(output))
        return result if every_row else None

    with ExitStack() as stack:
        for name in names:
            module = model.get_submodule(name)
            stack.callback(module.register_forward_pre_hook(partial(enter, name), with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(partial(leave, name), with_kwargs=True).remove)
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

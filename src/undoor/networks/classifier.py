"""Any network as a classifier with a penultimate layer."""

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from undoor.errors import UndoorError, first_line
from undoor.networks.architectures import Normalise
from undoor.storage.mapped import at_once

BATCH_SIZE = 128
"""Images a forward pass. On a CPU larger ones are slower: their activations are mapped into memory anew each time."""


class Classifier:
    """A network in evaluation mode, its device, and the layer whose input are the penultimate features.

    Args:
        model: takes (N, C, H, W) float images in [0, 1] and returns (N, K) logits, or an object that holds them as
            its attribute ``logits``, as the models of ``transformers`` do.
        layer: name of the module whose input is taken as features; by default the last ``nn.Linear`` that
            runs in the forward pass. An input with more than two dimensions is averaged over all but the
            first two.
        mean: per channel, subtracted from the images first, for networks that do not normalise themselves.
        std: per channel, divided by next.
        device: where to compute; by default an accelerator if there is one.

    """

    def __init__(
        self,
        model: nn.Module,
        *,
        layer: str | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        device: str | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise UndoorError(f"the model is a {type(model).__name__}; give a torch.nn.Module")
        if (mean is None) != (std is None):
            raise UndoorError("only one of mean and std is given; give both or neither")
        self.device = torch.device(device or default_device())
        self.model = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.layer = layer
        self._mean = None if mean is None else torch.tensor(mean, device=self.device).view(-1, 1, 1)
        self._std = None if std is None else torch.tensor(std, device=self.device).view(-1, 1, 1)
        self._candidates = self._modules_named(layer)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel by way of the processor's memory: the device here may not be there where the classifier arrives."""
        model = self.model if self.device.type == "cpu" else copy.deepcopy(self.model).cpu()
        mean, std = (None if v is None else v.flatten().tolist() for v in (self._mean, self._std))
        return _arrived, (model, self.layer, mean, std)

    def _modules_named(self, layer: str | None) -> dict[str, nn.Module]:
        modules = dict(self.model.named_modules())
        linear: dict[str, nn.Module] = {
            name: module for name, module in modules.items() if isinstance(module, nn.Linear)
        }
        if layer is not None:
            if layer not in modules:
                raise UndoorError(f"the model has no layer {layer!r}; its linear layers: {_listed(linear)}")
            return {layer: modules[layer]}
        if not linear:
            leaves = [name for name, module in modules.items() if not list(module.children())]
            raise UndoorError(
                "the model has no linear layer; name the layer whose input are the features, "
                f"one of: {_listed(leaves[-8:])}"
            )
        return linear

    @contextmanager
    def watched(self) -> Iterator[Callable[[Tensor], tuple[Tensor, Tensor]]]:
        """Yield a function: float images (N, C, H, W) in [0, 1] to penultimate features (N, t) and logits (N, K).

        Within the context the network is in evaluation mode and its layers are watched; both end with it.
        """
        calls: list[tuple[str, Any, Any]] = []
        handles = [
            module.register_forward_hook(
                lambda _, inputs, named, output, name=name: calls.append(
                    (name, next(iter((*inputs, *named.values())), None), output)
                ),
                with_kwargs=True,
            )
            for name, module in self._candidates.items()
        ]
        try:
            with self._evaluating(), torch.inference_mode():
                yield lambda images: self._forward(images, calls)
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Put the network into evaluation mode; every part of it gets its own mode back."""
        modes = {module: module.training for module in self.model.modules()}
        self.model.eval()
        try:
            yield
        finally:
            for module, training in modes.items():
                module.training = training

    def _forward(self, images: Tensor, calls: list[tuple[str, Any, Any]]) -> tuple[Tensor, Tensor]:
        if len(images) == 1:
            # A lone image is computed by other kernels, whose last bits differ: a batch of any size gives the same.
            features, logits = self._forward(torch.cat([images, images]), calls)
            return features[:1], logits[:1]
        calls.clear()
        logits = self._logits(images)
        if not calls:
            raise UndoorError(
                f"no layer of {_listed(self._candidates)} runs in the forward pass; name the layer to use"
            )
        name, features, output = calls[-1]
        if not isinstance(features, Tensor) or features.ndim < 2:
            raise UndoorError(f"the input of layer {name!r} is no tensor of shape (N, …); name another layer")
        if self.layer is None and output.shape != logits.shape:
            raise UndoorError(
                f"the last linear layer that runs ({name}) does not yield the {logits.shape[1]} logits; "
                f"name the layer whose input are the features, one of: {_listed(dict.fromkeys(c[0] for c in calls))}"
            )
        if features.ndim > 2:
            features = features.flatten(2).mean(2)
        return features.float(), logits.float()

    def _logits(self, images: Tensor) -> Tensor:
        try:
            if self._mean is not None and self._std is not None:
                for name, values in (("mean", self._mean), ("std", self._std)):
                    if len(values) not in (1, images.shape[1]):
                        raise UndoorError(
                            f"{name} has {len(values)} numbers, the images have {images.shape[1]} channels; give one "
                            "number for each, or one for all"
                        )
                images = (images - self._mean) / self._std
            logits = self.model(images)
            logits = getattr(logits, "logits", logits)
        except (RuntimeError, ValueError, TypeError) as error:
            raise UndoorError(
                f"the model fails on images of shape {tuple(images.shape)}: {first_line(error)}; "
                "check --image-size and the number of channels"
            ) from error
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise UndoorError(
                "the model does not return one tensor of shape (N, classes), nor logits that are one; "
                "wrap it so that it does"
            )
        return logits

    @contextmanager
    def frozen(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """Yield a function: float images (N, C, H, W) in [0, 1] to logits (N, K), with gradients to the images.

        Within the context the network is in evaluation mode and none of its parameters takes a gradient; after it
        every part is as it was.
        """
        learned = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.model.requires_grad_(False)
        try:
            with self._evaluating():
                yield lambda images: self._logits(images).float()
        finally:
            for parameter in learned:
                parameter.requires_grad_(True)

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the penultimate features (N, t) and the logits (N, K) of float images in [0, 1]."""
        with self.watched() as forward:
            return forward(images)

    def scale(self, images: NDArray[np.uint8]) -> Tensor:
        """Return (N, C, H, W) uint8 images as floats in [0, 1] on the device."""
        return _unit(torch.tensor(images, device=self.device))

    def batches(self, images: NDArray[np.uint8], batch_size: int = BATCH_SIZE) -> Iterator[Tensor]:
        """Yield (N, C, H, W) uint8 images in batches, as floats in [0, 1] on the device; large images fewer at once.

        A CUDA device is sent each batch from pinned memory while it still computes on the one before. On a CPU
        nothing is to be gained: the copy of a batch costs less than a thousandth of a forward pass.
        """
        step = at_once(images.shape, batch_size)
        parts = (images[start : start + step] for start in range(0, len(images), step))
        if self.device.type != "cuda":
            yield from map(self.scale, parts)
            return
        aside = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        here = torch.cuda.current_stream(self.device)

        def send(part: NDArray[np.uint8]) -> Tensor:
            with torch.cuda.stream(aside):
                return torch.tensor(part).pin_memory().to(self.device, non_blocking=True)

        sent = map(send, parts)
        following = next(sent, None)
        while following is not None:
            pixels = following
            here.wait_stream(aside)
            following = next(sent, None)
            pixels.record_stream(here)  # else its memory could be sent to again while it is read
            yield _unit(pixels)

    def decide(self, images: NDArray[np.uint8], batch_size: int = BATCH_SIZE) -> NDArray[np.int64]:
        """Return the decisions (N,) on (N, C, H, W) uint8 images."""
        with self.watched() as forward:
            decisions = [forward(batch)[1].argmax(1) for batch in self.batches(images, batch_size)]
        return torch.cat(decisions).cpu().numpy()

    def whole(self) -> nn.Module:
        """Return network and scaling as one module that takes float images in [0, 1]; it shares the weights."""
        model: nn.Module = self.model
        if self._mean is None or self._std is None:
            return model
        return nn.Sequential(Normalise(self._mean, self._std), model)

    def fingerprint(self) -> str:
        """Return a hash of all that features and logits depend on: weights, layer, scaling, device and precision."""
        digest = hashlib.blake2b(digest_size=16)
        scaling = [None if values is None else values.flatten().tolist() for values in (self._mean, self._std)]
        precision = (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)
        described = (torch.__version__, self.device.type, precision, self.layer, scaling, str(self.model))
        digest.update(repr(described).encode())
        for name, tensor in (*self.model.named_parameters(), *self.model.named_buffers()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()


def _unit(pixels: Tensor) -> Tensor:
    return pixels.contiguous(memory_format=torch.channels_last).float() / 255


def _arrived(model: nn.Module, layer: str | None, mean: list[float] | None, std: list[float] | None) -> Classifier:
    return Classifier(model, layer=layer, mean=mean, std=std)


def default_device() -> str:
    """Return "cuda" or "mps" if there is such an accelerator, else "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"

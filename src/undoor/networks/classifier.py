"""Any network as a classifier with penultimate features."""

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from undoor.errors import UndoorError, first_line
from undoor.networks.architectures import Normalise
from undoor.networks.hooks import doubled_if_alone, given_rows, hooked
from undoor.storage.mapped import images_at_once

BATCH_SIZE = 128
"""Default number of images in a forward pass.

Larger batches are slower on a CPU, because the memory of their activations is mapped anew for each of them.
"""

_Calls = list[tuple[str, Any, Any]]  # name, first input and output of each layer that has run


class Classifier:
    """A network on its device, with the layer whose input is taken as the penultimate features.

    The network runs in evaluation mode only.

    Args:
        model: takes (N, C, H, W) float images in [0, 1] and returns (N, K) logits, or an object that holds them as
            its attribute ``logits``, as the models of ``transformers`` do.
        layer: name of the module whose input is taken as features. By default this is the last ``nn.Linear`` that
            runs in the forward pass. An input with more than two dimensions is averaged over all but the first two.
        mean: for each channel, the number that is subtracted from the images first, for networks that do not
            normalise images themselves.
        std: for each channel, the number by which the images are then divided.
        device: where to compute; by default on an accelerator if there is one.

    Raises:
        UndoorError: the model is no ``nn.Module``, it has no such layer or no linear layer, or only one of mean and
            std is given.

    Examples:
        >>> import torch, undoor
        >>> layers = torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)
        >>> classifier = undoor.Classifier(torch.nn.Sequential(*layers), mean=[0.5], std=[0.25])
        >>> features, logits = classifier.features_and_logits(torch.rand(5, 1, 8, 8, device=classifier.device))
        >>> tuple(features.shape), tuple(logits.shape)
        ((5, 8), (5, 3))

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
        self._candidates = _candidate_layers(self.model, layer)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy the network by way of the CPU: where the copy arrives, there may be no such device."""
        model = self.model if self.device.type == "cpu" else copy.deepcopy(self.model).cpu()
        mean, std = (None if v is None else v.flatten().tolist() for v in (self._mean, self._std))
        return partial(Classifier, layer=self.layer, mean=mean, std=std), (model,)

    @contextmanager
    def watched(self) -> Iterator[Callable[[Tensor], tuple[Tensor, Tensor]]]:
        """Yield a function from float images (N, C, H, W) in [0, 1] to penultimate features (N, t) and logits (N, K).

        The function can be called until the context ends. Until then, the network is in evaluation mode.
        """
        calls: _Calls = []

        def record(name: str, inputs: tuple[Any, ...], output: Any) -> None:
            calls.append((name, next(iter(inputs), None), output))

        hooks = hooked(self.model, self._candidates, after=record, every_row=True)
        with hooks, self._evaluating(), torch.inference_mode():
            yield partial(self._forward, calls)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Put the network into evaluation mode; afterwards each of its modules has its former mode."""
        modes = {module: module.training for module in self.model.modules()}
        self.model.eval()
        try:
            yield
        finally:
            for module, training in modes.items():
                module.training = training

    def _forward(self, calls: _Calls, images: Tensor) -> tuple[Tensor, Tensor]:
        calls.clear()
        with doubled_if_alone(images) as batch:
            logits = self._logits(batch)
            return given_rows(self._features(calls, logits)), given_rows(logits.float())

    def _features(self, calls: _Calls, logits: Tensor) -> Tensor:
        """Return the input of the last candidate layer that has run, as (N, t) float32."""
        if not calls:
            raise UndoorError(
                f"no layer of {_listed(self._candidates)} runs in the forward pass; name the layer to use"
            )
        name, features, output = calls[-1]
        if not isinstance(features, Tensor) or features.ndim < 2:
            raise UndoorError(f"the input of layer {name!r} is no tensor of shape (N, …); name another layer")
        if self.layer is None and output.shape != logits.shape:
            names = _listed(dict.fromkeys(call[0] for call in calls))
            raise UndoorError(
                f"the last linear layer that runs ({name}) does not yield the {logits.shape[1]} logits; "
                f"name the layer whose input are the features, one of: {names}"
            )
        return (features.flatten(2).mean(2) if features.ndim > 2 else features).float()

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
        """Yield a function from float images (N, C, H, W) in [0, 1] to logits (N, K), with gradients to the images.

        Until the context ends, the network is in evaluation mode and none of its parameters takes a gradient.
        Afterwards it is as it was before.
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
        """Return the penultimate features (N, t) and the logits (N, K) of (N, C, H, W) float images in [0, 1]."""
        with self.watched() as forward:
            return forward(images)

    def scale(self, images: NDArray[np.uint8]) -> Tensor:
        """Return (N, C, H, W) uint8 images as floats in [0, 1] on the device."""
        return _scaled(torch.tensor(images, device=self.device))

    def batches(self, images: NDArray[np.uint8], batch_size: int = BATCH_SIZE) -> Iterator[Tensor]:
        """Yield (N, C, H, W) uint8 images in batches, as floats in [0, 1] on the device.

        Batches of large images are smaller than ``batch_size``. Each batch is sent from pinned memory to a CUDA device
        while that still computes on the batch before. On a CPU this would gain nothing: the copy of a batch takes less
        than a thousandth of the time of a forward pass.
        """
        size = images_at_once(images.shape, batch_size)
        parts = (images[start : start + size] for start in range(0, len(images), size))
        if self.device.type != "cuda":
            yield from map(self.scale, parts)
            return
        copying = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        computing = torch.cuda.current_stream(self.device)

        def send(part: NDArray[np.uint8]) -> Tensor:
            with torch.cuda.stream(copying):
                return torch.tensor(part).pin_memory().to(self.device, non_blocking=True)

        sent = map(send, parts)
        following = next(sent, None)
        while following is not None:
            pixels = following
            computing.wait_stream(copying)
            following = next(sent, None)
            pixels.record_stream(computing)  # otherwise its memory could be overwritten while it is read
            yield _scaled(pixels)

    def decide(self, images: NDArray[np.uint8], batch_size: int = BATCH_SIZE) -> NDArray[np.int64]:
        """Return the decisions (N,) on (N, C, H, W) uint8 images: the class with the largest logit."""
        with self.watched() as forward:
            decisions = [forward(batch)[1].argmax(1) for batch in self.batches(images, batch_size)]
        return torch.cat(decisions).cpu().numpy()

    def whole(self) -> nn.Module:
        """Return scaling and network as one module that takes float images in [0, 1]; it shares the weights."""
        model: nn.Module = self.model
        if self._mean is None or self._std is None:
            return model
        return nn.Sequential(Normalise(self._mean, self._std), model)

    def fingerprint(self) -> str:
        """Return a hash of everything that determines features and logits.

        These are the weights, the layer, the scaling, the device, the precision and the version of PyTorch.
        """
        digest = hashlib.blake2b(digest_size=16)
        scaling = [None if values is None else values.flatten().tolist() for values in (self._mean, self._std)]
        precision = (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)
        described = (torch.__version__, self.device.type, precision, self.layer, scaling, str(self.model))
        digest.update(repr(described).encode())
        for name, tensor in (*self.model.named_parameters(), *self.model.named_buffers()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()


def _candidate_layers(model: nn.Module, layer: str | None) -> tuple[str, ...]:
    """Return the names of the modules whose input may be the features: ``layer``, or all linear layers."""
    modules = dict(model.named_modules())
    linear = tuple(name for name, module in modules.items() if isinstance(module, nn.Linear))
    if layer is not None:
        if layer not in modules:
            raise UndoorError(f"the model has no layer {layer!r}; its linear layers: {_listed(linear)}")
        return (layer,)
    if not linear:
        leaves = [name for name, module in modules.items() if not list(module.children())]
        raise UndoorError(
            "the model has no linear layer; name the layer whose input are the features, "
            f"one of: {_listed(leaves[-8:])}"
        )
    return linear


def _scaled(pixels: Tensor) -> Tensor:
    return pixels.contiguous(memory_format=torch.channels_last).float() / 255


def default_device() -> str:
    """Return "cuda" or "mps" if there is such an accelerator, else "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"

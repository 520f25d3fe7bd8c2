"""The steps of one training.

On a GPU a step can be captured. It is then a single launch of a CUDA graph, from the images to the new weights.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name the field uses
from numpy.typing import NDArray
from torch import Tensor, nn

from undoor.networks.recipes import Recipe

WARM_UP = 3
"""Number of steps before a capture. In them the optimiser allocates its state, and kernels are compiled and chosen."""


def draw_epoch(labels: Tensor, size: tuple[int, int], recipe: Recipe, epoch: int) -> Tensor:
    """Draw all random numbers of an epoch. They depend on the recipe's seed and the number of the epoch alone.

    Args:
        labels: (N,) int64.
        size: height and width of the images, in pixels.
        recipe: provides the seed, the batch size B and whether images are augmented.
        epoch: counted from 0.

    Returns:
        (steps, 5, B) int64: for each image of each step its row in the training set, its label, its shift down and to
        the right in pixels, and 1 if it is flipped. Without augmentation only the order of the rows is drawn.

    """
    generator = torch.Generator().manual_seed(recipe.seed * 100_003 + epoch)
    batch = min(recipe.batch_size, len(labels))
    # A last, smaller batch is left out: it would be compiled anew, and is too small for batch statistics.
    steps = len(labels) // batch
    rows = torch.randperm(len(labels), generator=generator)[: steps * batch]
    draws = [rows, labels[rows], *torch.zeros(3, len(rows), dtype=torch.int64)]
    if recipe.augment:
        reaches = (size[0] // 10, size[1] // 10, None)
        for column, reach in enumerate(reaches, 2):
            low, high = (0, 2) if reach is None else (-reach, reach + 1)
            draws[column] = torch.randint(low, high, (len(rows),), generator=generator)
    return torch.stack([column.view(steps, batch) for column in draws], 1)


def augment(images: Tensor, rows: Tensor, down: Tensor, right: Tensor, flipped: Tensor) -> Tensor:
    """Return ``images[rows]``, each shifted by whole pixels and then mirrored where ``flipped``, in a single gather.

    The pixels that move in at a border repeat it, as in the Keras example that the paper's settings follow.

    Args:
        images: (N, C, H, W).
        rows: (B,) int64.
        down: (B,) int64, in pixels: row i of the result is row i + down of the image.
        right: (B,) int64, in pixels: column j of the result is column j + right of the image.
        flipped: (B,) bool.

    """
    height, width = images.shape[2:]
    y = (torch.arange(height, device=images.device) + down[:, None]).clamp(0, height - 1)
    x = (torch.arange(width, device=images.device) + right[:, None]).clamp(0, width - 1)
    x = torch.where(flipped[:, None], x.flip(1), x)
    # Indexing with tensors on both sides of a slice puts the channels last.
    return images[rows[:, None, None], :, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)


def loss_and_tally(model: nn.Module, pool: Tensor, drawn: Tensor, augmented: bool, bf16: bool) -> tuple[Tensor, Tensor]:
    """Return the loss of a batch, and a tensor of two values: the same loss and the number of right decisions.

    This one function holds everything of a step up to the loss, so that ``torch.compile`` can fuse it.

    Args:
        model: takes float images in [0, 1].
        pool: (N, C, H, W) uint8, the images from which the batch is gathered.
        drawn: (5, B) int64, one step of ``draw_epoch``.
        augmented: whether the images are shifted and flipped as drawn.
        bf16: whether the forward pass runs under bf16 autocast.

    """
    rows, labels, down, right, flipped = drawn.unbind(0)
    images = augment(pool, rows, down, right, flipped > 0) if augmented else pool[rows]
    images = images.to(memory_format=torch.channels_last)
    # The cache of autocast is off: a weight that is cast during a capture must be cast again in every replay.
    with torch.autocast(pool.device.type, torch.bfloat16, enabled=bf16, cache_enabled=False):
        logits = model(images.float() / 255)
    loss = F.cross_entropy(logits.float(), labels)
    hits = (logits.detach().argmax(1) == labels).float().sum()
    return loss, torch.stack([loss.detach(), hits])


@cache
def compiled_loss_and_tally() -> Callable[..., tuple[Tensor, Tensor]]:
    """Return ``loss_and_tally`` compiled; networks of the same structure share the compiled code.

    Shapes are compiled as constants. A second batch size in the same process is compiled anew, because kernels for
    symbolic sizes are slower.
    """
    return torch.compile(loss_and_tally, dynamic=False)


class Training:
    """A network, its optimiser and its data, advanced step by step; all of it belongs to the current stream.

    Args:
        model: on ``device``, in training mode.
        recipe: how to train.
        images: (N, C, H, W) uint8: a tensor on ``device``, or an array from which each batch is copied to it.
        labels: (N,) int64, on the CPU.
        device: where to compute.
        bf16: whether the forward pass runs under bf16 autocast; weights and batch statistics stay float32.
        compiled: whether ``loss_and_tally`` is compiled.

    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        images: Tensor | NDArray[np.uint8],
        *,
        labels: Tensor,
        device: torch.device,
        bf16: bool,
        compiled: bool,
    ) -> None:
        self.model = model
        self._counters = _take_counters(model)
        self._loss_and_tally = compiled_loss_and_tally() if compiled else loss_and_tally
        self._recipe = recipe
        self._labels = labels
        self._device = device
        self._bf16 = bf16
        self._size = (images.shape[2], images.shape[3])
        batch = min(recipe.batch_size, len(labels))
        self.steps = len(labels) // batch

        # If each batch is gathered on the CPU, the batch is the whole pool from which a step gathers its images.
        self._host_images = None if isinstance(images, Tensor) else images
        pool = images if isinstance(images, Tensor) else torch.empty(batch, *images.shape[1:], dtype=torch.uint8)
        self._pool = pool.to(device)
        if compiled and self._host_images is None:
            # The same compiled code then serves sets of any number of images.
            torch._dynamo.mark_dynamic(self._pool, 0)
        self._host_rows = torch.empty(0)
        self._draws = torch.zeros(self.steps, 5, batch, dtype=torch.int64, device=device)
        self._cursor = torch.zeros(1, dtype=torch.int64, device=device)
        self._tally = torch.zeros(2, device=device)  # the sum of the losses and the number of right decisions

        # A captured update reads its learning rate from the device. On a CPU, plain numbers are exact and cheaper.
        self._rates: list[float] = []
        self._device_rates = torch.zeros(self.steps, device=device) if device.type == "cuda" else None
        self._rate = torch.zeros((), device=device)
        self._optimizer = self._new_optimizer()
        self._graph: torch.cuda.CUDAGraph | None = None

    def _new_optimizer(self) -> torch.optim.Optimizer:
        recipe, cuda = self._recipe, self._device.type == "cuda"
        parameters, fused = self.model.parameters(), True if cuda else None
        rate = self._rate if cuda else recipe.learning_rate
        decay = recipe.weight_decay
        if recipe.optimizer == "adam":
            # If capturable, Adam counts its steps on the device.
            return torch.optim.Adam(parameters, rate, weight_decay=decay, fused=fused, capturable=cuda)
        return torch.optim.SGD(parameters, rate, momentum=0.9, weight_decay=decay, nesterov=True, fused=fused)

    def draw(self, epoch: int) -> Tensor:
        """Draw the random numbers of an epoch on the CPU; the device may still compute the epoch before."""
        return draw_epoch(self._labels, self._size, self._recipe, epoch)

    def begin(self, epoch: int, draws: Tensor) -> None:
        """Prepare the first step of an epoch, counted from 0, with the random numbers of this epoch."""
        progress = ((epoch + step / self.steps) / self._recipe.epochs for step in range(self.steps))
        self._rates = [self._recipe.rate(share) for share in progress]
        if self._device_rates is not None:
            self._device_rates.copy_(torch.tensor(self._rates))
        self._draws.copy_(draws)
        if self._host_images is not None:
            self._host_rows = draws[:, 0]
            self._draws[:, 0] = torch.arange(draws.shape[2], device=self._device)
        self._cursor.zero_()
        self._tally.zero_()

    def advance(self, step: int) -> None:
        """Take a step of the epoch, counted from 0, each once and in order. On a GPU this only launches the step."""
        if self._host_images is not None:
            # The memory is pageable and therefore read before this returns: the next batch cannot overtake it.
            self._pool.copy_(torch.from_numpy(self._host_images[self._host_rows[step].numpy()]))
        if self._device_rates is None:
            self._set_rate(self._rates[step])
        if self._graph is None:
            self._compute()
        else:
            self._graph.replay()

    def tally(self) -> tuple[float, float]:
        """Return the sum of the losses and the number of right decisions of the epoch; this waits for the device."""
        losses, hits = self._tally.tolist()
        return losses, hits

    def state(self) -> dict[str, Any]:
        """Return a copy, on the device, of everything that a step changes and an epoch does not reset."""
        moments = self._optimizer.state_dict()["state"]
        return {
            "model": {name: tensor.clone() for name, tensor in self.model.state_dict().items()},
            "optimizer": {"state": {i: {k: tensor.clone() for k, tensor in v.items()} for i, v in moments.items()}},
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a state, which may come from another kind of device. This cannot follow ``capture``."""
        weights = self.model.state_dict()
        # Checkpoints of earlier versions also hold the counters that ``_take_counters`` removes.
        saved = {
            name: value
            for name, value in state["model"].items()
            if name in weights or not name.endswith(".num_batches_tracked")
        }
        if {name: v.shape for name, v in saved.items()} != {name: v.shape for name, v in weights.items()}:
            raise ValueError("the weights are of another network")
        for name, value in weights.items():
            value.copy_(saved[name])
        # The settings remain those of this device. Loading replaces the learning rate by a copy, so it is set again.
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
        if self._device_rates is not None:
            self._set_rate(self._rate)

    def put_back_counters(self, batches: int = 0) -> None:
        """Give the batch norms their counters back, increased by the number of batches that they have seen."""
        for module, counter in self._counters.items():
            module.num_batches_tracked = counter + batches
        self._counters = {}

    def capture(self) -> None:
        """Record a step as a CUDA graph on the current stream, which must not be the default stream."""
        self.warm_up()
        graph = torch.cuda.CUDAGraph()
        # The stream is that of the warm-up. Its workspaces exist, and gradients accumulate on the stream of their first
        # use.
        with _no_garbage_collection(), torch.cuda.graph(graph, stream=torch.cuda.current_stream(self._device)):
            self._compute()
        self._graph = graph

    def warm_up(self) -> None:
        """Take a few steps and undo them in place, so that the tensors that a graph will hold are the final ones."""
        before = self.state()
        for _ in range(WARM_UP):
            self._cursor.zero_()
            self._compute()
        for name, tensor in self.model.state_dict().items():
            tensor.copy_(before["model"][name])
        moments_before = before["optimizer"]["state"]
        for index, moments in self._optimizer.state_dict()["state"].items():
            for name, tensor in moments.items():
                # Before its first step, the moments of Adam and the momentum of SGD are zero.
                if index in moments_before:
                    tensor.copy_(moments_before[index][name])
                else:
                    tensor.zero_()
        # Gradients that are allocated during the capture lie in the graph's memory, where every replay overwrites them.
        self._optimizer.zero_grad(set_to_none=True)

    def _compute(self) -> None:
        # All of this is captured: it works on tensors of the device alone and never waits for one.
        drawn = self._draws.index_select(0, self._cursor)[0]
        loss, tally = self._loss_and_tally(self.model, self._pool, drawn, self._recipe.augment, self._bf16)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if self._device_rates is not None:
            self._rate.copy_(self._device_rates.index_select(0, self._cursor)[0])
        self._optimizer.step()
        self._tally += tally
        self._cursor += 1

    def _set_rate(self, rate: float | Tensor) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = rate


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keep Python from freeing tensors of the device, which would end a capture."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _take_counters(model: nn.Module) -> dict[nn.Module, Tensor]:
    """Remove the counters of batches from the batch norms that never read them, and return these counters.

    A batch norm with a fixed momentum never reads its counter. On a GPU, each counter would cost a small kernel a step.
    """
    counters: dict[nn.Module, Tensor] = {}
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.momentum is not None:
            counter = module.num_batches_tracked
            if counter is not None:
                counters[module] = counter
                module.num_batches_tracked = None
    return counters

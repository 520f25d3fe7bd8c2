"""Fit a victim: the network an unsuspecting user would have trained on the set."""

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from undoor.data.dataset import Dataset
from undoor.errors import UndoorError, first_line
from undoor.networks.architectures import Normalise, build_network, default_network
from undoor.networks.checkpoint import Checkpoint
from undoor.networks.classifier import default_device
from undoor.networks.hooks import bytes_kept_for_gradients
from undoor.networks.recipes import PRESETS, Recipe
from undoor.networks.steps import Training
from undoor.networks.turns import take_turns
from undoor.safe.limits import memory
from undoor.storage.mapped import at_once

COMPILE_PIXELS = 4e8
"""Trained pixels (images × epochs × H × W) from which a tenth saved on each step outweighs torch.compile's own time."""

STEPS_UNWATCHED = 100
"""Steps on a GPU between two reports: for each the processor has to wait for the device."""

UNASKED = 1000
"""Times its images that a step may take on a CPU before that is found out: ResNet-20 takes 120 times."""

SECONDS_UNSAVED = 60.0
"""Seconds of a training on a GPU between two checkpoints: an epoch there can take less time than writing it."""


@dataclass(frozen=True)
class Step:
    """What is known after a training step: counted from 1, running means over the epoch."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    accuracy: float


@dataclass(frozen=True, eq=False)
class Job:
    """What ``train`` is asked for once, and ``train_many`` several times.

    Args:
        dataset: with at least two classes.
        recipe: how to train.
        network: a name from ``undoor.networks.architectures``, or a module that returns as many logits as there are
            classes (it is trained in place, so every job needs its own); by default what fits the size of the
            images.
        checkpoint: a file that is written after every epoch but the last; on a GPU only when the last one is
            ``SECONDS_UNSAVED`` old, and when the training ends by an exception. If it exists, training resumes
            from it, to the same result as an undisturbed run.

    """

    dataset: Dataset
    recipe: Recipe = PRESETS["fast"]
    network: str | nn.Module | None = None
    checkpoint: Path | None = None


class DivergedError(UndoorError):
    """A training whose loss is no longer a number."""


Trained = nn.Module | DivergedError
"""How a training ends: with a network, in evaluation mode and on the CPU, or with the error that ended it alone."""


def succeeded(trained: Trained) -> nn.Module:
    """Return the network that a training ended with, or raise the error that it ended with."""
    if isinstance(trained, DivergedError):
        raise trained
    return trained


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
        dataset: as in ``Job``, like the next three.
        recipe: how.
        network: a name, a module or by default what fits the images.
        checkpoint: the file from which an interrupted training resumes.
        overwrite: replace the checkpoint of another training instead of raising an error.
        device: where to compute; by default an accelerator if there is one.
        on_step: called after every step; on a GPU after every hundredth and the last of an epoch.

    Raises:
        DivergedError: if the loss is no longer a number.

    """
    report = None if on_step is None else lambda _, step: on_step(step)
    job = Job(dataset, recipe, network, checkpoint)
    return succeeded(train_many([job], overwrite=overwrite, device=device, on_step=report)[0])


def train_many(
    jobs: Sequence[Job],
    *,
    overwrite: bool = False,
    device: str | None = None,
    capture: bool = True,
    seconds: float | None = None,
    on_step: Callable[[int, Step], None] | None = None,
    on_end: Callable[[int, Trained], None] | None = None,
) -> list[Trained]:
    """Train several networks: together on a GPU, each on a stream of its own; one after another elsewhere.

    On a GPU the images lie in its memory, equal arrays once, as far as they take no more than half of it. A
    network given by name is captured: each of its steps is one launch of a CUDA graph. A module may do in its
    forward pass what cannot be captured, and is run as it is.

    Args:
        jobs: what to train.
        overwrite: replace the checkpoints of other trainings instead of raising an error.
        device: where to compute; by default an accelerator if there is one.
        capture: whether steps on a GPU are captured; if not, every kernel is launched by itself, which is slower.
        seconds: within which as many trainings as possible are to end, the first ones first. On a GPU their first
            steps are measured, and only so many go on together as will end in time. None is stopped when the
            seconds have passed: for that, let ``on_step`` raise an exception.
        on_step: called with the number of the job, from 0, after every step; on a GPU after every hundredth
            and the last of an epoch. If it raises, all trainings stop, and resume from their checkpoints.
        on_end: called with the number of the job and how it ended, as soon as it has ended.

    Returns:
        how each of the jobs ended, in their order. One that diverges does not end the others.

    """
    begun = time.monotonic()
    for job in jobs:
        job.dataset.require_classes()
    place = torch.device(device or default_device())
    on_gpu = place.type == "cuda"
    if on_gpu:
        # How many streams run at once; CUDA reads it when it is first used.
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")
    held = _held_images(jobs, place)
    with ExitStack() as stack:
        runs = []
        for number, job in enumerate(jobs):
            images = held.get(id(job.dataset.images), job.dataset.images)
            checkpoint = None
            if job.checkpoint is not None:
                pause = SECONDS_UNSAVED if on_gpu else 0.0
                checkpoint = stack.enter_context(Checkpoint(job.checkpoint, overwrite=overwrite, pause=pause))
            report = None if on_step is None else partial(on_step, number)
            end = None if on_end is None else partial(on_end, number)
            title = f"training {number + 1} of {len(jobs)}: " if len(jobs) > 1 else ""
            runs.append(stack.enter_context(_Run(job, images, place, checkpoint, report, end, title)))
        if on_gpu:
            # Called first on the way out: no stream may still write what the checkpoints then read.
            stack.callback(torch.cuda.synchronize, place)
            for run in runs:  # a capture waits for the whole device: all come before the first step of any
                run.begin(capture=capture)
            left = None if seconds is None else seconds - (time.monotonic() - begun)
            take_turns(runs, seconds=left, wait=partial(torch.cuda.synchronize, place))
        else:
            for run in runs:
                run.begin(capture=False)
                take_turns([run])
        return [run.outcome for run in runs]


class _Run:
    """One of several trainings, which are advanced in turns.

    As a context it gives the network back as it was, but for what it has learned.
    """

    def __init__(
        self,
        job: Job,
        images: Tensor | NDArray[np.uint8],
        place: torch.device,
        checkpoint: Checkpoint | None,
        on_step: Callable[[Step], None] | None,
        on_end: Callable[[Trained], None] | None,
        title: str,
    ) -> None:
        self._job = job
        self._images = images
        self._place = place
        self._checkpoint = checkpoint
        self._on_step = on_step
        self._on_end = on_end
        self._title = title
        self._watched = STEPS_UNWATCHED if place.type == "cuda" else 1
        self._stream: AbstractContextManager[Any] = nullcontext() if place.type == "cpu" else _new_stream(place)
        self._training: Training | None = None
        self._outcome: Trained | None = None
        self._epoch = 0  # the one at work, counted from 0
        self._step = 0  # how many of its steps are launched

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._training is not None:
            self._training.put_back_counters()

    @property
    def ended(self) -> bool:
        """Whether it is known how the training ended."""
        return self._outcome is not None

    @property
    def outcome(self) -> Trained:
        """How the training ended."""
        assert self._outcome is not None  # noqa: S101 - asked for when all trainings have ended
        return self._outcome

    @property
    def steps_left(self) -> int:
        """How many steps are not launched yet."""
        if self.ended:
            return 0
        return (self._job.recipe.epochs - self._epoch) * self._begun.steps - self._step

    @property
    def _begun(self) -> Training:
        assert self._training is not None  # noqa: S101 - begin comes first
        return self._training

    def begin(self, *, capture: bool) -> None:
        """Make ready for the first step, which on a GPU is captured if ``capture`` says so and it can be."""
        with self._stream:
            self._training = training = _training(self._job, self._images, self._place)
            if self._checkpoint is not None:
                identity = {
                    "data": self._job.dataset.fingerprint(),
                    "recipe": asdict(self._job.recipe),
                    "network": str(training.model),
                }
                state = self._checkpoint.resume(identity, self._place)
                if state is not None:
                    self._epoch = _resumed(training, state, self._job.recipe.epochs)
            if capture and not isinstance(self._job.network, nn.Module):
                training.capture()
            if self._epoch == self._job.recipe.epochs:
                self._finish()
            else:
                self._draws = training.draw(self._epoch)

    def turn(self) -> None:
        """Look at the last step if it is time to, then launch the next one, without waiting for it."""
        with self._stream:
            training = self._begun
            if self._step == training.steps:
                self._end_epoch()
                if self.ended:
                    return
            elif self._step and self._step % self._watched == 0:
                self._report(*training.tally())
            if self._step == 0:
                training.begin(self._epoch, self._draws)
            training.advance(self._step)
            self._step += 1
            if self._step == training.steps and self._epoch + 1 < self._job.recipe.epochs:
                self._draws = training.draw(self._epoch + 1)  # while the device is busy

    def _end_epoch(self) -> None:
        losses, hits = self._begun.tally()
        epochs = self._job.recipe.epochs
        if not np.isfinite(losses):
            problem = f"{self._title}the loss is {losses} after epoch {self._epoch + 1}"
            self._end(DivergedError(f"{problem}; train with another seed or network"))
            return
        if self._checkpoint is not None:
            state = {**self._begun.state(), "epoch": self._epoch + 1}
            self._checkpoint.keep(state, last=self._epoch + 1 == epochs)
        self._report(losses, hits)
        self._epoch, self._step = self._epoch + 1, 0
        if self._epoch == epochs:
            self._finish()

    def _report(self, losses: float, hits: float) -> None:
        if self._on_step is not None:
            step, steps = self._step, self._begun.steps
            images = step * min(self._job.recipe.batch_size, len(self._job.dataset))
            epochs = self._job.recipe.epochs
            self._on_step(Step(self._epoch + 1, epochs, step, steps, losses / step, hits / images))

    def _finish(self) -> None:
        training = self._begun
        training.put_back_counters(self._job.recipe.epochs * training.steps)
        model = training.model
        model.zero_grad(set_to_none=True)
        model.to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
        self._end(model)

    def _end(self, outcome: Trained) -> None:
        if self._on_end is not None:
            self._on_end(outcome)
            if self._checkpoint is not None:  # who was told has kept the network
                self._checkpoint.forget()
        # The memory of a captured step serves the trainings that follow.
        self._outcome, self._training = outcome, None


def _resumed(training: Training, state: dict[str, Any], epochs: int) -> int:
    """Load the state of a checkpoint and return after how many epochs it was written."""
    shapes = [parameter.shape for parameter in training.model.parameters()]
    try:
        for at, moments in state["optimizer"]["state"].items():
            if any(value.ndim and value.shape != shapes[at] for value in moments.values()):
                raise ValueError("the state of the optimiser is of another network")
        training.load(state)
        done = int(state["epoch"])
        if not 0 < done <= epochs:
            raise ValueError(f"it was written after epoch {done} of {epochs}")
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UndoorError(f"the checkpoint holds no state of this training: {first_line(error)}; remove it") from error
    return done


def _training(job: Job, images: Tensor | NDArray[np.uint8], place: torch.device) -> Training:
    """Return what is trained, not yet begun."""
    recipe, dataset = job.recipe, job.dataset
    model = _prepared(dataset, recipe, job.network, images)
    model.to(place, memory_format=torch.channels_last)  # type: ignore[call-overload]
    bf16 = recipe.precision == "bf16" and _computes_bf16(place)
    if place.type == "cpu":
        _require_memory(model, dataset, recipe, bf16)
    model.train()
    # Of the whole schedule, also when it is resumed: compiled and eager steps differ in their last bits.
    pixels = dataset.images[0, 0].size * len(dataset) * recipe.epochs
    compiled = pixels >= COMPILE_PIXELS and _can_compile(place)
    return Training(model, recipe, images, torch.tensor(dataset.labels), place, bf16=bf16, compiled=compiled)


def _require_memory(model: nn.Module, dataset: Dataset, recipe: Recipe, bf16: bool) -> None:
    """Raise ``UndoorError`` if a step takes more than ``memory()``: a process that takes all of it is killed."""
    batch, shape, room = min(recipe.batch_size, len(dataset)), dataset.images.shape[1:], memory()
    if 4 * batch * int(np.prod(shape)) * UNASKED < room:
        return
    model.eval()  # in which an image leaves no trace
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        needed = batch * bytes_kept_for_gradients(model, torch.zeros(1, *shape))
    if needed > room:
        raise UndoorError(
            f"a step on {batch} images of {shape[1]} × {shape[2]} pixels takes {needed / 2**30:.1f} GiB, more than "
            f"half of the memory ({room / 2**30:.1f} GiB); give a smaller --image-size"
        )


def _held_images(jobs: Sequence[Job], place: torch.device) -> dict[int, Tensor]:
    """Return copies on a GPU, by the identity of the array, of the images that take half of its free memory."""
    if place.type != "cuda":
        return {}
    room = torch.cuda.mem_get_info(place)[0] // 2
    held: dict[int, Tensor] = {}
    for images in (job.dataset.images for job in jobs):
        if id(images) not in held and images.nbytes <= room:
            held[id(images)] = torch.tensor(images, device=place)
            room -= images.nbytes
    return held


def _new_stream(place: torch.device) -> AbstractContextManager[Any]:
    stream = torch.cuda.Stream(place)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(place))  # on which the images were copied
    return torch.cuda.stream(stream)


def _prepared(
    dataset: Dataset, recipe: Recipe, network: str | nn.Module | None, images: Tensor | NDArray[np.uint8]
) -> nn.Module:
    if isinstance(network, nn.Module):
        return network
    shape = dataset.images.shape[1:]
    name = network or default_network(*shape[1:])
    model = build_network(name, shape, len(dataset.class_names), recipe.seed)
    normalise = model[0]
    assert isinstance(normalise, Normalise)  # noqa: S101 - what build_network promises
    mean, std = _moments(images, recipe.normalisation)
    normalise.mean.copy_(torch.tensor(mean))
    normalise.std.copy_(torch.tensor(std))
    return model


def _moments(
    images: Tensor | NDArray[np.uint8], kind: Literal["pixel", "channel"]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean (C, H, W) and standard deviation (C, 1, 1) of the images in [0, 1]."""
    totals = np.zeros((2, *images.shape[1:]))
    step = at_once(images.shape, 4096)
    for start in range(0, len(images), step):
        totals += _sums(images[start : start + step])
    mean, squares = totals / len(images)
    if kind == "pixel":
        return mean, np.ones((len(mean), 1, 1))
    channel = mean.mean((1, 2), keepdims=True)
    variance = squares.mean((1, 2), keepdims=True) - channel**2
    return np.broadcast_to(channel, mean.shape), np.sqrt(variance).clip(1e-3)


def _sums(images: Tensor | NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the sum of the images in [0, 1] and of their squares, (2, C, H, W), computed where they lie."""
    if isinstance(images, Tensor):
        exact = images.double() / 255
        return torch.stack([exact.sum(0), exact.square().sum(0)]).cpu().numpy()
    scaled = images.astype(np.float32) / 255
    return np.stack([power.sum(0, dtype=np.float64) for power in (scaled, np.square(scaled))])


def _can_compile(device: torch.device) -> bool:
    return device.type == "cuda" or (device.type == "cpu" and shutil.which("g++") is not None)


def _computes_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    # Without instructions for it, bf16 on a CPU is slower than float32.
    capabilities: Mapping[str, Any] = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return device.type == "cpu" and any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))

"""Training of victims: the networks that an unsuspecting user would have trained on the set."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from undoor.data.dataset import Dataset
from undoor.errors import UndoorError, first_line
from undoor.networks.checkpoint import Checkpoint
from undoor.networks.classifier import default_device
from undoor.networks.jobs import Job, new_training
from undoor.networks.recipes import PRESETS, Recipe
from undoor.networks.steps import Training
from undoor.networks.turns import take_turns

REPORT_INTERVAL = 100
"""Number of steps on a GPU between two reports. For a report the CPU has to wait for the GPU."""

SECONDS_UNSAVED = 60.0
"""Least number of seconds between two checkpoints on a GPU. There an epoch can take less time than its checkpoint."""


@dataclass(frozen=True)
class Step:
    """Progress of a training after a step. Epochs and steps of an epoch count from 1; means are over this epoch."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    accuracy: float


class DivergedError(UndoorError):
    """A training whose loss is no longer a number."""


Trained = nn.Module | DivergedError
"""The outcome of a training: a network in evaluation mode on the CPU, or the error that ended this training alone."""


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
    """Train a network on a data set and return it, in evaluation mode and on the CPU.

    Args:
        dataset: the training set, with at least two classes.
        recipe: how to train.
        network: "resnet20", "small-cnn" or a module that returns as many logits as there are classes, which is
            trained in place. By default the network depends on the size of the images.
        checkpoint: a file from which an interrupted training resumes.
        overwrite: replace the checkpoint of another training instead of raising an error.
        device: where to compute; by default on an accelerator if there is one.
        on_step: called after every step; on a GPU after every hundredth step and the last step of an epoch.

    Raises:
        DivergedError: the loss is no longer a number.
        UndoorError: the set cannot be learned, the checkpoint is of another training, or the memory is too small.

    Examples:
        >>> import undoor
        >>> digits = undoor.read("digits").take(range(128))
        >>> network = undoor.train(digits, undoor.recipe("fast", epochs=1))
        >>> undoor.Classifier(network).decide(digits.images).shape
        (128,)

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
    """Train several networks: on a GPU together, each on its own stream; elsewhere one after another.

    On a GPU, the images are copied to its memory as long as they take no more than half of it; equal arrays are copied
    once. If the network is given by name, its steps are captured: each is a single launch of a CUDA graph. A module is
    run as it is, because its forward pass may do what cannot be captured.

    Args:
        jobs: what to train.
        overwrite: replace the checkpoints of other trainings instead of raising an error.
        device: where to compute; by default on an accelerator if there is one.
        capture: whether steps on a GPU are captured. If not, every kernel is launched by itself, which is slower.
        seconds: time within which as many trainings as possible should end, the first jobs first. On a GPU the first
            steps are timed, and only as many trainings advance together as will end in time. No training is stopped.
        on_step: called with the index of the job after every step; on a GPU after every hundredth step and the last
            step of an epoch. If it raises an exception, all trainings stop, and can resume from their checkpoints.
        on_end: called with the index of the job and its outcome as soon as its training has ended.

    Returns:
        The outcomes in the order of the jobs. A training that diverges does not end the others.

    """
    start = time.monotonic()
    for job in jobs:
        job.dataset.require_classes()
    used_device = torch.device(device or default_device())
    on_gpu = used_device.type == "cuda"
    if on_gpu:
        # The number of streams that run at once. CUDA reads it at its first use.
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")
    copies = _images_on_gpu(jobs, used_device) if on_gpu else {}
    with ExitStack() as stack:
        runs = []
        for index, job in enumerate(jobs):
            checkpoint = None
            if job.checkpoint is not None:
                pause = SECONDS_UNSAVED if on_gpu else 0.0
                checkpoint = stack.enter_context(Checkpoint(job.checkpoint, overwrite=overwrite, pause=pause))
            run = _Run(
                job=job,
                images=copies.get(id(job.dataset.images), job.dataset.images),
                device=used_device,
                title=f"training {index + 1} of {len(jobs)}: " if len(jobs) > 1 else "",
                checkpoint=checkpoint,
                on_step=None if on_step is None else partial(on_step, index),
                on_end=None if on_end is None else partial(on_end, index),
            )
            runs.append(stack.enter_context(run))
        if on_gpu:
            # This is called before the other contexts end: no stream may still write what the checkpoints then read.
            stack.callback(torch.cuda.synchronize, used_device)
            for run in runs:  # a capture waits for the whole device, so that all captures precede the first step
                run.prepare(capture=capture)
            remaining = None if seconds is None else seconds - (time.monotonic() - start)
            take_turns(runs, seconds=remaining, wait=partial(torch.cuda.synchronize, used_device))
        else:
            for run in runs:
                run.prepare(capture=False)
                take_turns([run])
        return [run.outcome for run in runs if run.outcome is not None]  # every run has an outcome


def _images_on_gpu(jobs: Sequence[Job], device: torch.device) -> dict[int, Tensor]:
    """Return copies on a GPU, by the identity of the array, of the images that fit into half of its free memory."""
    room = torch.cuda.mem_get_info(device)[0] // 2
    copies: dict[int, Tensor] = {}
    for images in (job.dataset.images for job in jobs):
        if id(images) not in copies and images.nbytes <= room:
            copies[id(images)] = torch.tensor(images, device=device)
            room -= images.nbytes
    return copies


@dataclass(eq=False, kw_only=True)
class _Run:
    """One of several trainings that take turns.

    If it has not ended when its context ends, the batch norms of its network get their counters back.
    """

    job: Job
    images: Tensor | NDArray[np.uint8]
    device: torch.device
    title: str
    checkpoint: Checkpoint | None
    on_step: Callable[[Step], None] | None
    on_end: Callable[[Trained], None] | None
    steps_left: int = 0
    outcome: Trained | None = None
    _training: Training | None = None

    def __post_init__(self) -> None:
        self._launches: Iterator[None] = iter(())
        on_gpu = self.device.type == "cuda"
        self._interval = REPORT_INTERVAL if on_gpu else 1
        self._stream: AbstractContextManager[Any] = _new_stream(self.device) if on_gpu else nullcontext()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._training is not None:
            self._training.put_back_counters()
        self._training, self._launches = None, iter(())

    @property
    def ended(self) -> bool:
        """Whether the training has ended."""
        return self.outcome is not None

    def prepare(self, *, capture: bool) -> None:
        """Make the training ready for its first step, and capture this step if ``capture`` says so and it can be."""
        with self._stream:
            self._training = training = new_training(self.job, self.images, self.device)
            epoch = self._resume(training)
            if capture and not isinstance(self.job.network, nn.Module):
                training.capture()
            self.steps_left = (self.job.recipe.epochs - epoch) * training.steps
            self._launches = self._launch_all(training, epoch, training.draw(epoch))

    def _resume(self, training: Training) -> int:
        """Load the checkpoint if there is one, and return the epoch to continue with, counted from 0."""
        if self.checkpoint is None:
            return 0
        identity = {
            "data": self.job.dataset.fingerprint(),
            "recipe": asdict(self.job.recipe),
            "network": str(training.model),
        }
        state = self.checkpoint.resume(identity, self.device)
        return 0 if state is None else _load(training, state, self.job.recipe.epochs)

    def turn(self) -> None:
        """Evaluate the last step if it is time to, and launch the next one without waiting for it."""
        with self._stream:
            next(self._launches, None)

    def _launch_all(self, training: Training, first_epoch: int, draws: Tensor) -> Iterator[None]:
        """Launch the steps of the epochs from ``first_epoch`` on, and yield after each launch."""
        epochs = self.job.recipe.epochs
        for epoch in range(first_epoch, epochs):
            training.begin(epoch, draws)
            for step in range(1, training.steps + 1):
                training.advance(step - 1)
                self.steps_left -= 1
                if step == training.steps and epoch + 1 < epochs:
                    draws = training.draw(epoch + 1)  # while the device computes
                yield
                if step < training.steps and step % self._interval == 0:
                    self._report(training, epoch, step, *training.tally())
            losses, hits = training.tally()
            if not np.isfinite(losses):
                problem = f"{self.title}the loss is {losses} after epoch {epoch + 1}"
                self._end(DivergedError(f"{problem}; train with another seed or network"))
                return
            if self.checkpoint is not None:
                self.checkpoint.keep({**training.state(), "epoch": epoch + 1}, last=epoch + 1 == epochs)
            self._report(training, epoch, training.steps, losses, hits)
        training.put_back_counters(epochs * training.steps)
        training.model.zero_grad(set_to_none=True)
        training.model.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self._end(training.model.eval())

    def _report(self, training: Training, epoch: int, step: int, losses: float, hits: float) -> None:
        if self.on_step is not None:
            images = step * min(self.job.recipe.batch_size, len(self.job.dataset))
            epochs = self.job.recipe.epochs
            self.on_step(Step(epoch + 1, epochs, step, training.steps, losses / step, hits / images))

    def _end(self, outcome: Trained) -> None:
        if self.on_end is not None:
            self.on_end(outcome)
            if self.checkpoint is not None:
                self.checkpoint.forget()  # ``on_end`` has kept the network
        self.steps_left = 0
        # The memory of a captured step is free for the trainings that follow.
        self.outcome, self._training = outcome, None


def _new_stream(device: torch.device) -> AbstractContextManager[Any]:
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))  # the images were copied on that stream
    return torch.cuda.stream(stream)


def _load(training: Training, state: dict[str, Any], epochs: int) -> int:
    """Load the state of a checkpoint, and return the number of epochs after which it was written."""
    shapes = [parameter.shape for parameter in training.model.parameters()]
    try:
        for index, moments in state["optimizer"]["state"].items():
            if any(value.ndim and value.shape != shapes[index] for value in moments.values()):
                raise ValueError("the state of the optimiser is of another network")
        training.load(state)
        done = int(state["epoch"])
        if not 0 < done <= epochs:
            raise ValueError(f"it was written after epoch {done} of {epochs}")
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UndoorError(f"the checkpoint holds no state of this training: {first_line(error)}; remove it") from error
    return done

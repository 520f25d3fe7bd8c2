"""Fit a victim: the network an unsuspecting user would have trained on the set."""

import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from undoor.bounds import memory
from undoor.checkpoint import Checkpoint
from undoor.classifier import default_device
from undoor.dataset import Dataset
from undoor.errors import UndoorError, first_line
from undoor.layers import kept_for_gradients
from undoor.memory import at_once
from undoor.networks import Normalise, build_network, default_network
from undoor.recipes import PRESETS, Recipe
from undoor.steps import Training

COMPILE_PIXELS = 4e8
"""Trained pixels (images × epochs × H × W) from which a tenth saved on each step outweighs torch.compile's own time."""

STEPS_UNWATCHED = 100
"""Steps on a GPU between two reports: for each the processor has to wait for the device."""

UNASKED = 1000
"""Times its images that a step may take on a CPU before that is found out: ResNet-20 takes 120 times."""

SECONDS_UNSAVED = 20.0
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
        network: a name from ``undoor.networks``, or a module that returns as many logits as there are
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

    """
    told = None if on_step is None else lambda _, step: on_step(step)
    job = Job(dataset, recipe, network, checkpoint)
    return train_many([job], overwrite=overwrite, device=device, on_step=told)[0]


def train_many(
    jobs: Sequence[Job],
    *,
    overwrite: bool = False,
    device: str | None = None,
    on_step: Callable[[int, Step], None] | None = None,
) -> list[nn.Module]:
    """Train several networks: all at once on a GPU, each on a stream of its own; one after another elsewhere.

    On a GPU the images lie in its memory, equal arrays once, as far as they take no more than half of it. A
    network given by name is captured: each of its steps is one launch of a CUDA graph. A module may do in its
    forward pass what cannot be captured, and is run as it is.

    Args:
        jobs: what to train.
        overwrite: replace the checkpoints of other trainings instead of raising an error.
        device: where to compute; by default an accelerator if there is one.
        on_step: called with the number of the job, from 0, after every step; on a GPU after every hundredth
            and the last of an epoch. If it raises, all trainings stop, and resume from their checkpoints.

    Returns:
        the networks in the order of the jobs, in evaluation mode, on the CPU.

    """
    for job in jobs:
        job.dataset.require_classes()
    place = torch.device(device or default_device())
    models: list[nn.Module] = []
    with ExitStack() as stack:
        pause = SECONDS_UNSAVED if place.type == "cuda" else 0.0
        held = _held_images(jobs, place)
        runs = []
        for number, job in enumerate(jobs):
            images = held.get(id(job.dataset.images), job.dataset.images)
            checkpoint = None
            if job.checkpoint is not None:
                checkpoint = stack.enter_context(Checkpoint(job.checkpoint, overwrite=overwrite, pause=pause))
            told = None if on_step is None else partial(on_step, number)
            title = f"training {number + 1} of {len(jobs)}: " if len(jobs) > 1 else ""
            runs.append(_run(job, images, place, checkpoint, told, title))
        if place.type == "cuda":
            # Called first on the way out: no stream may still write what the checkpoints then read.
            stack.callback(torch.cuda.synchronize, place)
            return _in_turn(runs, [_new_stream(place) for _ in runs])
        for run in runs:
            models += _in_turn([run], [nullcontext()])
    return models


_Run = Generator[None, None, nn.Module]


def _in_turn(runs: list[_Run], streams: list[AbstractContextManager[Any]]) -> list[nn.Module]:
    """Let the runs go on in turn, each on its stream, until all have returned their network."""
    models: dict[int, nn.Module] = {}
    while len(models) < len(runs):
        for number, (run, stream) in enumerate(zip(runs, streams, strict=True)):
            if number in models:
                continue
            try:
                with stream:
                    next(run)
            except StopIteration as end:
                models[number] = end.value
    return [models[number] for number in range(len(runs))]


def _run(
    job: Job,
    images: Tensor | NDArray[np.uint8],
    place: torch.device,
    checkpoint: Checkpoint | None,
    on_step: Callable[[Step], None] | None,
    title: str,
) -> _Run:
    """Train one network, yielding when it is ready to begin and whenever others may have their turn."""
    epochs = job.recipe.epochs
    training, captured = _training(job, images, place)
    done = 0
    if checkpoint is not None:
        identity = {
            "data": job.dataset.fingerprint(),
            "recipe": asdict(job.recipe),
            "network": str(training.model),
        }
        state = checkpoint.resume(identity, place)
        if state is not None:
            done = _resumed(training, state, epochs)
    if captured:
        training.capture()
    # A capture waits for the whole device: all come before the first step of any.
    yield

    steps, watched = training.steps, STEPS_UNWATCHED if place.type == "cuda" else 1
    draws = training.draw(done) if done < epochs else None
    for epoch in range(done, epochs):
        assert draws is not None  # noqa: S101 - drawn above or in the epoch before
        size = draws.shape[2]
        training.begin(epoch, draws)
        for step in range(1, steps + 1):
            training.advance(step - 1)
            if step == steps and epoch + 1 < epochs:
                draws = training.draw(epoch + 1)  # while the device is busy
            yield
            if step == steps:
                last = training.told()[2]
                if not np.isfinite(last):
                    problem = f"{title}the loss is {last} after epoch {epoch + 1}"
                    raise UndoorError(f"{problem}; train with another seed or network")
                if checkpoint is not None:
                    checkpoint.keep({**training.state(), "epoch": epoch + 1}, last=epoch + 1 == epochs)
            if on_step is not None and (step % watched == 0 or step == steps):
                losses, hits, _ = training.told()
                on_step(Step(epoch + 1, epochs, step, steps, losses / step, hits / (step * size)))
    model = training.model
    model.zero_grad(set_to_none=True)
    return model.to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload,no-any-return]


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


def _training(job: Job, images: Tensor | NDArray[np.uint8], place: torch.device) -> tuple[Training, bool]:
    """Return what is trained, not yet begun, and whether its steps can be captured."""
    recipe, dataset = job.recipe, job.dataset
    model = _prepared(dataset, recipe, job.network, images)
    model.to(place, memory_format=torch.channels_last)  # type: ignore[call-overload]
    bf16 = recipe.precision == "bf16" and _computes_bf16(place)
    if place.type == "cpu":
        _require_memory(model, dataset, recipe, bf16)
    model.train()
    # Of the whole schedule, also when it is resumed: compiled and eager steps differ in their last bits.
    pixels = dataset.images[0, 0].size * len(dataset) * recipe.epochs
    forward = torch.compile(model) if pixels >= COMPILE_PIXELS and _can_compile(place) else model
    training = Training(model, forward, recipe, images, torch.tensor(dataset.labels), place, bf16)
    return training, place.type == "cuda" and not isinstance(job.network, nn.Module)


def _require_memory(model: nn.Module, dataset: Dataset, recipe: Recipe, bf16: bool) -> None:
    """Raise ``UndoorError`` if a step takes more than ``memory()``: a process that takes all of it is killed."""
    batch, shape, room = min(recipe.batch_size, len(dataset)), dataset.images.shape[1:], memory()
    if 4 * batch * int(np.prod(shape)) * UNASKED < room:
        return
    model.eval()  # in which an image leaves no trace
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        needed = batch * kept_for_gradients(model, torch.zeros(1, *shape))
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

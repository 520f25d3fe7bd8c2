"""Training on a GPU: whether captured steps compute the same as eager ones, and the speed of simultaneous trainings.

    python -m benchmarks.gpu_training --out gpu.json

writes the JSON file again after every measurement, so that a run that is stopped keeps its results. The data is
synthetic: ten classes of coloured patches with noise.
"""

import json
import math
import platform
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name the field uses
import typer
from torch.utils.flop_counter import FlopCounterMode

from undoor.data.dataset import Dataset, row_ids
from undoor.networks import jobs
from undoor.networks.architectures import build_network
from undoor.networks.jobs import Job, new_training
from undoor.networks.recipes import PRESETS, Recipe
from undoor.networks.training import Step, train_many

BYTES_AN_IMAGE = {"float32": 12.7e6, "bf16": 6.9e6}
"""Bytes that a training step of ResNet-20 reads and writes for one image, as the compiler counts its fused kernels."""


def coloured_patches(n: int, seed: int = 0) -> Dataset:
    """Return n images of 32×32 pixels in ten classes."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % 10
    patches = generator.integers(60, 196, (10, 3, 4, 4)).repeat(8, 2).repeat(8, 3).astype(np.uint8)
    images = patches[labels] + generator.integers(0, 60, (n, 3, 32, 32), dtype=np.uint8)
    return Dataset(images, labels.astype(np.int64), tuple(map(str, range(10))), row_ids(n))


def flops_an_image() -> int:
    """Return the floating-point operations of a forward and a backward pass of ResNet-20."""
    model = build_network("resnet20", (3, 32, 32), 10)
    counter = FlopCounterMode(display=False)
    with counter:
        F.cross_entropy(model(torch.rand(2, 3, 32, 32)), torch.tensor([0, 1])).backward()
    return counter.get_total_flops() // 2


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ceilings(device: torch.device) -> dict[str, float]:
    """Return the speed of a large bf16 matrix product (FLOP/s) and of a copy (bytes read and written per second)."""
    side, size = (8192, 2**32) if device.type == "cuda" else (256, 2**22)
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.randint(0, 256, (size,), device=device, dtype=torch.uint8)
    target = torch.empty_like(source)

    def median_seconds(action) -> float:
        seconds = []
        for _ in range(13):
            wait(device)
            start = time.perf_counter()
            action()
            wait(device)
            seconds.append(time.perf_counter() - start)
        return float(np.median(seconds[3:]))

    product, copy = median_seconds(lambda: a @ b), median_seconds(lambda: target.copy_(source))
    return {"flops": 2 * side**3 / product, "bytes": 2 * size / copy}


def losses(data: Dataset, recipe: Recipe, device: torch.device, steps: int, captured: bool) -> list[float]:
    """Return the losses of the first steps."""
    cuda = device.type == "cuda"
    with torch.cuda.stream(torch.cuda.Stream(device)) if cuda else nullcontext():
        images = torch.tensor(data.images, device=device) if cuda else data.images
        run = new_training(Job(data, recipe), images, device)
        if captured and cuda:
            run.capture()
        elif captured:
            run.warm_up()
        curve: list[float] = []
        epoch = 0
        while len(curve) < steps:
            run.begin(epoch, run.draw(epoch))
            sums = [0.0]
            for step in range(min(run.steps, steps - len(curve))):
                run.advance(step)
                sums.append(run.tally()[0])
            curve += np.diff(sums).tolist()
            epoch += 1
    return curve


def compare(data: Dataset, recipe: Recipe, device: torch.device, steps: int) -> dict:
    """Compare the losses of captured steps with those of eager steps, and those of two eager trainings."""
    eager, again, captured = (losses(data, recipe, device, steps, mode) for mode in (False, False, True))

    def difference(curve: list[float]) -> float:
        return float(np.abs(np.subtract(curve, eager)).max())

    return {"eager": eager, "captured": captured, "apart": difference(captured), "apart_eager_twice": difference(again)}


def epoch_seconds(data: Dataset, recipe: Recipe, device: torch.device, together: int) -> float:
    """Return the seconds of the second epoch of several simultaneous trainings; the first epoch is a warm-up.

    On a CPU the trainings follow one another, and the result is the time of one epoch of each, with its preparation.
    """
    ends: dict[int, float] = {1: 0.0, 2: 0.0}

    def on_step(_: int, step: Step) -> None:
        if step.step == step.steps:
            ends[step.epoch] = time.perf_counter()

    if device.type != "cuda":
        start = time.perf_counter()
        train_many([Job(data, replace(recipe, epochs=1))] * together, device=str(device), on_step=on_step)
        return time.perf_counter() - start
    # Each training has its own copy of the images, as trainings on poisoned sets have.
    copies = [replace(data, images=data.images.copy()) for _ in range(together)]
    jobs = [Job(images, replace(recipe, epochs=2, seed=seed)) for seed, images in enumerate(copies)]
    train_many(jobs, device=str(device), on_step=on_step)
    return ends[2] - ends[1]


def software(device: torch.device) -> dict:
    cuda = device.type == "cuda"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "device": torch.cuda.get_device_name(device) if cuda else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }


def main(
    out: Annotated[Path, typer.Option(help="the JSON file")],
    device_name: Annotated[str, typer.Option("--device", help="cuda or cpu")] = "cuda",
    images: Annotated[int, typer.Option(help="images in an epoch")] = 51_000,
    steps: Annotated[int, typer.Option(help="steps whose losses are compared")] = 200,
    presets: Annotated[str, typer.Option(help="names, separated by commas")] = "paper,paper-bf16,large-batch",
    together: Annotated[str, typer.Option(help="numbers of simultaneous trainings, separated by commas")] = "1,4,8",
    compiled: Annotated[
        bool | None, typer.Option("--only-compiled/--no-compiled", help="measure only with, or without, torch.compile")
    ] = None,
) -> None:
    """Measure; print a line and write the file after every measurement."""
    device = torch.device(device_name)
    data = coloured_patches(images)
    flops, limits = flops_an_image(), ceilings(device)
    content = {
        "versions": software(device),
        "images": images,
        "flops_an_image": flops,
        "bytes_an_image": BYTES_AN_IMAGE,
        "ceilings": limits,
        "curves": {},
        "epochs": [],
    }
    out.parent.mkdir(parents=True, exist_ok=True)

    def write(measurement: dict) -> None:
        out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(measurement), flush=True)

    write({"versions": content["versions"], "ceilings": limits})
    for with_compile in (False, True) if compiled is None else (compiled,):
        # The library decides by the length of the schedule; this benchmark measures both.
        jobs.COMPILE_PIXELS = 0 if with_compile else math.inf
        for preset in presets.split(","):
            recipe = PRESETS[preset]
            name = f"{preset}, compiled" if with_compile else preset
            curve = content["curves"][name] = compare(data, recipe, device, steps)
            write({"preset": name, "apart": curve["apart"], "apart_eager_twice": curve["apart_eager_twice"]})
            for number in map(int, together.split(",")):
                seconds = epoch_seconds(data, recipe, device, number)
                traffic = number * images * BYTES_AN_IMAGE[recipe.precision]
                row = {
                    "preset": preset,
                    "compiled": with_compile,
                    "precision": recipe.precision,
                    "together": number,
                    "epoch_seconds": seconds,
                    "training_seconds_each": seconds * recipe.epochs / number,
                    "step_milliseconds_each": 1e3 * seconds / (number * max(1, images // recipe.batch_size)),
                    "tflops": number * images * flops / seconds / 1e12,
                    "over_arithmetic_floor": seconds * limits["flops"] / (number * images * flops),
                    "over_memory_floor": seconds * limits["bytes"] / traffic,
                    "peak_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
                }
                content["epochs"].append(row)
                write(row)


if __name__ == "__main__":
    typer.run(main)

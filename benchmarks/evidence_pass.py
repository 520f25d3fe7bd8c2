"""What the pass over the images costs beside two bare forward passes, and how much memory a large set takes.

Prints one JSON object. Times are processor seconds, the two sides in turn.
"""

import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from undoor.data.dataset import Dataset, row_ids
from undoor.evidence import collect as evidence
from undoor.evidence.collect import collect
from undoor.filters import Average
from undoor.networks.architectures import build_network
from undoor.networks.classifier import BATCH_SIZE, Classifier


def made_up(n: int, channels: int, size: int) -> Dataset:
    """Return n images of noise in ten classes."""
    images = np.random.default_rng(0).integers(0, 256, (n, channels, size, size), dtype=np.uint8)
    return Dataset(images, np.arange(n) % 10, tuple(map(str, range(10))), row_ids(n))


def seconds(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def cost(images: int, rounds: int) -> dict[str, object]:
    """Time ``collect`` on ResNet-20 against the same two forward passes in a plain loop."""
    dataset = made_up(images, 3, 32)
    classifier = Classifier(build_network("resnet20", (3, 32, 32), 10), device="cpu")
    model = classifier.model.eval()
    plain = classifier.scale(dataset.images)
    variants = [one.contiguous(memory_format=torch.channels_last) for one in (plain, Average()(plain))]

    def bare() -> None:
        with torch.inference_mode():
            for variant in variants:
                for start in range(0, images, BATCH_SIZE):
                    model(variant[start : start + BATCH_SIZE])

    bare()
    ratios = []
    for _ in range(rounds):
        before, ours, after = seconds(bare), seconds(lambda: collect(classifier, dataset)), seconds(bare)
        ratios.append(2 * ours / (before + after))
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {"images": images, "rounds": rounds, "ratio": middle, "quartiles": [low, high]}


def memory(images: int, width: int, kept: bool) -> dict[str, object]:
    """Collect wide features of many tiny images; return the peak of resident memory."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, width), torch.nn.ReLU(),
                                torch.nn.Linear(width, 10))  # fmt: skip
    dataset = made_up(images, 1, 4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found = collect(
            Classifier(model, device="cpu"), dataset, batch_size=1024, folder=Path(folder) if kept else None
        )
    return {
        "images": images,
        "width": width,
        "shards": kept,
        "bytes_of_outputs": 2 * images * (width + 10) * 4,
        "mapped": isinstance(found.plain.features, np.memmap),
        "budget": evidence.MEMORY_BUDGET,
        "resident_bytes_before": before,
        "resident_bytes_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "seconds": time.perf_counter() - begun,
    }


def main(
    rounds: Annotated[int, typer.Option(help="of the comparison; 0 leaves it out")] = 9,
    images: Annotated[int, typer.Option(help="of the memory run; 0 leaves it out")] = 1_000_000,
    width: Annotated[int, typer.Option(help="features of the memory run")] = 512,
    shards: Annotated[bool, typer.Option(help="keep shards in the memory run")] = True,
) -> None:
    result: dict[str, object] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    if images:
        result["memory"] = memory(images, width, shards)
    if rounds:
        result["cost"] = cost(512, rounds)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    typer.run(main)

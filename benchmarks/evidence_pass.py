"""Time the pass over the images beside two plain forward passes, and measure the memory of a large set.

    python -m benchmarks.evidence_pass

prints one JSON object. Times are seconds of the processor, and the two sides run in turn.
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


def noise(n: int, channels: int, size: int) -> Dataset:
    """Return n images of noise in ten classes."""
    images = np.random.default_rng(0).integers(0, 256, (n, channels, size, size), dtype=np.uint8)
    return Dataset(images, np.arange(n) % 10, tuple(map(str, range(10))), row_ids(n))


def seconds(work: Callable[[], object]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def cost(n: int, rounds: int) -> dict[str, object]:
    """Time ``collect`` with a ResNet-20 beside the same two forward passes in a plain loop."""
    dataset = noise(n, 3, 32)
    classifier = Classifier(build_network("resnet20", (3, 32, 32), 10), device="cpu")
    model = classifier.model.eval()
    plain = classifier.scale(dataset.images)
    variants = [images.contiguous(memory_format=torch.channels_last) for images in (plain, Average()(plain))]

    def forward_passes() -> None:
        with torch.inference_mode():
            for variant in variants:
                for start in range(0, n, BATCH_SIZE):
                    model(variant[start : start + BATCH_SIZE])

    forward_passes()
    ratios = []
    for _ in range(rounds):
        before = seconds(forward_passes)
        ours = seconds(lambda: collect(classifier, dataset))
        ratios.append(2 * ours / (before + seconds(forward_passes)))
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {"images": n, "rounds": rounds, "ratio": middle, "quartiles": [low, high]}


def memory(images: int, width: int, shards: bool) -> dict[str, object]:
    """Collect wide features of many tiny images; return the peak of the resident memory."""
    hidden = [torch.nn.Flatten(), torch.nn.Linear(16, width), torch.nn.ReLU()]
    model = torch.nn.Sequential(*hidden, torch.nn.Linear(width, 10))
    dataset = noise(images, 1, 4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        outputs = collect(
            Classifier(model, device="cpu"), dataset, batch_size=1024, folder=Path(folder) if shards else None
        )
    return {
        "images": images,
        "width": width,
        "shards": shards,
        "bytes_of_outputs": 2 * images * (width + 10) * 4,
        "mapped": isinstance(outputs.plain.features, np.memmap),
        "budget": evidence.MEMORY_BUDGET,
        "resident_bytes_before": before,
        "resident_bytes_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "seconds": time.perf_counter() - begin,
    }


def main(
    rounds: Annotated[int, typer.Option(help="rounds of the comparison; 0 skips it")] = 9,
    images: Annotated[int, typer.Option(help="images of the memory run; 0 skips it")] = 1_000_000,
    width: Annotated[int, typer.Option(help="features of an image in the memory run")] = 512,
    shards: Annotated[bool, typer.Option(help="write shards in the memory run")] = True,
) -> None:
    result: dict[str, object] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    if images:
        result["memory"] = memory(images, width, shards)
    if rounds:
        result["cost"] = cost(512, rounds)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    typer.run(main)

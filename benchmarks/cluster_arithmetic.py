"""What a million, a hundred million and a billion images cost: measured constants, multiplied.

``measure`` writes the constants of one device into a JSON file; ``write`` makes the tables of docs/ray.md of
results/cluster/cpu.json and, where it exists, results/gpu/pass.json: the same command with ``--device cuda``.
"""

import json
import os
import platform
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow.parquet as pq
import typer

from marked import write_marked
from undoor.data.dataset import Dataset, row_ids
from undoor.data.readers import read as read_data
from undoor.engine import Engine, as_finished, one_thread
from undoor.evidence import Outputs
from undoor.evidence.collect import collect
from undoor.experiments.store import Store, hardware
from undoor.filters import Average
from undoor.findings.provenance import versions
from undoor.mixtures.sweep import MixtureSettings, cluster
from undoor.networks.architectures import build_network
from undoor.networks.classifier import Classifier

ROOT = Path(__file__).parents[1]
CPU, GPU = ROOT / "results" / "cluster" / "cpu.json", ROOT / "results" / "gpu" / "pass.json"
PAGE = ROOT / "docs" / "ray.md"
MARKS = ("<!-- arithmetic: written by benchmarks/cluster_arithmetic.py -->", "<!-- end of arithmetic -->")

SIZES = {"10⁶": 10**6, "10⁸": 10**8, "10⁹": 10**9}
SHARD = 4096
"""Images a task of the pass, assumed."""
CORES = 1000
"""Of the cluster, assumed."""
DOLLARS_A_GPU_HOUR = 3.0
"""Assumed; ``write --gpu-hour`` takes another."""
SHAPE = (3, 32, 32)
DIMENSIONS = 64
ROUNDS = 5


def spread(values: list[float]) -> dict[str, float]:
    return {"median": float(np.median(values)), "lowest": min(values), "highest": max(values)}


def measure_pass(device: str, images: int, batch_sizes: list[int]) -> dict:
    """Return the seconds an image takes in one pass: both forwards of ResNet-20, the filter, all transfers.

    On a CPU they are seconds of the core, so that other work on it does not count; the fastest batch is kept.
    """
    clock = time.perf_counter if device == "cuda" else time.process_time
    pixels = np.random.default_rng(0).integers(0, 256, (images, *SHAPE), dtype=np.uint8)
    data = Dataset(pixels, np.arange(images) % 10, tuple(map(str, range(10))), row_ids(images))
    classifier = Classifier(build_network("resnet20", SHAPE, 10), device=device)

    def seconds(batch_size: int) -> float:
        begun = clock()
        collect(classifier, data, (Average(),), batch_size=batch_size)
        return (clock() - begun) / images

    best: dict = {}
    for size in batch_sizes:
        seconds(size)
        told = {"batch_size": size, "seconds_an_image": spread([seconds(size) for _ in range(ROUNDS)])}
        if not best or told["seconds_an_image"]["median"] < best["seconds_an_image"]["median"]:
            best = told
    return {**best, "images": images}


def measure_mixtures(evidence: Path, classes: int) -> dict:
    """Return the seconds of a core that the sweep over K takes for a class of a real victim."""
    kept = np.load(evidence)
    seconds, sizes = [], []
    for label in range(classes):
        features = kept["features"][kept["labels"] == label].astype(np.float32)
        begun = time.process_time()
        cluster(features, MixtureSettings(), seed=0)
        seconds.append(time.process_time() - begun)
        sizes.append(len(features))
    per_image = [s / n for s, n in zip(seconds, sizes, strict=True)]
    return {
        "classes": classes,
        "images_a_class": float(np.mean(sizes)),
        "dimensions": features.shape[1],
        "seconds_an_image": spread(per_image),
    }


def measure_bytes(parquet: Path) -> dict:
    """Return the bytes an image takes on disk: in the data set, decoded, and as evidence of 10 and 1 000 classes."""
    rows = 1000
    sizes: dict[str, float] = {
        "encoded": parquet.stat().st_size / pq.read_metadata(parquet).num_rows,
        "pixels": float(np.prod(SHAPE)),
    }
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        for classes in (10, 1000):
            outputs = Outputs(np.zeros((rows, DIMENSIONS), np.float32), np.zeros((rows, classes), np.float32))
            store.keep_outputs(str(classes), outputs)
            # Of the image and of its filtered twin.
            sizes[f"evidence_{classes}"] = 2 * store.path("cache", str(classes), ".outputs").stat().st_size / rows
    return sizes


def measure_decoding(parquet: Path) -> dict:
    """Return the seconds of a core that an image takes from the file to the array."""
    seconds = []
    for _ in range(ROUNDS):
        begun = time.process_time()
        images = len(read_data(str(parquet)))
        seconds.append((time.process_time() - begun) / images)
    return {"images": images, "seconds_an_image": spread(seconds)}


def measure_ray(tasks: int) -> dict:
    """Return the seconds of its core that the driver spends on a task, and on a byte that goes to one or comes back.

    All tasks pass through the driver: it is what limits a large cluster.
    """
    import ray

    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)

    def seconds(function: Callable, items: Iterator) -> float:
        begun = time.process_time()
        for _ in as_finished(function, items, Engine("ray")):
            pass
        return time.process_time() - begun

    def large(rounds: int) -> Iterator[np.ndarray]:
        return (np.zeros(SHARD * int(np.prod(SHAPE)), np.uint8) for _ in range(rounds))

    seconds(type, iter(range(20)))
    a_task = [seconds(type, iter(range(tasks))) / tasks for _ in range(ROUNDS)]
    seconds(np.negative, large(2))
    each = 8
    # np.negative reads every byte and sends as many back.
    both_ways = [seconds(np.negative, large(each)) / each for _ in range(ROUNDS)]
    ray.shutdown()
    size = SHARD * float(np.prod(SHAPE))
    return {
        "version": ray.__version__,
        "seconds_a_task": spread(a_task),
        "seconds_a_byte": spread([s / (2 * size) for s in both_ways]),
    }


def bytes_of(number: float) -> str:
    for unit in ("B", "KB", "MB", "GB", "TB", "PB"):
        if number < 1000 or unit == "PB":
            return f"{number:.3g} {unit}"
        number /= 1000
    raise AssertionError


def time_of(seconds: float) -> str:
    for unit, size in (("years", 365 * 86400), ("days", 86400), ("h", 3600), ("min", 60), ("s", 1), ("ms", 1e-3)):
        if seconds >= 2 * size or (unit in ("s", "ms") and seconds >= size):
            return f"{seconds / size:,.{0 if seconds >= 100 * size else 1}f} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def tables(cpu: dict, gpu: dict | None, gpu_hour: float) -> str:
    """Return both tables as Markdown: the constants with their spread, and what they come to."""
    missing = "not measured"

    def constant(name: str, told: dict | None, show: Callable[[float], str], where: str) -> str:
        if told is None:
            return f"| {name} | {missing} | | |"
        return f"| {name} | {show(told['median'])} | {show(told['lowest'])} – {show(told['highest'])} | {where} |"

    size, ray, mixtures = cpu["bytes_an_image"], cpu["ray"], cpu["mixtures"]
    on_core = {name: cpu[name]["seconds_an_image"] for name in ("decoding", "pass", "mixtures")}
    on_gpu = {name: gpu[name]["seconds_an_image"] if gpu and name in gpu else None for name in ("pass", "mixtures")}
    lines = [
        "| an image of 32×32 pixels costs | median | lowest – highest | measured on |",
        "|---|---|---|---|",
        f"| bytes as JPEG, in Parquet | {size['encoded']:.0f} | | its file |",
        f"| bytes decoded | {size['pixels']:.0f} | | its array |",
        *(
            f"| bytes of evidence, {k} classes, {DIMENSIONS} features | {size[f'evidence_{k}']:.0f} | | its file |"
            for k in (10, 1000)
        ),
        constant("reading on a core: from the file to the array", on_core["decoding"], time_of, cpu["hardware"]),
        constant("pass on a core: two forwards of ResNet-20, the filter", on_core["pass"], time_of, "the same"),
        constant("pass on a GPU", on_gpu["pass"], time_of, gpu["hardware"] if gpu else ""),
        constant(
            f"mixtures on a core: features of a CIFAR-10 victim, {mixtures['classes']} classes of "
            f"{mixtures['images_a_class']:.0f}",
            on_core["mixtures"],
            time_of,
            cpu["hardware"],
        ),
        constant("mixtures on a GPU", on_gpu["mixtures"], time_of, gpu["hardware"] if gpu else ""),
        constant("a task, on the driver's core", ray["seconds_a_task"], time_of, f"Ray {ray['version']}, one node"),
        constant(
            "a megabyte to or from a task, on the driver's core",
            {name: 1e6 * value for name, value in ray["seconds_a_byte"].items()},
            time_of,
            "the same",
        ),
        "",
        f"| images | {' | '.join(SIZES)} |",
        "|---" * (1 + len(SIZES)) + "|",
    ]

    def row(name: str, value: Callable[[int], float] | None, show: Callable[[float], str]) -> str:
        shown = (missing if value is None else show(value(n)) for n in SIZES.values())
        return f"| {name} | {' | '.join(shown)} |"

    reading, passing, mixing = (on_core[name]["median"] for name in ("decoding", "pass", "mixtures"))

    def driver(n: int, shipped: float) -> float:
        return n / SHARD * ray["seconds_a_task"]["median"] + n * shipped * ray["seconds_a_byte"]["median"]

    def gives_out(n: int) -> float:
        return driver(n, size["pixels"] + size["evidence_10"])

    def driver_reads(n: int) -> float:
        return n * reading + max(n * (passing + mixing) / CORES, gives_out(n))

    def tasks_read(n: int) -> float:
        return max(n * (reading + passing + mixing) / CORES, driver(n, size["evidence_10"]))

    def hired(name: str) -> list[str]:
        told = on_gpu[name]
        seconds = None if told is None else lambda n: n * told["median"]
        dollars = None if told is None else lambda n: n * told["median"] / 3600 * gpu_hour
        price = f"{name}, at ${gpu_hour:.2f} a GPU hour"
        return [row(f"{name} on one GPU", seconds, time_of), row(price, dollars, lambda n: f"${n:,.2f}")]

    lines += [
        row("as JPEG, in Parquet", lambda n: n * size["encoded"], bytes_of),
        row("decoded", lambda n: n * size["pixels"], bytes_of),
        row("evidence, 10 classes", lambda n: n * size["evidence_10"], bytes_of),
        row("evidence, 1000 classes", lambda n: n * size["evidence_1000"], bytes_of),
        row(f"tasks of the pass, {SHARD} images each", lambda n: -(-n // SHARD), lambda n: f"{n:,.0f}"),
        row("reading on one core", lambda n: n * reading, time_of),
        row("pass on one core", lambda n: n * passing, time_of),
        row("mixtures on one core", lambda n: n * mixing, time_of),
        row("driver: giving out shards, taking evidence", gives_out, time_of),
        row(f"all on {CORES} cores, after the driver has read on one", driver_reads, time_of),
        row(f"all on {CORES} cores, where tasks read their shards", tasks_read, time_of),
        *hired("pass"),
        *hired("mixtures"),
        "",
        f"torch {cpu['versions']['torch']}, one thread, medians of {ROUNDS} rounds (mixtures: of the classes); times "
        f"on a core are seconds of that core. Assumed: shards of {SHARD} images, {CORES} cores of this kind, "
        f"${gpu_hour:.2f} a GPU hour, and mixtures whose time grows with the number of images. "
        "The driver gives out and takes in while the cores work.",
    ]
    return "\n".join(lines)


def read(path: Path) -> dict:
    content: dict = json.loads(path.read_text(encoding="utf-8"))
    return content


app = typer.Typer(add_completion=False)


@app.command()
def measure(
    out: Annotated[Path, typer.Option(help="the JSON file")] = CPU,
    device: Annotated[str, typer.Option(help="cpu or cuda; on cuda the pass alone")] = "cpu",
    cifar: Annotated[Path, typer.Option(help="CIFAR-10, training or test set, as Parquet")] = Path("train.parquet"),
    evidence: Annotated[Path, typer.Option(help="an .npz with features and labels of a victim")] = Path("evidence.npz"),
    images: Annotated[int, typer.Option(help="of the pass")] = 2048,
    classes: Annotated[int, typer.Option(help="of the mixtures")] = 3,
    tasks: Annotated[int, typer.Option(help="of Ray")] = 500,
) -> None:
    """Measure the constants of one device."""
    content: dict = {"versions": {**versions(), "python": platform.python_version()}}
    if device == "cuda":
        content |= {"hardware": hardware(), "pass": measure_pass(device, images, [1024, 4096, 16384])}
    else:
        with one_thread():
            content |= {
                "hardware": hardware(),
                "bytes_an_image": measure_bytes(cifar),
                "decoding": measure_decoding(cifar),
                "pass": measure_pass(device, images, [128]),
                "mixtures": measure_mixtures(evidence, classes),
            }
        content["ray"] = measure_ray(tasks)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(content, indent=1))


@app.command()
def write(gpu_hour: Annotated[float, typer.Option(help="dollars, assumed")] = DOLLARS_A_GPU_HOUR) -> None:
    """Write the tables into docs/ray.md."""
    text = tables(read(CPU), read(GPU) if GPU.exists() else None, gpu_hour)
    write_marked(PAGE, MARKS, text)
    print(text)


if __name__ == "__main__":
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    app()

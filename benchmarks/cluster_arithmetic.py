"""The cost of a million, a hundred million and a billion images: measured constants times the number of images.

    python -m benchmarks.cluster_arithmetic measure --cifar test.parquet --evidence victim.npz
    python -m benchmarks.cluster_arithmetic write

The first command writes the constants of one device into a JSON file. The second makes the tables of docs/ray.md
from results/cluster/cpu.json and, if it exists, from results/gpu/pass.json, which ``measure --device cuda`` writes.
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

from tools.marked import write_marked
from undoor.data.dataset import Dataset, row_ids
from undoor.data.readers import read as read_data
from undoor.engine import Engine, as_finished, one_thread
from undoor.evidence import Outputs
from undoor.evidence.collect import collect
from undoor.experiments.report.tables import markdown
from undoor.experiments.store import Store, hardware
from undoor.filters import Average
from undoor.findings.provenance import versions
from undoor.mixtures.sweep import MixtureSettings, cluster
from undoor.networks.architectures import build_network
from undoor.networks.classifier import Classifier

ROOT = Path(__file__).parents[1]
CPU, GPU = ROOT / "results" / "cluster" / "cpu.json", ROOT / "results" / "gpu" / "pass.json"
DOCUMENT = ROOT / "docs" / "ray.md"
MARKS = ("<!-- arithmetic: written by `python -m benchmarks.cluster_arithmetic` -->", "<!-- end of arithmetic -->")

SIZES = {"10⁶": 10**6, "10⁸": 10**8, "10⁹": 10**9}
SHARD = 4096
"""Images of one task of the pass (assumed)."""
CORES = 1000
"""Cores of the cluster (assumed)."""
DOLLARS_PER_GPU_HOUR = 3.0
"""Price of a GPU (assumed)."""
SHAPE = (3, 32, 32)
"""Channels, height and width of the images."""
DIMENSIONS = 64
"""Features of the network."""
ROUNDS = 5
"""Repetitions of each measurement."""
LARGE_TASKS = 8
"""Tasks with a whole shard of pixels, in the measurement of the transfer."""
MISSING = "not measured"


def spread(values: list[float]) -> dict[str, float]:
    return {"median": float(np.median(values)), "lowest": min(values), "highest": max(values)}


def measure_pass(device: str, images: int, batch_sizes: list[int]) -> dict:
    """Return the seconds of one image in the pass: two forward passes of ResNet-20, the filter and all transfers.

    On a CPU these are seconds of the core, so that other programs do not count. The fastest batch size is reported.
    """
    clock = time.perf_counter if device == "cuda" else time.process_time
    pixels = np.random.default_rng(0).integers(0, 256, (images, *SHAPE), dtype=np.uint8)
    data = Dataset(pixels, np.arange(images) % 10, tuple(map(str, range(10))), row_ids(images))
    classifier = Classifier(build_network("resnet20", SHAPE, 10), device=device)

    def seconds(batch_size: int) -> float:
        begin = clock()
        collect(classifier, data, (Average(),), batch_size=batch_size)
        return (clock() - begin) / images

    best: dict = {}
    for size in batch_sizes:
        seconds(size)
        result = {"batch_size": size, "seconds_an_image": spread([seconds(size) for _ in range(ROUNDS)])}
        if not best or result["seconds_an_image"]["median"] < best["seconds_an_image"]["median"]:
            best = result
    return {**best, "images": images}


def measure_mixtures(evidence: Path, classes: int) -> dict:
    """Return the seconds of a core that the sweep over K takes for classes of a real victim, per image."""
    arrays = np.load(evidence)
    seconds, sizes = [], []
    for label in range(classes):
        features = arrays["features"][arrays["labels"] == label].astype(np.float32)
        begin = time.process_time()
        cluster(features, MixtureSettings(), seed=0)
        seconds.append(time.process_time() - begin)
        sizes.append(len(features))
    per_image = [s / n for s, n in zip(seconds, sizes, strict=True)]
    return {
        "classes": classes,
        "images_a_class": float(np.mean(sizes)),
        "dimensions": features.shape[1],
        "seconds_an_image": spread(per_image),
    }


def measure_bytes(parquet: Path) -> dict:
    """Return the bytes of an image: in the file, decoded, and as evidence of 10 and 1 000 classes."""
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
            # The evidence consists of the outputs for the image and for its filtered version.
            sizes[f"evidence_{classes}"] = 2 * store.path("cache", str(classes), ".outputs").stat().st_size / rows
    return sizes


def measure_decoding(parquet: Path) -> dict:
    """Return the seconds of a core to read an image from the file into the array."""
    seconds = []
    for _ in range(ROUNDS):
        begin = time.process_time()
        images = len(read_data(str(parquet)))
        seconds.append((time.process_time() - begin) / images)
    return {"images": images, "seconds_an_image": spread(seconds)}


def measure_ray(tasks: int) -> dict:
    """Return the seconds of its core that the driver spends on a task, and on a byte sent to or received from a task.

    All tasks pass through the driver, which therefore limits a large cluster.
    """
    import ray

    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)

    def seconds(function: Callable, items: Iterator) -> float:
        begin = time.process_time()
        for _ in as_finished(function, items, Engine("ray")):
            pass
        return time.process_time() - begin

    def shards(count: int) -> Iterator[np.ndarray]:
        return (np.zeros(SHARD * int(np.prod(SHAPE)), np.uint8) for _ in range(count))

    seconds(type, iter(range(20)))
    per_task = [seconds(type, iter(range(tasks))) / tasks for _ in range(ROUNDS)]
    seconds(np.negative, shards(2))
    # np.negative receives a shard and sends as many bytes back.
    per_shard = [seconds(np.negative, shards(LARGE_TASKS)) / LARGE_TASKS for _ in range(ROUNDS)]
    ray.shutdown()
    transferred = 2 * SHARD * float(np.prod(SHAPE))
    return {
        "version": ray.__version__,
        "seconds_a_task": spread(per_task),
        "seconds_a_byte": spread([s / transferred for s in per_shard]),
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
    """Return both tables as Markdown: the constants with their spread, and the costs that follow from them."""
    return "\n\n".join([constants_table(cpu, gpu), costs_table(cpu, gpu, gpu_hour), note(cpu, gpu_hour)])


def seconds_per_image(device: dict | None, name: str) -> dict | None:
    """Return a constant of a device, or None if it was not measured."""
    return device[name]["seconds_an_image"] if device and name in device else None


def constants_table(cpu: dict, gpu: dict | None) -> str:
    size, ray, mixtures = cpu["bytes_an_image"], cpu["ray"], cpu["mixtures"]
    core, gpu_name, one_node = cpu["hardware"], gpu["hardware"] if gpu else "", f"Ray {ray['version']}, one node"
    features = f"features of a CIFAR-10 victim, {mixtures['classes']} classes of {mixtures['images_a_class']:.0f}"
    megabyte = {name: 1e6 * value for name, value in ray["seconds_a_byte"].items()}
    sizes = {
        "bytes as JPEG, in Parquet": (size["encoded"], "the file"),
        "bytes decoded": (size["pixels"], "the array"),
        **{
            f"bytes of evidence, {k} classes, {DIMENSIONS} features": (size[f"evidence_{k}"], "the file")
            for k in (10, 1000)
        },
    }
    times = {
        "reading on a core: from the file to the array": (seconds_per_image(cpu, "decoding"), core),
        "pass on a core: two forward passes of ResNet-20, the filter": (seconds_per_image(cpu, "pass"), "the same"),
        "pass on a GPU": (seconds_per_image(gpu, "pass"), gpu_name),
        f"mixtures on a core: {features}": (seconds_per_image(cpu, "mixtures"), core),
        "mixtures on a GPU": (seconds_per_image(gpu, "mixtures"), gpu_name),
        "a task, on the driver's core": (ray["seconds_a_task"], one_node),
        "a megabyte to or from a task, on the driver's core": (megabyte, "the same"),
    }
    lines = [[name, f"{value:.0f}", "", measured_on] for name, (value, measured_on) in sizes.items()]
    for name, (value, measured_on) in times.items():
        if value is None:
            lines.append([name, MISSING, "", ""])
        else:
            median, lowest, highest = (time_of(value[part]) for part in ("median", "lowest", "highest"))
            lines.append([name, median, f"{lowest} – {highest}", measured_on])
    return markdown(["an image of 32×32 pixels costs", "median", "lowest – highest", "measured on"], lines)


def costs_table(cpu: dict, gpu: dict | None, gpu_hour: float) -> str:
    size, ray = cpu["bytes_an_image"], cpu["ray"]
    names = ("decoding", "pass", "mixtures")
    reading, passing, mixing = (cpu[name]["seconds_an_image"]["median"] for name in names)

    def row(name: str, value: Callable[[int], float] | None, as_text: Callable[[float], str]) -> list[str]:
        return [name, *(MISSING if value is None else as_text(value(n)) for n in SIZES.values())]

    def driver(n: int, bytes_per_image: float) -> float:
        return n / SHARD * ray["seconds_a_task"]["median"] + n * bytes_per_image * ray["seconds_a_byte"]["median"]

    def driver_sends(n: int) -> float:
        return driver(n, size["pixels"] + size["evidence_10"])

    def driver_reads(n: int) -> float:
        return n * reading + max(n * (passing + mixing) / CORES, driver_sends(n))

    def tasks_read(n: int) -> float:
        return max(n * (reading + passing + mixing) / CORES, driver(n, size["evidence_10"]))

    def on_gpu(name: str) -> list[list[str]]:
        value = seconds_per_image(gpu, name)
        seconds = None if value is None else lambda n: n * value["median"]
        dollars = None if value is None else lambda n: n * value["median"] / 3600 * gpu_hour
        price = f"{name}, at ${gpu_hour:.2f} per GPU hour"
        return [row(f"{name} on one GPU", seconds, time_of), row(price, dollars, lambda n: f"${n:,.2f}")]

    lines = [
        row("as JPEG, in Parquet", lambda n: n * size["encoded"], bytes_of),
        row("decoded", lambda n: n * size["pixels"], bytes_of),
        row("evidence, 10 classes", lambda n: n * size["evidence_10"], bytes_of),
        row("evidence, 1000 classes", lambda n: n * size["evidence_1000"], bytes_of),
        row(f"tasks of the pass, {SHARD} images each", lambda n: -(-n // SHARD), lambda n: f"{n:,.0f}"),
        row("reading on one core", lambda n: n * reading, time_of),
        row("pass on one core", lambda n: n * passing, time_of),
        row("mixtures on one core", lambda n: n * mixing, time_of),
        row("driver: sending shards, receiving evidence", driver_sends, time_of),
        row(f"everything on {CORES} cores, after the driver has read on one", driver_reads, time_of),
        row(f"everything on {CORES} cores, if the tasks read their shards", tasks_read, time_of),
        *on_gpu("pass"),
        *on_gpu("mixtures"),
    ]
    return markdown(["images", *SIZES], lines)


def note(cpu: dict, gpu_hour: float) -> str:
    return (
        f"torch {cpu['versions']['torch']}, one thread, medians over {ROUNDS} rounds (mixtures: over the classes). "
        f"Times on a core are seconds of that core. Assumed: shards of {SHARD} images, {CORES} cores of this kind, "
        f"${gpu_hour:.2f} per GPU hour, and mixtures whose time is proportional to the number of images. The driver "
        "sends and receives while the cores work."
    )


def read(path: Path) -> dict:
    content: dict = json.loads(path.read_text(encoding="utf-8"))
    return content


app = typer.Typer(add_completion=False)


@app.command()
def measure(
    out: Annotated[Path, typer.Option(help="the JSON file")] = CPU,
    device: Annotated[str, typer.Option(help="cpu or cuda; on cuda only the pass is measured")] = "cpu",
    cifar: Annotated[Path, typer.Option(help="CIFAR-10, training or test set, as Parquet")] = Path("train.parquet"),
    evidence: Annotated[Path, typer.Option(help="an .npz file with features and labels of a victim")] = Path(
        "evidence.npz"
    ),
    images: Annotated[int, typer.Option(help="images of the pass")] = 2048,
    classes: Annotated[int, typer.Option(help="classes of the mixtures")] = 3,
    tasks: Annotated[int, typer.Option(help="tasks of Ray")] = 500,
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
def write(gpu_hour: Annotated[float, typer.Option(help="the assumed price in dollars")] = DOLLARS_PER_GPU_HOUR) -> None:
    """Write the tables into docs/ray.md."""
    text = tables(read(CPU), read(GPU) if GPU.exists() else None, gpu_hour)
    write_marked(DOCUMENT, MARKS, text)
    print(text)


if __name__ == "__main__":
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    app()

"""Use a GPU that is available for a few minutes: first check that everything works there, then train.

Both commands run from the sources. Only the dependencies of undoor have to be installed:

    PYTHONPATH=src python3 -m tools.gpu_lease smoke --data CIFAR10 --out OUT
    PYTHONPATH=src python3 -m tools.gpu_lease train --data CIFAR10 --store results/paper --out OUT --seconds 500

OUT holds all results in a few files, even if the command is stopped: ``smoke`` writes its results after every step, and
``train`` copies networks, checkpoints and measurements every 20 seconds. On your own machine,

    for part in OUT/store-*.tar; do tar -xf $part -C results/paper; done

unpacks them, and ``undoor bench`` continues with them.
"""

import json
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parents[1]

NETWORKS_A_PART = 4
"""Networks in one tar file. A network takes 1.1 MB and its checkpoint 3.3 MB, so that a file stays below 16 MB."""

COPY_EVERY = 20.0
"""Seconds between two copies of the store."""

RESERVE = 15.0
"""Seconds that are reserved for the last copy."""

app = typer.Typer(add_completion=False)


@app.command()
def smoke(
    data: Annotated[str, typer.Option(help="CIFAR-10, a folder with its training and test split")],
    out: Annotated[Path, typer.Option(help="the folder for the results")],
    seconds: Annotated[float, typer.Option(help="the time limit")] = 160.0,
    images: Annotated[int, typer.Option(help="images in an epoch that is timed")] = 12_800,
    device: Annotated[str, typer.Option(help="cuda, or cpu for a rehearsal")] = "cuda",
    together: Annotated[str, typer.Option(help="numbers of simultaneous trainings that are timed")] = "7,16,1",
) -> None:
    """Print the device and the versions, run the tests for a GPU, and time epochs of several simultaneous trainings."""
    begin = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, object] = {}

    def keep(name: str, value: object) -> None:
        results[name] = value
        results["seconds"] = round(time.monotonic() - begin, 1)
        (out / "smoke.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        typer.echo(f"{results['seconds']:>6} s  {name}: {value}")

    def remaining() -> float:
        return max(seconds - (time.monotonic() - begin), 1.0)

    from undoor.data.readers import read
    from undoor.experiments.store import hardware
    from undoor.findings.provenance import versions

    keep("device", hardware())
    keep("versions", versions())
    train, test = read(data), read(data, split="test")
    keep("data", {"train": train.fingerprint(), "test": test.fingerprint(), "images": [len(train), len(test)]})
    for name, command, share in (
        ("tests", ["-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/test_gpu.py"], 0.5),
        ("eager", _timing(out / "eager.json", images, device, together, "--no-compiled"), 0.4),
        ("compiled", _timing(out / "compiled.json", images, device, together, "--only-compiled"), 1.0),
    ):
        keep(name, _run(command, out / f"{name}.txt", remaining() * share))
        keep("seconds of trainings together", _predicted(out, len(train)))


def _predicted(out: Path, images: int) -> list[dict[str, object]]:
    """Return how many seconds whole trainings on ``images`` images would take, according to the timed epochs."""
    predicted = []
    for path in (out / "eager.json", out / "compiled.json"):
        timed = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"epochs": []}
        for row in timed["epochs"]:
            seconds = row["training_seconds_each"] * images / timed["images"] * row["together"]
            predicted.append(
                {name: row[name] for name in ("preset", "compiled", "together")} | {"seconds": round(seconds)}
            )
    return predicted


def _timing(out: Path, images: int, device: str, together: str, compiled: str) -> list[str]:
    options = [
        "--out",
        str(out.resolve()),
        "--images",
        str(images),
        "--device",
        device,
        "--together",
        together,
        compiled,
    ]
    return ["-m", "benchmarks.gpu_training", *options, "--presets", "paper-bf16,large-batch"]


def _run(command: list[str], output: Path, seconds: float) -> str:
    """Run Python with these arguments, write its output into a file, and return how it ended."""
    with output.open("w", encoding="utf-8") as file:
        try:
            process = subprocess.run(
                [sys.executable, *command],
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"stopped after {seconds:.0f} s"
    last = output.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    return f"exit code {process.returncode}: {' '.join(last)}"


@app.command()
def train(
    data: Annotated[str, typer.Option(help="CIFAR-10, a folder with its training and test split")],
    store: Annotated[Path, typer.Option(help="the folder of results; nothing in it is computed again")],
    out: Annotated[Path, typer.Option(help="the folder for copies of new results")],
    preset: Annotated[str, typer.Option(help="the preset of the trainings")] = "paper-bf16",
    cells: Annotated[
        str, typer.Option(help="patterns of cells, separated by commas")
    ] = "multiple-source-0.??-s0,clean-s0",
    stages: Annotated[str, typer.Option(help="victims, or retraining")] = "victims",
    contenders: Annotated[
        str, typer.Option(help="the contenders after whose findings networks are retrained")
    ] = "ci,ss,ac",
    seconds: Annotated[float, typer.Option(help="the time limit")] = 500.0,
    epochs: Annotated[int | None, typer.Option(help="epochs instead of the preset's, for a rehearsal")] = None,
    capture: Annotated[bool, typer.Option("--capture/--eager", help="capture the steps as CUDA graphs")] = True,
) -> None:
    """Train victims, or retrain networks without the flagged images, within a number of seconds."""
    begin = time.monotonic()
    from undoor.cli import terminal
    from undoor.experiments.runner import Bench
    from undoor.experiments.store import Store
    from undoor.experiments.suites import suite

    chosen = suite(
        "paper", data=data, preset=preset, epochs=epochs, cells=cells, contenders=contenders.split(","),
    )  # fmt: skip
    with _copies(store, out), terminal.bench_board() as on_change:
        budget = seconds - (time.monotonic() - begin) - RESERVE
        board = Bench(
            chosen, Store(store), tuple(stages.split(",")), budget, capture=capture, on_change=on_change
        ).run()
    for name, cell in board.cells.items():
        typer.echo(f"{name}: victim {cell.victim}, diverged {cell.diverged}, {cell.retrained} retrained")
    typer.echo(f"{time.monotonic() - begin:.0f} s")


@contextmanager
def _copies(store: Path, out: Path) -> Iterator[None]:
    """Copy new results of the store every ``COPY_EVERY`` seconds, and once more at the end."""
    out.mkdir(parents=True, exist_ok=True)
    packed = Packed(store, out)
    end = threading.Event()

    def copy() -> None:
        while not end.wait(COPY_EVERY):
            packed.copy()

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
        packed.copy()


class Packed:
    """Copies of the new files of a store, as tar files that can be unpacked independently.

    A network always stays in the same tar file. If a copy is interrupted, some tar files are older than others, and
    nothing is lost.
    """

    def __init__(self, store: Path, out: Path) -> None:
        self._store = store
        self._out = out
        self._old = {path: path.stat().st_mtime_ns for path in self._files()}
        self._part: dict[str, int] = {}
        self._written: dict[int, list[tuple[Path, int]]] = {}

    def _files(self) -> list[Path]:
        stages = ("victims", "retrained", "diverged", "cache")
        files = [path for stage in stages for path in (self._store / "work" / stage).glob("*")]
        suffixes = (".safetensors", ".checkpoint", ".json")
        return sorted(path for path in files if path.suffix in suffixes and not path.name.startswith("."))

    def copy(self) -> None:
        """Write the tar files whose content has changed, each completely or not at all."""
        parts: dict[int, list[tuple[Path, int]]] = {}
        for path in self._files():
            try:
                changed = path.stat().st_mtime_ns
            except FileNotFoundError:  # the checkpoint of a training that has just ended
                continue
            if self._old.get(path) != changed:
                parts.setdefault(self._part_of(path), []).append((path, changed))
        for part, files in parts.items():
            if self._written.get(part) != files:
                self._write(part, [path for path, _ in files])
                self._written[part] = files

    def _part_of(self, path: Path) -> int:
        """Return the number of the tar file for a path. All measurements are in file 0, because they are small."""
        if path.suffix == ".json":
            return 0
        if path.stem not in self._part:
            self._part[path.stem] = 1 + len(self._part) // NETWORKS_A_PART
        return self._part[path.stem]

    def _write(self, part: int, files: list[Path]) -> None:
        target = self._out / f"store-{part}.tar"
        temporary = target.with_suffix(".part")
        with tarfile.open(temporary, "w") as tar:
            for path in files:
                try:
                    tar.add(path, path.relative_to(self._store).as_posix())
                except FileNotFoundError:
                    continue
        temporary.replace(target)


if __name__ == "__main__":
    app()

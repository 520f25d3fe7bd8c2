"""Time the mixtures and the scan beside what they replace.

    python -m benchmarks.speed --data CIFAR10 --victim VICTIM.safetensors

writes benchmarks/RESULTS.md and benchmarks/results.json. Both sides of a ratio run in turn on all cores.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from undoor.data.readers import read
from undoor.engine import map_items
from undoor.evidence.collect import collect
from undoor.experiments.report.tables import markdown
from undoor.findings.provenance import versions
from undoor.mixtures.sweep import MixtureSettings, bic, cluster
from undoor.networks.classifier import BATCH_SIZE, Classifier
from undoor.networks.weights import load_model

FOLDER = Path(__file__).parent
CLASS_SIZE, DIMENSIONS = 1000, 512
"""Images of a class and features of an image in the part "growth"."""


def in_turn(theirs: Callable[[], object], ours: Callable[[], object], repeats: int) -> dict:
    """Time both sides in turn; return the median, the lowest and the highest ratio of their times to ours."""
    seconds: dict[str, list[float]] = {"theirs": [], "ours": []}
    results: dict[str, object] = {}
    for _ in range(repeats):
        for side, work in (("theirs", theirs), ("ours", ours)):
            begin = time.perf_counter()
            results[side] = work()
            seconds[side].append(time.perf_counter() - begin)
    ratios = np.divide(seconds["theirs"], seconds["ours"])
    return {
        "ratio": float(np.median(ratios)),
        "spread": [float(ratios.min()), float(ratios.max())],
        "ours_seconds": float(np.median(seconds["ours"])),
        "theirs_seconds": float(np.median(seconds["theirs"])),
        "results": results,
    }


def scikit_learn_sweep(features: np.ndarray, settings: MixtureSettings, seed: int) -> float:
    """Run the same sweep with scikit-learn's mixture; return its lowest criterion."""
    rows, criteria = features.astype(np.float64), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for k in range(1, settings.max_components + 1):
            if criteria and len(criteria) - 1 - int(np.argmin(criteria)) >= settings.patience:
                break
            mixture = GaussianMixture(
                k,
                n_init=settings.restarts,
                reg_covar=settings.regularisation,
                max_iter=settings.iterations,
                random_state=seed,
            ).fit(rows)
            criteria.append(bic(mixture.score(rows) * len(rows), k, *rows.shape))
    return min(criteria)


def our_sweep(features: np.ndarray, settings: MixtureSettings, seed: int) -> float:
    return min(cluster(features, settings, seed).criteria)


def sweep(options: argparse.Namespace) -> dict:
    """Time the mixtures of all classes, with the same number of restarts on both sides."""
    images = read(options.data)
    evidence = collect(Classifier(load_model(options.victim, None)[0]), images, ())
    classes = [evidence.plain.features[evidence.labels == k] for k in range(len(evidence.class_names))]
    rows = {}
    for restarts in (3, 1):
        settings = MixtureSettings(restarts=restarts)

        def all_classes(work: Callable, settings: MixtureSettings = settings) -> float:
            return sum(map_items(partial(work, settings=settings, seed=0), classes))

        timed = in_turn(partial(all_classes, scikit_learn_sweep), partial(all_classes, our_sweep), options.repeats)
        sums = timed.pop("results")
        name = f"sweep over K, {restarts} start{'s' * (restarts > 1)}, beside scikit-learn's GaussianMixture"
        rows[name] = timed | {
            "what": f"{len(classes)} classes, {len(images)} × {evidence.plain.features.shape[1]} features of a victim",
            "note": f"sum of the criteria: ours {sums['ours']:,.0f}, theirs {sums['theirs']:,.0f} (lower is better)",
        }
    return rows


def scan(options: argparse.Namespace) -> dict:
    """Time the command from start to end beside two plain forward passes over the same images in memory."""
    model = load_model(options.victim, None)[0].eval().to(memory_format=torch.channels_last)
    pixels = torch.from_numpy(np.asarray(read(options.data).images)).contiguous(memory_format=torch.channels_last)
    batches = (pixels.float() / 255).split(BATCH_SIZE)

    def forward_passes() -> None:
        with torch.inference_mode():
            for _ in range(2):
                for batch in batches:
                    model(batch)

    def command() -> None:
        with tempfile.TemporaryDirectory() as folder:
            arguments = ["scan", options.data, "--model", options.victim, "--out", f"{folder}/out", "--exit-zero"]
            subprocess.run([sys.executable, "-m", "undoor", *arguments], check=True, capture_output=True)

    timed = in_turn(forward_passes, command, options.repeats)
    timed.pop("results")
    name = "undoor scan, start to end, beside two bare forward passes"
    return {name: timed | {"what": f"{len(pixels)} images, batches of {BATCH_SIZE}, float32", "note": ""}}


def write_features(path: Path, n: int) -> None:
    """Write n × DIMENSIONS features, one class after another.

    Each class has three groups. The variance of the j-th feature is 1 / j.
    """
    features = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n, DIMENSIONS))
    generator = np.random.default_rng(0)
    deviations = (1 / np.sqrt(np.arange(1, DIMENSIONS + 1))).astype(np.float32)
    for start in range(0, n, CLASS_SIZE):
        groups = generator.normal(size=(3, DIMENSIONS), scale=0.3)[generator.integers(0, 3, CLASS_SIZE)]
        features[start : start + CLASS_SIZE] = generator.normal(size=(CLASS_SIZE, DIMENSIONS)) * deviations + groups
    features.flush()


def growth_of(path: Path) -> dict:
    """Cluster the features in a file; return the time and the peak of the resident memory."""
    features = np.load(path, mmap_mode="r")
    n = len(features)
    begin = time.perf_counter()
    components = map_items(
        partial(component_count, settings=MixtureSettings(), seed=0),
        (features[start : start + CLASS_SIZE] for start in range(0, n, CLASS_SIZE)),
    )
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # it includes the mapped pages of the file
    return {"n": n, "seconds": seconds, "resident_bytes": peak, "components": float(np.mean(components))}


def component_count(features: np.ndarray, settings: MixtureSettings, seed: int) -> int:
    return cluster(features, settings, seed).components


def growth(options: argparse.Namespace) -> dict:
    """Time the mixtures of N images, and of ten times as many images in ten times as many classes.

    Each runs in its own process, so that the memory of one does not count for the other.
    """
    measured = []
    for n in (options.images // 10, options.images):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "features.npy"
            write_features(path, n)
            command = [sys.executable, "-m", "benchmarks.speed", "--growth-of", str(path)]
            measured.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
    few, many = measured
    exponent = float(np.log(many["seconds"] / few["seconds"]) / np.log(many["n"] / few["n"]))
    rows = {}
    for run in (few, many):
        rows[f"mixtures of {run['n']:,} images"] = {
            "ours_seconds": run["seconds"],
            "what": f"{run['n'] // CLASS_SIZE:,} classes, {run['n']:,} × {DIMENSIONS} features",
            "note": f"{run['resident_bytes'] / 1e9:.2f} GB resident at most; K {run['components']:.2f} on average",
        }
    rows[f"mixtures of {many['n']:,} images"]["note"] += f"; time grows as N^{exponent:.3f}"
    return rows


PARTS = {"sweep": sweep, "scan": scan, "growth": growth}


def table(rows: dict) -> str:
    lines = []
    for name, row in rows.items():
        compared = "ratio" in row
        ratio = f"{row['ratio']:.2f} ({row['spread'][0]:.2f}–{row['spread'][1]:.2f})" if compared else ""
        theirs = f"{row['theirs_seconds']:.2f} s" if compared else ""
        rounds = row["repeats"] if compared else 1
        lines.append([name, ratio, rounds, f"{row['ours_seconds']:.2f} s", theirs, row["what"], row["note"]])
    return markdown(["what", "ratio (lowest–highest)", "rounds", "ours", "theirs", "data", ""], lines)


def page(rows: dict) -> str:
    """Return the text of RESULTS.md; the machine is that of the last measurement."""
    machine = list(rows.values())[-1]
    numbers = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    return f"""\
# Speed

`python -m benchmarks.speed` wrote this page. The ratio is the time of theirs divided by the time of ours. Both are
measured in turn in one run, and the ratio is the median over the rounds. {machine["cores"]} cores, \
{machine["threads"]} threads;
{numbers}.

{table(rows)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="CIFAR-10, in a form that undoor reads")
    parser.add_argument("--victim", help="a network trained on it by undoor train")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of a ratio")
    parser.add_argument("--images", type=int, default=1_000_000, help="images of the larger set of the part growth")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--growth-of", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.growth_of:
        print(json.dumps(growth_of(options.growth_of)))
        return
    results = FOLDER / "results.json"
    rows = json.loads(results.read_text()) if results.exists() else {}
    machine = {
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "repeats": options.repeats,
        "versions": versions() | {"python": platform.python_version()},
    }
    for part in options.only:
        rows |= {name: row | machine for name, row in PARTS[part](options).items()}
    results.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    (FOLDER / "RESULTS.md").write_text(page(rows), encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()

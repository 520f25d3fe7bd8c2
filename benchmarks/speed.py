"""The mixtures and the pass, timed beside what they replace: writes benchmarks/RESULTS.md and results.json.

    python benchmarks/speed.py --data CIFAR10 --victim VICTIM.safetensors

Both sides of a ratio run in turn, ``--repeats`` times, on all cores. ``--only`` takes some of: sweep, scan, growth.
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
from undoor.findings.provenance import versions
from undoor.mixtures.sweep import MixtureSettings, bic, cluster
from undoor.networks.classifier import BATCH_SIZE, Classifier
from undoor.networks.weights import load_model

HERE = Path(__file__).parent
GROWTH = {"classes of": 1000, "dimensions": 512}


def in_turn(theirs: Callable[[], object], ours: Callable[[], object], repeats: int) -> dict:
    """Time both in turn; the ratio is theirs / ours: its median, lowest and highest."""
    seconds: dict[str, list[float]] = {"theirs": [], "ours": []}
    results: dict[str, object] = {}
    for _ in range(repeats):
        for side, work in (("theirs", theirs), ("ours", ours)):
            begun = time.perf_counter()
            results[side] = work()
            seconds[side].append(time.perf_counter() - begun)
    ratios = np.divide(seconds["theirs"], seconds["ours"])
    return {
        "ratio": float(np.median(ratios)),
        "spread": [float(ratios.min()), float(ratios.max())],
        "ours_seconds": float(np.median(seconds["ours"])),
        "theirs_seconds": float(np.median(seconds["theirs"])),
        "results": results,
    }


def scikit_learn_sweep(features: np.ndarray, settings: MixtureSettings, seed: int) -> float:
    """Return the lowest criterion of the same sweep with scikit-learn's mixture."""
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
    """Mixtures of all classes, with as many restarts on both sides."""
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
    """Time the command, from its start to its end, beside two bare forward passes over the same images in memory."""
    model = load_model(options.victim, None)[0].eval().to(memory_format=torch.channels_last)
    pixels = torch.from_numpy(np.asarray(read(options.data).images)).contiguous(memory_format=torch.channels_last)
    batches = (pixels.float() / 255).split(BATCH_SIZE)

    def bare() -> None:
        with torch.inference_mode():
            for _ in range(2):
                for batch in batches:
                    model(batch)

    def command() -> None:
        with tempfile.TemporaryDirectory() as folder:
            words = ["scan", options.data, "--model", options.victim, "--out", f"{folder}/out", "--exit-zero"]
            subprocess.run([sys.executable, "-m", "undoor", *words], check=True, capture_output=True)

    timed = in_turn(bare, command, options.repeats)
    timed.pop("results")
    name = "undoor scan, start to end, beside two bare forward passes"
    return {name: timed | {"what": f"{len(pixels)} images, batches of {BATCH_SIZE}, float32", "note": ""}}


def features_on_disk(path: Path, n: int) -> None:
    """Write n × 512 features, class after class: three groups each, variances that fall off like 1 / rank."""
    per_class, t = GROWTH["classes of"], GROWTH["dimensions"]
    features = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n, t))
    generator = np.random.default_rng(0)
    spread = (1 / np.sqrt(np.arange(1, t + 1))).astype(np.float32)
    for begin in range(0, n, per_class):
        groups = generator.normal(size=(3, t), scale=0.3)[generator.integers(0, 3, per_class)]
        features[begin : begin + per_class] = generator.normal(size=(per_class, t)) * spread + groups
    features.flush()


def growth_of(path: Path) -> dict:
    """Cluster the features in a file and tell how long it took and how much memory was resident at most."""
    features = np.load(path, mmap_mode="r")
    n, per_class = len(features), GROWTH["classes of"]
    begun = time.perf_counter()
    found = map_items(
        partial(components, settings=MixtureSettings(), seed=0),
        (features[begin : begin + per_class] for begin in range(0, n, per_class)),
    )
    seconds = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # with the pages of the file
    return {"n": n, "seconds": seconds, "resident_bytes": peak, "components": float(np.mean(found))}


def components(features: np.ndarray, settings: MixtureSettings, seed: int) -> int:
    return cluster(features, settings, seed).components


def growth(options: argparse.Namespace) -> dict:
    """Mixtures of ten times as many images in ten times as many classes, each in a process of its own."""
    measured = []
    for n in (options.images // 10, options.images):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "features.npy"
            features_on_disk(path, n)
            command = [sys.executable, __file__, "--growth-of", str(path)]
            measured.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
    few, many = measured
    exponent = float(np.log(many["seconds"] / few["seconds"]) / np.log(many["n"] / few["n"]))
    rows = {}
    for each in (few, many):
        rows[f"mixtures of {each['n']:,} images"] = {
            "ours_seconds": each["seconds"],
            "what": f"{each['n'] // GROWTH['classes of']:,} classes, {each['n']:,} × {GROWTH['dimensions']} features",
            "note": f"{each['resident_bytes'] / 1e9:.2f} GB resident at most; K {each['components']:.2f} on average",
        }
    rows[f"mixtures of {many['n']:,} images"]["note"] += f"; time grows as N^{exponent:.3f}"
    return rows


PARTS = {"sweep": sweep, "scan": scan, "growth": growth}


def table(rows: dict) -> str:
    lines = ["| what | ratio (lowest–highest) | rounds | ours | theirs | data | |", "|" + " --- |" * 7]
    for name, row in rows.items():
        ratio = f"{row['ratio']:.2f} ({row['spread'][0]:.2f}–{row['spread'][1]:.2f})" if "ratio" in row else ""
        theirs = f"{row['theirs_seconds']:.2f} s" if "ratio" in row else ""
        rounds = row["repeats"] if "ratio" in row else 1
        lines.append(
            f"| {name} | {ratio} | {rounds} | {row['ours_seconds']:.2f} s | {theirs} | {row['what']} | {row['note']} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="CIFAR-10, as undoor reads it")
    parser.add_argument("--victim", help="a network trained on it, as undoor train writes it")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--images", type=int, default=1_000_000, help="of the largest set of the growth")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--growth-of", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.growth_of:
        print(json.dumps(growth_of(options.growth_of)))
        return
    store = HERE / "results.json"
    rows = json.loads(store.read_text()) if store.exists() else {}
    machine = {
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "repeats": options.repeats,
        "versions": versions() | {"python": platform.python_version()},
    }
    for part in options.only:
        rows |= {name: row | machine for name, row in PARTS[part](options).items()}
    store.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    told = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    text = (
        "# Speed\n\nWritten by `benchmarks/speed.py`. Ratio: seconds of theirs / seconds of ours, both measured in "
        f"turn in one run, median of the rounds. {machine['cores']} cores, {machine['threads']} threads; {told}."
        "\n\n"
    )
    (HERE / "RESULTS.md").write_text(text + table(rows) + "\n", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()

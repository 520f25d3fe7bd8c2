"""Time Spectral Signatures and Activation Clustering beside those of ART, on the same features in the same run.

    python -m benchmarks.against_art

writes results/against-art/results.json: times, and rates of detection, which show that both sides compute the same. ART
is installed into a virtual environment of its own. The features contain poisoned images, which lie farther from the
origin than the clean images of their class in one case, and nearer in the other. ``--quick`` only shows that
everything runs; without ``--out`` it writes nothing.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import venv
from importlib.metadata import version
from pathlib import Path

import numpy as np

from undoor.data.dataset import row_ids
from undoor.defenses.training_set import ActivationClustering, SpectralSignatures
from undoor.defenses.training_set.spectral_signatures import authors_share
from undoor.evidence import Evidence, Outputs
from undoor.findings.metrics import detection

ROOT = Path(__file__).parents[1]
ART = "adversarial-robustness-toolbox==1.20.1"
PACKAGES = ("torch", "numpy", "scipy", "scikit-learn")
CLASSES, DIMENSIONS, TARGET = 10, 64, 0
CASES = {"poisons outward": 1.0, "poisons inward": -1.0}


def environment(folder: Path) -> Path:
    """Return the Python of a virtual environment with ART, and with the versions of constraints.txt."""
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        venv.create(folder, with_pip=True, clear=True)
        constraints = ["--constraint", ROOT / "constraints.txt"]
        packages = [*PACKAGES, ART, "packaging"]  # ART imports packaging, but does not depend on it
        subprocess.run([python, "-m", "pip", "install", "--quiet", *constraints, *packages], check=True)
        (folder / "installed").touch()
    return python


def synthetic_features(per_class: int, poisons: int, direction: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features (N, 64) float32, labels (N,), and (N,) bool: which images are poisoned.

    The poisoned images of the target class are moved along the mean of that class.
    """
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(CLASSES, DIMENSIONS))
    centres *= 12 / np.linalg.norm(centres, axis=1, keepdims=True)
    labels = np.concatenate([np.repeat(np.arange(CLASSES), per_class), np.full(poisons, TARGET)])
    features = centres[labels] + generator.normal(size=(len(labels), DIMENSIONS))
    poisoned = np.arange(len(labels)) >= CLASSES * per_class
    features[poisoned] += direction * 0.8 * centres[TARGET]
    order = generator.permutation(len(labels))
    return features[order].astype(np.float32), labels[order], poisoned[order]


def methods(expected: float) -> dict:
    """Return by name our defense, and the name and settings of ART's; ``expected`` is the share of poisoned images."""

    def clustering(rule: str, whiten: bool) -> tuple:
        theirs = {"cluster_analysis": {"silhouette": "silhouette-scores"}.get(rule, rule)}
        return (
            lambda seed: ActivationClustering(rule, whiten=whiten, seed=seed),
            "ac",
            theirs | {"reduce": "FastICA" if whiten else "PCA"},
        )

    return {
        "spectral signatures": (lambda _: SpectralSignatures(authors_share(expected)), "ss", {"expected": expected}),
        "activation clustering, PCA, smaller": clustering("smaller", whiten=False),
        "activation clustering, FastICA, smaller": clustering("smaller", whiten=True),
        "activation clustering, PCA, relative size": clustering("relative-size", whiten=False),
        "activation clustering, PCA, silhouette": clustering("silhouette", whiten=False),
    }


class Worker:
    """A process in ART's environment, with a number of BLAS and OpenMP threads, or (None) as many as it takes."""

    def __init__(self, python: Path, folder: Path, threads: int | None) -> None:
        limits = {} if threads is None else dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
        inherited = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS") and k != "PYTHONPATH"}
        home = folder / f"home-{threads}"  # ART writes a configuration file there when it is imported
        home.mkdir()
        self.process = subprocess.Popen(
            [python, ROOT / "benchmarks" / "art_worker.py"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=inherited | limits | {"HOME": str(home)},
        )  # fmt: skip
        self.answer = folder / f"answer-{threads}.npz"

    def run(self, features: Path, seed: int, method: str, settings: dict) -> dict:
        """Return the seconds, flags and scores of one run, or the error."""
        job = {"features": str(features), "answer": str(self.answer), "seed": seed}
        self.process.stdin.write(json.dumps(job | {"method": method, "settings": settings}) + "\n")
        self.process.stdin.flush()
        reply = json.loads(self.process.stdout.readline())
        if "error" not in reply:
            with np.load(self.answer) as arrays:
                reply |= {name: arrays[name] for name in ("flagged", "score")}
        return reply

    def close(self) -> None:
        """Let the process end."""
        self.process.stdin.close()
        self.process.wait()


def run_ours(defense, evidence: Evidence) -> dict:
    begin = time.perf_counter()
    findings = defense(evidence)
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "flagged": findings.flagged, "score": findings.samples["score"].to_numpy()}


def median_rates(runs: list[dict], labels: np.ndarray, poisoned: np.ndarray) -> dict:
    """Return the median rates of detection over the runs, or the error."""
    if "error" in runs[0]:
        return {"error": runs[0]["error"]}
    counts = [detection(run["flagged"], run["score"], labels, poisoned) for run in runs]
    names = ("tpr", "fpr_target_class", "fpr_all_classes", "auroc")
    return {name: float(np.median([count[name] for count in counts])) for name in names}


def median_seconds(runs: list[dict]) -> float | None:
    return None if "error" in runs[0] else float(np.median([run["seconds"] for run in runs]))


def compare(python: Path, per_class: int, poisons: int, repeats: int) -> dict:
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "features.npz"
        capped, free = (Worker(python, Path(folder), threads) for threads in (1, None))
        for case, direction in CASES.items():
            features, labels, poisoned = synthetic_features(per_class, poisons, direction)
            np.savez(file, features=features, labels=labels)
            logits = np.eye(CLASSES, dtype=np.float32)[labels]
            names = tuple(map(str, range(CLASSES)))
            evidence = Evidence(Outputs(features, logits), {}, labels, row_ids(len(labels)), names)
            for method, (ours, theirs, settings) in methods(poisons / (per_class + poisons)).items():
                runs: dict[str, list[dict]] = {"ours": [], "theirs": [], "free": []}
                for seed in range(repeats + 1):  # the sides run in turn, and the first round is a warm-up
                    runs["ours"].append(run_ours(ours(seed), evidence))
                    runs["theirs"].append(capped.run(file, seed, theirs, settings))
                    runs["free"].append(free.run(file, seed, theirs, settings))
                name = f"{method}, {case}"
                results[name] = result({side: rows[1:] for side, rows in runs.items()}, labels, poisoned)
                print(name, json.dumps(results[name]), flush=True)
        capped.close()
        free.close()
    return results


def result(runs: dict[str, list[dict]], labels: np.ndarray, poisoned: np.ndarray) -> dict:
    ours, theirs = median_seconds(runs["ours"]), median_seconds(runs["theirs"])
    pairs = zip(runs["ours"], runs["theirs"], strict=True)
    ratios = [] if theirs is None else [t["seconds"] / o["seconds"] for o, t in pairs]
    return {
        "ratio": theirs / ours if theirs else None,
        "spread": [min(ratios), max(ratios)] if ratios else None,
        "ours_seconds": ours,
        "theirs_seconds": theirs,
        "theirs_seconds_with_its_own_threads": median_seconds(runs["free"]),
        "threads": 1,
        "ours": median_rates(runs["ours"], labels, poisoned),
        "theirs": median_rates(runs["theirs"], labels, poisoned),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--venv",
        type=Path,
        default=ROOT / "build" / "art",
        help="ART's virtual environment; it is created if it does not exist",
    )
    parser.add_argument("--out", type=Path, help="the JSON file; by default results/against-art/results.json")
    parser.add_argument("--repeats", type=int, default=7, help="rounds after the warm-up")
    parser.add_argument("--quick", action="store_true", help="a tenth of the images, two rounds")
    options = parser.parse_args()
    per_class, poisons, repeats = (500, 50, 2) if options.quick else (5000, 500, options.repeats)
    python = environment(options.venv)
    code = "from importlib.metadata import version as v; import sys; print(*map(v, sys.argv[1:]))"
    packages = ("adversarial-robustness-toolbox", *PACKAGES)
    numbers = subprocess.run([python, "-c", code, *packages], check=True, capture_output=True, text=True).stdout
    versions = {
        "python": platform.python_version(),
        "ours": {name: version(name) for name in ("undoor", *PACKAGES)},
        "theirs": dict(zip(packages, numbers.split(), strict=True)),
    }
    size = {"classes": CLASSES, "per_class": per_class, "poisons": poisons, "dimensions": DIMENSIONS}
    results = compare(python, per_class, poisons, repeats)
    size |= {"repeats": repeats, "cores": os.cpu_count()}
    content = {name: row | {"versions": versions, "size": size} for name, row in results.items()}
    out = options.out or (None if options.quick else ROOT / "results" / "against-art" / "results.json")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(f"written: {out}", file=sys.stderr)


if __name__ == "__main__":
    main()

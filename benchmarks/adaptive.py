"""Attackers who know Cluster Impurity, on the digits: what works for them and what is found of it.

Writes results/adaptive/results.json and README.md, and the table in SECURITY.md. What is measured already stays;
networks are kept in build/adaptive.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

import undoor
from marked import write_marked
from undoor.attacks import Attack, OnePixel, Pixels, Trigger, poison, triggered
from undoor.data.dataset import Dataset, Truth, row_ids
from undoor.defenses.post_training import ReverseEngineering
from undoor.defenses.training_set import ActivationClustering, SpectralSignatures, TrainingSetDefense
from undoor.evidence.collect import collect
from undoor.experiments.report.tables import markdown, shown
from undoor.filters import Average, Filter, Gaussian, Median, Quantise
from undoor.findings.metrics import accuracy, attack_success_rate
from undoor.findings.provenance import versions
from undoor.networks.classifier import Classifier
from undoor.networks.recipes import recipe
from undoor.networks.victims import fit_victim
from undoor.storage.atomic import write_text

ROOT = Path(__file__).parents[1]
OUT = ROOT / "results" / "adaptive"
NETWORKS = ROOT / "build" / "adaptive"
PAGE = ROOT / "SECURITY.md"
MARKS = ("<!-- adaptive: written by `benchmarks/adaptive.py` -->", "<!-- end of adaptive -->")

SOURCE, TARGET, COUNT, EPOCHS, PLACES, SIDE = "7", "0", 300, 10, 10, 16
TRUTH = ("tpr", "fpr_target_class", "fpr_all_classes", "auroc")
FILTERS: dict[str, Filter] = {
    "average 2×2 (default)": Average(),
    "average 3×3": Average(3),
    "median 3×3": Median(3),
    "gaussian, σ = 1": Gaussian(),
    "gaussian, σ = 2": Gaussian(2),
    "quantisation, 8 levels": Quantise(),
}


OTHERS: dict[str, Callable[[int], TrainingSetDefense]] = {
    "AC, relative size": lambda seed: ActivationClustering("relative-size", seed=seed, workers=1),
    "AC, silhouette": lambda seed: ActivationClustering("silhouette", seed=seed, workers=1),
    "SS": lambda _: SpectralSignatures(),
}


@dataclass(frozen=True)
class Planted:
    """A training set with what an attacker put into it.

    Args:
        dataset: its truth marks the images that teach the trigger by their label.
        triggers: at test time each image of the source class gets one of them, in turn.

    """

    dataset: Dataset
    triggers: tuple[Trigger, ...]


def attack(trigger: Trigger, count: int, seed: int) -> Attack:
    return Attack(trigger, (SOURCE,), TARGET, count, seed=seed)


def drawn(seed: int) -> OnePixel:
    return OnePixel.drawn(0.25, SIDE, SIDE, seed)


def patch(_: int) -> Pixels:
    """Return a bright square of 4 × 4 pixels in a corner, of which an average leaves the middle as it is."""
    return Pixels(tuple((row, column, 0, 0.5) for row, column in product(range(SIDE - 4, SIDE), repeat=2)))


def wave(_: int) -> Pixels:
    """Return a weak sinusoid of two periods over the whole image, which is smooth already."""
    heights = 0.1 * np.sin(2 * np.pi * np.arange(SIDE) * 2 / SIDE + 0.5)
    return Pixels(tuple((row, column, 0, float(heights[column])) for row, column in product(range(SIDE), repeat=2)))


def of_one_trigger(make: Callable[[int], Trigger]) -> Callable[[Dataset, int], Planted]:
    def plant(digits: Dataset, seed: int) -> Planted:
        trigger = make(seed)
        return Planted(poison(digits, attack(trigger, COUNT, seed)), (trigger,))

    return plant


def of_many_pixels(digits: Dataset, seed: int) -> Planted:
    """Plant as many images in all, in small groups, each with a pixel of its own."""
    triggers = tuple(drawn(1000 * seed + k) for k in range(PLACES))
    parts = [poison(digits, attack(trigger, COUNT // PLACES, seed + k)) for k, trigger in enumerate(triggers)]
    return Planted(joined(digits, [part.take(part.truth.poisoned) for part in parts]), triggers)


def with_covers(digits: Dataset, seed: int) -> Planted:
    """Plant as many images again, of other classes, with the trigger and their own labels: it alone tells little."""
    trigger = drawn(seed)
    poisoned = poison(digits, attack(trigger, COUNT, seed))
    others = np.flatnonzero(~np.isin(digits.labels, [digits.class_names.index(name) for name in (SOURCE, TARGET)]))
    cover = digits.take(np.sort(np.random.default_rng((seed, 2)).choice(others, COUNT, replace=False)))
    covers = replace(cover, images=trigger(cover.images), truth=Truth(np.zeros(COUNT, bool), cover.labels))
    return Planted(joined(digits, [poisoned.take(poisoned.truth.poisoned), covers]), (trigger,))


def labels_kept(make: Callable[[int], Trigger]) -> Callable[[Dataset, int], Planted]:
    """Put the trigger on four of five images of the target class, which keep their labels."""

    def plant(digits: Dataset, seed: int) -> Planted:
        trigger = make(seed)
        rows = np.flatnonzero(digits.labels == digits.class_names.index(TARGET))
        chosen = np.isin(np.arange(len(digits)), np.random.default_rng(seed).choice(rows, len(rows) * 4 // 5, False))
        images = np.where(chosen[:, None, None, None], trigger(digits.images), digits.images)
        return Planted(replace(digits, images=images, truth=Truth(chosen, digits.labels)), (trigger,))

    return plant


def joined(digits: Dataset, parts: list[Dataset]) -> Dataset:
    """Return the clean set with the images of attackers behind it."""
    count = len(digits) + sum(map(len, parts))
    truths = [Truth(np.zeros(len(digits), bool), digits.labels), *(part.truth for part in parts)]
    return Dataset(
        np.concatenate([digits.images, *(part.images for part in parts)]),
        np.concatenate([digits.labels, *(part.labels for part in parts)]),
        digits.class_names,
        row_ids(count),
        Truth(
            np.concatenate([truth.poisoned for truth in truths]),
            np.concatenate([truth.original_labels for truth in truths]),
        ),
    )


ATTACKERS: dict[str, Callable[[Dataset, int], Planted]] = {
    "one pixel, brighter by 0.25 (the paper's)": of_one_trigger(drawn),
    "patch of 4×4 pixels, brighter by 0.5": of_one_trigger(patch),
    "sinusoid of 0.1 over the whole image": of_one_trigger(wave),
    f"{PLACES} pixels, each in a {PLACES}th of the images": of_many_pixels,
    "one pixel, and as many covers of other classes that keep their labels": with_covers,
    "one pixel on images of the target class, labels kept": labels_kept(drawn),
    "sinusoid on images of the target class, labels kept": labels_kept(wave),
}


def measured(digits: Dataset, test: Dataset, name: str, seed: int) -> dict:
    """Plant, train, and scan."""
    planted = ATTACKERS[name](digits, seed)
    weights = NETWORKS / f"{planted.dataset.fingerprint()}-{seed}.safetensors"
    victim = Classifier(fit_victim(planted.dataset, recipe(epochs=EPOCHS, seed=seed), weights))
    parts = [triggered(test, attack(trigger, 1, seed)) for trigger in planted.triggers]
    shown_at_test = np.concatenate([part.images[k :: len(parts)] for k, part in enumerate(parts)])
    target = digits.class_names.index(TARGET)
    evidence = collect(victim, planted.dataset, tuple(FILTERS.values()))
    defense = undoor.ClusterImpurity(seed=seed, workers=1)
    find = cache(partial(defense.cluster, evidence))
    truth = planted.dataset.truth.poisoned
    found = {told: replace(defense, filter_name=str(h))(evidence, find).against(truth) for told, h in FILTERS.items()}
    others = {told: make(seed)(evidence).against(truth).truth for told, make in OTHERS.items()}
    inspection = ReverseEngineering(seed=seed)(victim, test)
    return {
        "attacker": name, "seed": seed, "images": int(planted.dataset.truth.poisoned.sum()), "tested": len(parts[0]),
        "clean_accuracy": accuracy(victim.decide(test.images), test.labels),
        "attack_success_rate": attack_success_rate(victim.decide(shown_at_test), target),
        "filters": {
            told: {"poisoned": findings.verdict == "poisoned", **{part: findings.truth[part] for part in TRUTH}}
            for told, findings in found.items()
        },
        "others": {told: {part: other[part] for part in TRUTH} for told, other in others.items()},
        "inspected": {"p": inspection.p, "backdoored": inspection.verdict == "backdoored"},
    }  # fmt: skip


def read_results() -> dict:
    path = OUT / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"rows": []}


def cell(values: list, digits: int) -> str:
    return shown(pd.Series(values, dtype="Float64"), digits)


def table(content: dict) -> str:
    """Return what each attacker reaches, and what Cluster Impurity finds of it with its default settings."""
    lines = []
    for name in ATTACKERS:
        group = [row for row in content["rows"] if row["attacker"] == name]
        default = [row["filters"]["average 2×2 (default)"] for row in group]
        called = sum(one["poisoned"] for one in default)
        lines.append(
            [
                name,
                cell([row["images"] for row in group], 0),
                *(cell([row[part] for row in group], 2) for part in ("attack_success_rate", "clean_accuracy")),
                f"{called} of {len(group)}",
                *(cell([one[part] for one in default], 3) for part in TRUTH),
            ]
        )
    head = ["attacker", "images", "ASR", "clean accuracy", "sets called poisoned", "TPR", "FPR, target class",
            "FPR, all classes", "AUROC"]  # fmt: skip
    return markdown(head, lines)


def by_filter(content: dict) -> str:
    lines = []
    for name in ATTACKERS:
        group = [row for row in content["rows"] if row["attacker"] == name]
        lines.append([name, *(cell([row["filters"][told]["tpr"] for row in group], 2) for told in FILTERS)])
    return markdown(["attacker", *FILTERS], lines)


def by_other(content: dict) -> str:
    lines = []
    for name in ATTACKERS:
        group = [row for row in content["rows"] if row["attacker"] == name]
        cells = [
            cell([row["others"][told][part] for row in group], 2)
            for told, part in product(OTHERS, ("tpr", "fpr_all_classes", "auroc"))
        ]
        backdoored = sum(row["inspected"]["backdoored"] for row in group)
        lines.append([name, *cells, f"{backdoored} of {len(group)}"])
    columns = [f"{told}: {part}" for told, part in product(OTHERS, ("TPR", "FPR, all classes", "AUROC"))]
    return markdown(["attacker", *columns, "`inspect`: called backdoored"], lines)


def note(content: dict) -> str:
    seeds = len({row["seed"] for row in content["rows"]})
    return (
        f"Digits of 16×16 pixels, source {SOURCE}, target {TARGET}, {EPOCHS} epochs. Medians over {seeds} seeds, with "
        "the lowest and the highest. A filter that removes at random has a TPR equal to its FPR and an AUROC of 0.5; a "
        "perfect one has 1, 0 and 1."
    )


def block(content: dict) -> str:
    """Return what stands in SECURITY.md."""
    return f"{table(content)}\n\n{note(content)}"


def page(content: dict) -> str:
    parts = [
        "# Attackers who know the method\n",
        "`python benchmarks/adaptive.py` wrote this page. " + note(content) + "\n",
        "## With the default settings\n",
        table(content),
        "\nASR is the share of test images of the source class that the trigger sends to the target; where there are "
        "several triggers, each image gets one of them. *Images* are those that teach the trigger by their label: the "
        "covers, which are labelled rightly, are not counted among them.\n",
        "## TPR with other filters\n",
        by_filter(content),
        "\n## Other defences\n",
        "Activation Clustering by two of its rules; Spectral Signatures, which removes the same share of every class. "
        "`inspect` has the network and clean images.\n",
        by_other(content),
        "\n" + ", ".join(f"{name} {version}" for name, version in content["versions"].items()) + ".\n",
    ]
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    digits, test = undoor.read("digits"), undoor.read("digits", split="test")
    for seed, name in product(range(options.seeds), ATTACKERS):
        content = read_results()
        if not any((row["attacker"], row["seed"]) == (name, seed) for row in content["rows"]):
            content["rows"].append(measured(digits, test, name, seed))
            content["versions"] = versions()
            write_text(OUT / "results.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
            print(json.dumps(content["rows"][-1], ensure_ascii=False)[:400], flush=True)
    content = read_results()
    write_text(OUT / "README.md", page(content))
    write_marked(PAGE, MARKS, block(content))


if __name__ == "__main__":
    main()

"""Triggers the paper remarks on: another one at test time, an optimised one; and Cluster Impurity's preprocessing.

    python benchmarks/remarks.py --seeds 3
    python benchmarks/remarks.py --victims STORE/victims --data CIFAR10 --test-images 2000

writes results/remarks/results.json and its README.md. What is measured already stays; networks are kept in
build/remarks. The second form adds stored victims of ``undoor bench paper``, and trains nothing.
"""

import argparse
import json
from dataclasses import asdict, replace
from functools import cache, partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

import undoor
from undoor.attacks import Attack, OnePixel, linf, poison, psnr, triggered, variations
from undoor.attacks.optimised import contrast, cross_entropy, displacement
from undoor.attacks.variations import as_pixels
from undoor.data.dataset import Dataset
from undoor.evidence.collect import collect
from undoor.experiments.measure import measure
from undoor.experiments.report.tables import markdown, shown
from undoor.filters import Average, Filter, Gaussian, Median, Noise, Quantise
from undoor.findings.findings import Findings
from undoor.findings.metrics import attack_success_rate
from undoor.findings.provenance import versions
from undoor.networks.classifier import Classifier
from undoor.networks.recipes import Recipe, recipe
from undoor.networks.victims import fit_victim
from undoor.networks.weights import load_model
from undoor.storage.atomic import write_text

ROOT = Path(__file__).parents[1]
OUT = ROOT / "results" / "remarks"
NETWORKS = ROOT / "build" / "remarks"

SOURCE, TARGET, COUNT, EPOCHS = "7", "0", 300, 10
VICTIMS = {"single-source, 0.25": ([SOURCE], 0.25), "multiple-source, 0.40": (None, 0.40)}
SIZES = (0.05, 0.10)
PROMINENT, CENTRAL, ENTROPY = "highest prominence", "drawn, central half", "lowest cross-entropy"
CONTRAST, WORST = "highest contrast", "lowest contrast"
KINDS = (PROMINENT, CENTRAL, ENTROPY, WORST, CONTRAST)
FILTERS: dict[str, Filter] = {
    "average 2×2 (default)": Average(),
    "average 2×2, zero padding": Average(2, "zero"),
    "average 3×3": Average(3),
    "median 3×3": Median(3),
    "gaussian, σ = 1": Gaussian(),
    "noise ± 8/255": Noise(),
    "quantisation, 8 levels": Quantise(),
}
TRUTH = ("tpr", "fpr_target_class", "fpr_all_classes", "auroc")


def schedule(seed: int) -> Recipe:
    return recipe(epochs=EPOCHS, seed=seed)


def fitted(dataset: Dataset, seed: int) -> Classifier:
    """Train on a data set, or take the network that was trained on it before."""
    return Classifier(fit_victim(dataset, schedule(seed), NETWORKS / f"{dataset.fingerprint()}-{seed}.safetensors"))


def at_test_time(victim: Classifier, test: Dataset, attack: Attack) -> dict[str, float]:
    """Return the attack success rate of each variation of the trigger."""
    target = test.class_names.index(attack.target)
    return {
        name: attack_success_rate(victim.decide(triggered(test, attack, trigger).images), target)
        for name, trigger in variations(attack.trigger, test.images.shape[1:], attack.seed).items()
    }


def every_filter(victim: Classifier, poisoned: Dataset, seed: int) -> dict[str, dict]:
    """Return the truth about Cluster Impurity's findings with each filter; the clusters are found once."""
    evidence = collect(victim, poisoned, tuple(FILTERS.values()))
    defense = undoor.ClusterImpurity(seed=seed, workers=1)
    find = cache(partial(defense.cluster, evidence))
    return {
        name: truth(replace(defense, filter_name=str(h))(evidence, find).against(poisoned.truth.poisoned))
        for name, h in FILTERS.items()
    }


def truth(findings: Findings) -> dict:
    return {name: findings.truth[name] for name in TRUTH}


def chosen(kind: str, digits: Dataset, size: float, seed: int) -> Attack:
    """Return the multiple-source attack whose trigger was chosen in a certain way."""
    given = {"target": TARGET, "count": COUNT, "size": size, "seed": seed}
    if kind in (PROMINENT, ENTROPY):
        criterion = "prominence" if kind == PROMINENT else "cross-entropy"
        return Attack.optimised(digits, surrogate(digits, seed), criterion=criterion, **given)
    if kind == CENTRAL:
        return Attack.one_pixel(digits, **given)
    brighter = contrast(digits.images, digits.images[digits.labels != 0], size)[0]
    place = int(brighter.argmax() if kind == CONTRAST else brighter.argmin())
    return Attack.one_pixel(digits, position=divmod(place, digits.images.shape[3]), **given)


def surrogate(digits: Dataset, seed: int) -> Classifier:
    """Return the attacker's network: clean data, and not the victim's seed."""
    return fitted(digits, 100 + seed)


def of_choice(digits: Dataset, test: Dataset, kind: str, size: float, seed: int) -> dict:
    """Attack, train, and scan."""
    attack = chosen(kind, digits, size, seed)
    poisoned = poison(digits, attack)
    victim = fitted(poisoned, seed)
    findings = undoor.scan(victim, poisoned, undoor.ClusterImpurity(seed=seed, workers=1))
    clean = digits.images[digits.labels != digits.class_names.index(TARGET)]
    made = attack.trigger(clean)
    changes = as_pixels(attack.trigger, 1).changes
    row, column, _, change = changes[0]
    stands_out = float(contrast(digits.images, clean, size)[0 if change > 0 else 1, row, column])
    share = stands_out**2 / (1 + stands_out**2)
    return {
        "kind": kind, "size": size, "seed": seed, "trigger": asdict(attack.trigger),
        "linf": float(linf(clean, made).max()), "psnr": float(psnr(clean, made).min()),
        "contrast": stands_out,
        "prominence": share * displacement(surrogate(digits, seed), clean, made),
        "cross_entropy": cross_entropy(surrogate(digits, seed), made, digits.class_names.index(TARGET)),
        **measure(victim, test, attack), **truth(findings),
    }  # fmt: skip


def of_victim(digits: Dataset, test: Dataset, scenario: str, seed: int) -> dict:
    """Measure one digits victim: its trigger's variations, and the filters."""
    sources, size = VICTIMS[scenario]
    attack = Attack.one_pixel(digits, target=TARGET, count=COUNT, size=size, sources=sources, seed=seed)
    poisoned = poison(digits, attack)
    victim = fitted(poisoned, seed)
    return {
        "data": "digits", "scenario": scenario, "seed": seed, "trigger": asdict(attack.trigger),
        "variations": at_test_time(victim, test, attack), "filters": every_filter(victim, poisoned, seed),
    }  # fmt: skip


def measure_stored(folder: Path, data: str, count: int) -> None:
    """Measure the variations' success on stored victims, on the first ``count`` test images."""
    whole = undoor.read(data, split="test")
    test = whole.take(np.arange(min(count, len(whole))))
    for path in sorted(folder.glob("*.json")):
        stored = json.loads(path.read_text(encoding="utf-8"))
        fields, weights = stored["attack"], path.with_suffix(".safetensors")
        key = {"data": stored["data"], "scenario": stored["name"].rpartition("-s")[0], "seed": stored["cell"]["seed"]}
        if fields is None or not weights.exists() or is_measured("victims", **key):
            continue
        attack = Attack(OnePixel(**fields.pop("trigger")), tuple(fields.pop("sources")), **fields)
        success = at_test_time(Classifier(load_model(weights)[0]), test, attack)
        keep(
            "victims",
            {**key, "trigger": asdict(attack.trigger), "test_images": len(test), "variations": success},
        )


def measure_digits(seeds: int) -> None:
    digits, test = undoor.read("digits"), undoor.read("digits", split="test")
    for scenario, seed in product(VICTIMS, range(seeds)):
        if not is_measured("victims", data="digits", scenario=scenario, seed=seed):
            keep("victims", of_victim(digits, test, scenario, seed))
    for size, kind, seed in product(SIZES, KINDS, range(seeds)):
        if not is_measured("choices", size=size, seed=seed, kind=kind):
            keep("choices", of_choice(digits, test, kind, size, seed))


def read_results() -> dict:
    path = OUT / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"victims": [], "choices": []}


def is_measured(part: str, **key: object) -> bool:
    return any(all(row.get(name) == value for name, value in key.items()) for row in read_results()[part])


def keep(part: str, row: dict) -> None:
    """Write a measurement beside the others, as soon as it is made."""
    content = {**read_results(), "versions": versions()}
    content[part].append(row)
    write_text(OUT / "results.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def page(content: dict) -> str:
    parts = [
        "# The paper's remarks on attacks, measured\n",
        "`python benchmarks/remarks.py` wrote this page. Cells are medians over seeds, with the lowest and the highest."
        f" Digits: {EPOCHS} epochs, {COUNT} poisoned images, target {TARGET}.\n",
        "## A trigger at test time that differs from the one in training\n",
        "Attack success rate. Size and position of training are those of the column, unless the row says otherwise.\n",
        variations_table(content["victims"]),
        "\n## An optimised trigger\n",
        "Multiple-source attacks on the digits with one changed pixel, which is chosen before any poisoning. "
        "*Contrast*: the change beside the pixel's own standard deviation. *Cross-entropy*: of a clean network's "
        "decisions on triggered images to the target. *Prominence*: the share of the change in all that the pixel "
        "varies, times how far it moves the features of the clean network; `Attack.optimised` goes by it. ℓ∞ is the "
        "largest change of an image and PSNR the lowest of an image, in dB; TPR, FPR and AUROC are those of Cluster "
        "Impurity with its default settings. The formula of the prominence was settled on victims of the smaller size "
        "with these seeds, and the pixels that are drawn come from the central half of the image alone, as in the "
        "paper: the other rows choose among all.\n",
        choices_table(content["choices"]),
        "\n" + agreement(content["choices"]),
        "\n## Cluster Impurity with other preprocessing\n",
        "On the digits victims of the first table.\n",
        filters_table([row for row in content["victims"] if "filters" in row]),
        "\n" + ", ".join(f"{name} {version}" for name, version in content["versions"].items()) + ".\n",
    ]
    return "\n".join(parts)


def cell(values: list, digits: int = 2) -> str:
    return shown(pd.Series(values, dtype="Float64"), digits)


def variations_table(rows: list[dict]) -> str:
    columns: dict[str, list[dict]] = {}
    for row in rows:
        columns.setdefault(f"{row['data']}, {row['scenario']}", []).append(row["variations"])
    names = [f"{name} ({len(group)} seed{'s' if len(group) > 1 else ''})" for name, group in columns.items()]
    lines = [
        [variation, *(cell([one[variation] for one in group]) for group in columns.values())]
        for variation in rows[0]["variations"]
    ]
    some = sorted({row["test_images"] for row in rows if "test_images" in row})
    note = f"\n\nStored victims: of the first {some[-1]} test images those of the source classes." if some else ""
    return markdown(["trigger at test time", *names], lines) + note


def choices_table(rows: list[dict]) -> str:
    measures = {
        "attack_success_rate": ("ASR", 2), "clean_accuracy": ("clean accuracy", 3), "linf": ("ℓ∞", 3),
        "psnr": ("PSNR", 1),
        "prominence": ("prominence", 4), "contrast": ("contrast", 1), "cross_entropy": ("cross-entropy", 2),
        "tpr": ("TPR", 2),
        "fpr_target_class": ("FPR, target class", 3), "fpr_all_classes": ("FPR, all classes", 3),
        "auroc": ("AUROC", 3),
    }  # fmt: skip
    lines = []
    for size, kind in product(SIZES, KINDS):
        group = [row for row in rows if (row["size"], row["kind"]) == (size, kind)]
        if group:
            cells = [cell([row[name] for row in group], digits) for name, (_, digits) in measures.items()]
            lines.append([f"{size:.2f}", kind, str(len(group)), *cells])
    return markdown(["size", "pixel", "seeds", *(name for name, _ in measures.values())], lines)


def agreement(rows: list[dict]) -> str:
    """Return how well each criterion orders the victims of one size by their attack success."""
    told = []
    for size in SIZES:
        group = [row for row in rows if row["size"] == size]
        if len(group) > 3:
            success = [row["attack_success_rate"] for row in group]
            ranks = [float(spearmanr(success, [sign * row[name] for row in group]).statistic)
                     for name, sign in (("prominence", 1), ("contrast", 1), ("cross_entropy", -1))]  # fmt: skip
            told.append([f"{size:.2f}", str(len(group)), *(f"{rank:+.2f}".replace("-", "−") for rank in ranks)])
    head = ["size", "victims", "prominence", "contrast", "cross-entropy, negative"]
    return "Rank correlation (Spearman) of the attack success rate with\n\n" + markdown(head, told)


def filters_table(rows: list[dict]) -> str:
    lines = []
    for scenario, name in product(VICTIMS, FILTERS):
        group = [row["filters"][name] for row in rows if row["scenario"] == scenario]
        if group:
            lines.append([scenario, name, str(len(group)), *(cell([one[part] for one in group], 3) for part in TRUTH)])
    return markdown(["victims", "filter", "seeds", "TPR", "FPR, target class", "FPR, all classes", "AUROC"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--victims", type=Path, help="a folder of stored victims: only their variations are added")
    parser.add_argument("--data", help="on which they were trained")
    parser.add_argument("--test-images", type=int, default=2000)
    options = parser.parse_args()
    if options.victims:
        measure_stored(options.victims, options.data, options.test_images)
    else:
        measure_digits(options.seeds)
    write_text(OUT / "README.md", page(read_results()))


if __name__ == "__main__":
    main()

"""Attacks that the paper mentions: another trigger at test time, an optimised trigger; and other image filters.

    python -m studies.remarks --seeds 3
    python -m studies.remarks --victims STORE/victims --data CIFAR10 --test-images 2000

writes results/remarks. Measurements in results/remarks are not repeated. The trained networks are kept in
build/remarks. The second form adds stored victims of ``undoor bench paper`` and trains nothing.
"""

import json
from dataclasses import asdict
from itertools import product
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

import undoor
from studies import shared
from studies.shared import RATES, ROOT, Study, cell, findings_by_filter, grouped_table, median, rates
from undoor.attacks import Attack, OnePixel, linf, poison, psnr, triggered, variations
from undoor.attacks.optimised import contrast, cross_entropy, displacement
from undoor.attacks.variations import as_pixels
from undoor.data.dataset import Dataset
from undoor.evidence.collect import collect
from undoor.experiments.measure import measure
from undoor.experiments.report.tables import markdown
from undoor.filters import Average, Filter, Gaussian, Median, Noise, Quantise
from undoor.findings.metrics import attack_success_rate
from undoor.networks.classifier import Classifier
from undoor.networks.weights import load_model

STUDY = Study(ROOT / "results" / "remarks", ("victims", "choices"))
NETWORKS = ROOT / "build" / "remarks"

SOURCE, TARGET, COUNT, EPOCHS = "7", "0", 300, 10
VICTIMS = {"single-source, 0.25": ([SOURCE], 0.25), "multiple-source, 0.40": (None, 0.40)}
"""The attacks on the digits whose triggers vary at test time: source classes (None: all others) and size."""
SIZES = (0.05, 0.10)
"""The sizes of the triggers whose pixel is chosen in different ways."""
PROMINENT, CENTRAL, ENTROPY = "highest prominence", "drawn, central half", "lowest cross-entropy"
CONTRAST, WORST = "highest contrast", "lowest contrast"
CHOICES = (PROMINENT, CENTRAL, ENTROPY, WORST, CONTRAST)
"""The ways in which an attacker chooses the pixel."""
FILTERS: dict[str, Filter] = {
    "average 2×2 (default)": Average(),
    "average 2×2, zero padding": Average(2, "zero"),
    "average 3×3": Average(3),
    "median 3×3": Median(3),
    "gaussian, σ = 1": Gaussian(),
    "noise ± 8/255": Noise(),
    "quantisation, 8 levels": Quantise(),
}


def victim(dataset: Dataset, seed: int) -> Classifier:
    return shared.victim(dataset, EPOCHS, seed, NETWORKS)


def success_by_variation(classifier: Classifier, test: Dataset, attack: Attack) -> dict[str, float]:
    """Return the attack success rate of each variation of the trigger at test time."""
    target = test.class_names.index(attack.target)
    return {
        name: attack_success_rate(classifier.decide(triggered(test, attack, trigger).images), target)
        for name, trigger in variations(attack.trigger, test.images.shape[1:], attack.seed).items()
    }


def choose_attack(choice: str, digits: Dataset, size: float, seed: int) -> Attack:
    """Return the multiple-source attack whose pixel is chosen in one of the CHOICES."""
    arguments = {"target": TARGET, "count": COUNT, "size": size, "seed": seed}
    if choice in (PROMINENT, ENTROPY):
        criterion = "prominence" if choice == PROMINENT else "cross-entropy"
        return Attack.optimised(digits, surrogate(digits, seed), criterion=criterion, **arguments)
    if choice == CENTRAL:
        return Attack.one_pixel(digits, **arguments)
    contrasts = contrast(digits.images, digits.images[digits.labels != 0], size)[0]
    pixel = int(contrasts.argmax() if choice == CONTRAST else contrasts.argmin())
    return Attack.one_pixel(digits, position=divmod(pixel, digits.images.shape[3]), **arguments)


def surrogate(digits: Dataset, seed: int) -> Classifier:
    """Return the attacker's own network, which is trained on clean data with another seed than the victim's."""
    return victim(digits, 100 + seed)


def measure_choice(digits: Dataset, test: Dataset, choice: str, size: float, seed: int) -> dict:
    """Choose a trigger, poison the digits with it, train a victim, and scan."""
    attack = choose_attack(choice, digits, size, seed)
    poisoned = poison(digits, attack)
    classifier = victim(poisoned, seed)
    findings = undoor.scan(classifier, poisoned, undoor.ClusterImpurity(seed=seed, workers=1))
    clean = digits.images[digits.labels != digits.class_names.index(TARGET)]
    with_trigger = attack.trigger(clean)
    row, column, _, change = as_pixels(attack.trigger, 1).changes[0]
    pixel_contrast = float(contrast(digits.images, clean, size)[0 if change > 0 else 1, row, column])
    share = pixel_contrast**2 / (1 + pixel_contrast**2)
    return {
        "kind": choice,
        "size": size,
        "seed": seed,
        "trigger": asdict(attack.trigger),
        "linf": float(linf(clean, with_trigger).max()),
        "psnr": float(psnr(clean, with_trigger).min()),
        "contrast": pixel_contrast,
        "prominence": share * displacement(surrogate(digits, seed), clean, with_trigger),
        "cross_entropy": cross_entropy(surrogate(digits, seed), with_trigger, digits.class_names.index(TARGET)),
        **measure(classifier, test, attack),
        **rates(findings),
    }


def measure_victim(digits: Dataset, test: Dataset, scenario: str, seed: int) -> dict:
    """Measure one victim on the digits: variations of its trigger, and Cluster Impurity with each filter."""
    sources, size = VICTIMS[scenario]
    attack = Attack.one_pixel(digits, target=TARGET, count=COUNT, size=size, sources=sources, seed=seed)
    poisoned = poison(digits, attack)
    classifier = victim(poisoned, seed)
    evidence = collect(classifier, poisoned, tuple(FILTERS.values()))
    by_filter = findings_by_filter(evidence, FILTERS, seed, poisoned.truth.poisoned)
    return {
        "data": "digits",
        "scenario": scenario,
        "seed": seed,
        "trigger": asdict(attack.trigger),
        "variations": success_by_variation(classifier, test, attack),
        "filters": {name: rates(findings) for name, findings in by_filter.items()},
    }


def measure_stored(folder: Path, data: str, count: int) -> None:
    """Measure the variations of the triggers of stored victims, on the first ``count`` test images."""
    whole = undoor.read(data, split="test")
    test = whole.take(np.arange(min(count, len(whole))))
    for path in sorted(folder.glob("*.json")):
        stored = json.loads(path.read_text(encoding="utf-8"))
        fields, weights = stored["attack"], path.with_suffix(".safetensors")
        key = {"data": stored["data"], "scenario": stored["name"].rpartition("-s")[0], "seed": stored["cell"]["seed"]}
        if fields is None or not weights.exists() or STUDY.has("victims", **key):
            continue
        attack = Attack(OnePixel(**fields.pop("trigger")), tuple(fields.pop("sources")), **fields)
        success = success_by_variation(Classifier(load_model(weights)[0]), test, attack)
        STUDY.add(
            "victims", {**key, "trigger": asdict(attack.trigger), "test_images": len(test), "variations": success}
        )


def measure_digits(seeds: int) -> None:
    digits, test = undoor.read("digits"), undoor.read("digits", split="test")
    for scenario, seed in product(VICTIMS, range(seeds)):
        if not STUDY.has("victims", data="digits", scenario=scenario, seed=seed):
            STUDY.add("victims", measure_victim(digits, test, scenario, seed))
    for size, choice, seed in product(SIZES, CHOICES, range(seeds)):
        if not STUDY.has("choices", size=size, seed=seed, kind=choice):
            STUDY.add("choices", measure_choice(digits, test, choice, size, seed))


def page(content: dict) -> str:
    """Return the page of the results."""
    parts = [
        "# The paper's remarks on attacks, measured\n",
        "`python -m studies.remarks` wrote this page. Each cell is the median over the seeds, with the lowest and the "
        f"highest value if they differ. Digits: {EPOCHS} epochs, {COUNT} poisoned images, target class {TARGET}.\n",
        "## A trigger at test time that differs from the one in training\n",
        "Attack success rate. The size and the position of the trigger in training are those of the column. At test "
        "time they are the same, unless the row says otherwise.\n",
        variations_table(content["victims"]),
        "\n## An optimised trigger\n",
        "Multiple-source attacks on the digits with one changed pixel, which the attacker chooses before poisoning. "
        "*Contrast* c is the change of the pixel, divided by the pixel's own standard deviation. *Cross-entropy* is "
        "the loss of a clean network on triggered images with the target class as their label. *Prominence* is "
        "c²/(1 + c²), times the distance by which the trigger moves the features of the clean network; "
        "`Attack.optimised` maximises it. ℓ∞ is the largest change of any image, and PSNR (in dB) the lowest of any "
        "image. TPR, FPR and AUROC are those of Cluster Impurity with its default settings. The formula of the "
        "prominence was chosen on victims of the smaller size with these same seeds. Drawn pixels come from the "
        "central half of the image, as in the paper; the other rows choose among all pixels.\n",
        choices_table(content["choices"]),
        f"\n{correlation_table(content['choices'])}",
        "\n## Cluster Impurity with other preprocessing\n",
        "On the digits victims of the first table, with other image filters.\n",
        filters_table([row for row in content["victims"] if "filters" in row]),
        f"\n{shared.versions_line(content)}\n",
    ]
    return "\n".join(parts)


def variations_table(rows: list[dict]) -> str:
    """Return the attack success rate of each variation of the trigger, one column for each group of victims."""
    columns: dict[str, list[dict]] = {}
    for row in rows:
        columns.setdefault(f"{row['data']}, {row['scenario']}", []).append(row["variations"])
    names = [f"{name} ({len(group)} seed{'s' if len(group) > 1 else ''})" for name, group in columns.items()]
    lines = [
        [variation, *(cell(success[variation] for success in group) for group in columns.values())]
        for variation in rows[0]["variations"]
    ]
    counts = sorted({row["test_images"] for row in rows if "test_images" in row})
    note = f"\n\nStored victims: images of the source classes among the first {counts[-1]} test images."
    return markdown(["trigger at test time", *names], lines) + (note if counts else "")


def choices_table(rows: list[dict]) -> str:
    """Return what the attacks with each choice of the pixel reach, and what is found of them."""
    groups = {
        (f"{size:.2f}", choice): [row for row in rows if (row["size"], row["kind"]) == (size, choice)]
        for size, choice in product(SIZES, CHOICES)
    }
    columns = {
        "seeds": len,
        "ASR": median("attack_success_rate"),
        "clean accuracy": median("clean_accuracy", digits=3),
        "ℓ∞": median("linf", digits=3),
        "PSNR": median("psnr", digits=1),
        "prominence": median("prominence", digits=4),
        "contrast": median("contrast", digits=1),
        "cross-entropy": median("cross_entropy"),
        **{heading: median(rate, digits=2 if rate == "tpr" else 3) for rate, heading in RATES.items()},
    }
    return grouped_table(("size", "pixel"), groups, columns)


def correlation_table(rows: list[dict]) -> str:
    """Return how well each criterion orders the victims of one size by their attack success rate."""
    signs = {"prominence": 1, "contrast": 1, "cross_entropy": -1}
    lines = []
    for size in SIZES:
        group = [row for row in rows if row["size"] == size]
        if len(group) > 3:
            success = [row["attack_success_rate"] for row in group]
            ranks = [
                float(spearmanr(success, [sign * row[name] for row in group]).statistic) for name, sign in signs.items()
            ]
            lines.append([f"{size:.2f}", len(group), *(f"{rank:+.2f}".replace("-", "−") for rank in ranks)])
    head = ["size", "victims", "prominence", "contrast", "cross-entropy, negative"]
    return "Rank correlation (Spearman) of the attack success rate with\n\n" + markdown(head, lines)


def filters_table(rows: list[dict]) -> str:
    """Return the rates of detection with each filter."""
    groups = {
        (scenario, name): [row["filters"][name] for row in rows if row["scenario"] == scenario]
        for scenario, name in product(VICTIMS, FILTERS)
    }
    columns = {heading: median(rate, digits=3) for rate, heading in RATES.items()}
    return grouped_table(("victims", "filter"), groups, {"seeds": len, **columns})


def main() -> None:
    parser = shared.seeds_parser(__doc__, 3)
    parser.add_argument("--victims", type=Path, help="a folder of stored victims; nothing else is measured")
    parser.add_argument("--data", help="the data set on which the stored victims were trained")
    parser.add_argument("--test-images", type=int, default=2000)
    options = parser.parse_args()
    if options.victims:
        measure_stored(options.victims, options.data, options.test_images)
    else:
        measure_digits(options.seeds)
    STUDY.write_page(page(STUDY.read()))


if __name__ == "__main__":
    main()

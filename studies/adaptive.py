"""Attackers who know Cluster Impurity, on the digits: what they reach, and how much of it is found.

    python -m studies.adaptive --seeds 3

writes results/adaptive and the table in SECURITY.md. Measurements in results/adaptive are not repeated. The trained
networks are kept in build/adaptive.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

import undoor
from studies import shared
from studies.shared import RATES, ROOT, Study, findings_by_filter, grouped_table, median, rates, share
from tools.marked import write_marked
from undoor.attacks import Attack, OnePixel, Pixels, Trigger, poison, triggered
from undoor.data.dataset import Dataset, Truth, row_ids
from undoor.defenses.post_training import ReverseEngineering
from undoor.defenses.training_set import ActivationClustering, SpectralSignatures, TrainingSetDefense
from undoor.evidence.collect import collect
from undoor.filters import Average, Filter, Gaussian, Median, Quantise
from undoor.findings.metrics import accuracy, attack_success_rate

STUDY = Study(ROOT / "results" / "adaptive")
NETWORKS = ROOT / "build" / "adaptive"
DOCUMENT = ROOT / "SECURITY.md"
MARKS = ("<!-- adaptive: written by `python -m studies.adaptive` -->", "<!-- end of adaptive -->")

SOURCE, TARGET = "7", "0"
COUNT = 300
"""Poisoned images of each attacker, except those who keep the labels."""
EPOCHS = 10
PIXELS = 10
"""Triggers of the attacker who spreads the poisoned images over several pixels."""
SIDE = 16
"""Height and width of the digits, in pixels."""
DEFAULT = "average 2×2 (default)"
FILTERS: dict[str, Filter] = {
    DEFAULT: Average(),
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
"""The other training-set defenses, made from a seed."""


@dataclass(frozen=True)
class Poisoned:
    """A training set that an attacker has changed.

    Args:
        dataset: the training set; its truth marks the images whose label teaches the trigger.
        triggers: the triggers at test time; the images of the source class get them in turn.

    """

    dataset: Dataset
    triggers: tuple[Trigger, ...]


Attacker = Callable[[Dataset, int], Poisoned]
"""Changes the clean digits with a seed."""


def attack(trigger: Trigger, count: int, seed: int) -> Attack:
    return Attack(trigger, (SOURCE,), TARGET, count, seed=seed)


def random_pixel(seed: int) -> OnePixel:
    return OnePixel.drawn(0.25, SIDE, SIDE, seed)


def patch(_: int) -> Pixels:
    """Return a bright square of 4×4 pixels in a corner; an average filter leaves its middle as it is."""
    return Pixels(tuple((row, column, 0, 0.5) for row, column in product(range(SIDE - 4, SIDE), repeat=2)))


def wave(_: int) -> Pixels:
    """Return a weak sinusoid of two periods over the whole image; it is smooth, so filters hardly change it."""
    heights = 0.1 * np.sin(2 * np.pi * np.arange(SIDE) * 2 / SIDE + 0.5)
    return Pixels(tuple((row, column, 0, float(heights[column])) for row, column in product(range(SIDE), repeat=2)))


def with_one_trigger(make_trigger: Callable[[int], Trigger]) -> Attacker:
    """Return the attacker of the paper, with another trigger."""

    def change(digits: Dataset, seed: int) -> Poisoned:
        trigger = make_trigger(seed)
        return Poisoned(poison(digits, attack(trigger, COUNT, seed)), (trigger,))

    return change


def with_many_pixels(digits: Dataset, seed: int) -> Poisoned:
    """Add COUNT poisoned images in PIXELS groups; each group has a pixel of its own."""
    triggers = tuple(random_pixel(1000 * seed + k) for k in range(PIXELS))
    groups = [poison(digits, attack(trigger, COUNT // PIXELS, seed + k)) for k, trigger in enumerate(triggers)]
    return Poisoned(appended(digits, [group.take(group.truth.poisoned) for group in groups]), triggers)


def with_covers(digits: Dataset, seed: int) -> Poisoned:
    """Add the poisoned images, and as many covers: images of other classes with the trigger and their own labels.

    With the covers, the trigger alone says little about the label.
    """
    trigger = random_pixel(seed)
    poisoned = poison(digits, attack(trigger, COUNT, seed))
    other_rows = np.flatnonzero(~np.isin(digits.labels, [digits.class_names.index(name) for name in (SOURCE, TARGET)]))
    cover = digits.take(np.sort(np.random.default_rng((seed, 2)).choice(other_rows, COUNT, replace=False)))
    covers = replace(cover, images=trigger(cover.images), truth=Truth(np.zeros(COUNT, bool), cover.labels))
    return Poisoned(appended(digits, [poisoned.take(poisoned.truth.poisoned), covers]), (trigger,))


def with_labels_kept(make_trigger: Callable[[int], Trigger]) -> Attacker:
    """Return the attacker who puts the trigger on four of five images of the target class and keeps their labels."""

    def change(digits: Dataset, seed: int) -> Poisoned:
        trigger = make_trigger(seed)
        rows = np.flatnonzero(digits.labels == digits.class_names.index(TARGET))
        chosen = np.isin(np.arange(len(digits)), np.random.default_rng(seed).choice(rows, len(rows) * 4 // 5, False))
        images = np.where(chosen[:, None, None, None], trigger(digits.images), digits.images)
        return Poisoned(replace(digits, images=images, truth=Truth(chosen, digits.labels)), (trigger,))

    return change


def appended(digits: Dataset, additions: list[Dataset]) -> Dataset:
    """Return the clean set, followed by the images of an attacker."""
    count = len(digits) + sum(map(len, additions))
    truths = [Truth(np.zeros(len(digits), bool), digits.labels), *(addition.truth for addition in additions)]
    return Dataset(
        np.concatenate([digits.images, *(addition.images for addition in additions)]),
        np.concatenate([digits.labels, *(addition.labels for addition in additions)]),
        digits.class_names,
        row_ids(count),
        Truth(
            np.concatenate([truth.poisoned for truth in truths]),
            np.concatenate([truth.original_labels for truth in truths]),
        ),
    )


ATTACKERS: dict[str, Attacker] = {
    "one pixel, brighter by 0.25 (the paper's)": with_one_trigger(random_pixel),
    "patch of 4×4 pixels, brighter by 0.5": with_one_trigger(patch),
    "sinusoid of 0.1 over the whole image": with_one_trigger(wave),
    f"{PIXELS} pixels, each in a {PIXELS}th of the images": with_many_pixels,
    "one pixel, and as many covers of other classes that keep their labels": with_covers,
    "one pixel on images of the target class, labels kept": with_labels_kept(random_pixel),
    "sinusoid on images of the target class, labels kept": with_labels_kept(wave),
}


def measure(digits: Dataset, test: Dataset, name: str, seed: int) -> dict:
    """Poison the digits as an attacker does, train a victim, and run the defenses."""
    attacked = ATTACKERS[name](digits, seed)
    classifier = shared.victim(attacked.dataset, EPOCHS, seed, NETWORKS)
    tests = [triggered(test, attack(trigger, 1, seed)) for trigger in attacked.triggers]
    triggered_images = np.concatenate([part.images[k :: len(tests)] for k, part in enumerate(tests)])
    evidence = collect(classifier, attacked.dataset, tuple(FILTERS.values()))
    poisoned = attacked.dataset.truth.poisoned
    by_filter = findings_by_filter(evidence, FILTERS, seed, poisoned)
    inspection = ReverseEngineering(seed=seed)(classifier, test)
    return {
        "attacker": name,
        "seed": seed,
        "images": int(poisoned.sum()),
        "tested": len(tests[0]),
        "clean_accuracy": accuracy(classifier.decide(test.images), test.labels),
        "attack_success_rate": attack_success_rate(
            classifier.decide(triggered_images), digits.class_names.index(TARGET)
        ),
        "filters": {
            filter_name: {"poisoned": findings.verdict == "poisoned", **rates(findings)}
            for filter_name, findings in by_filter.items()
        },
        "others": {other: rates(make(seed)(evidence).against(poisoned)) for other, make in OTHERS.items()},
        "inspected": {"p": inspection.p, "backdoored": inspection.verdict == "backdoored"},
    }


def by_attacker(content: dict) -> dict[tuple[str, ...], list[dict]]:
    return {(name,): [row for row in content["rows"] if row["attacker"] == name] for name in ATTACKERS}


def default_table(content: dict) -> str:
    """Return what each attacker reaches, and what Cluster Impurity finds of it with its default settings."""
    columns = {
        "images": median("images", digits=0),
        "ASR": median("attack_success_rate"),
        "clean accuracy": median("clean_accuracy"),
        "sets called poisoned": share("filters", DEFAULT, "poisoned"),
        **{heading: median("filters", DEFAULT, rate, digits=3) for rate, heading in RATES.items()},
    }
    return grouped_table(("attacker",), by_attacker(content), columns)


def filter_table(content: dict) -> str:
    """Return the true-positive rate with each filter."""
    columns = {name: median("filters", name, "tpr") for name in FILTERS}
    return grouped_table(("attacker",), by_attacker(content), columns)


def other_table(content: dict) -> str:
    """Return what the other defenses find."""
    columns = {
        f"{other}: {RATES[rate]}": median("others", other, rate)
        for other, rate in product(OTHERS, ("tpr", "fpr_all_classes", "auroc"))
    }
    columns["`inspect`: called backdoored"] = share("inspected", "backdoored")
    return grouped_table(("attacker",), by_attacker(content), columns)


def note(content: dict) -> str:
    seeds = len({row["seed"] for row in content["rows"]})
    return (
        f"Digits of {SIDE}×{SIDE} pixels, source class {SOURCE}, target class {TARGET}, {EPOCHS} epochs. Each cell is "
        f"the median over {seeds} seeds, with the lowest and the highest value if they differ. Random removal has a "
        "TPR equal to its FPR and an AUROC of 0.5. Perfect removal has a TPR of 1, an FPR of 0 and an AUROC of 1."
    )


def block(content: dict) -> str:
    """Return the part of SECURITY.md that this study writes."""
    return f"{default_table(content)}\n\n{note(content)}"


def page(content: dict) -> str:
    """Return the page of the results."""
    parts = [
        "# Attackers who know the method\n",
        f"`python -m studies.adaptive` wrote this page. {note(content)}\n",
        "## With the default settings\n",
        default_table(content),
        "\nASR, the attack success rate, is the share of test images of the source class that the network assigns to "
        "the target class when they carry the trigger. If an attacker has several triggers, the images get them in "
        "turn. *Images* counts the images whose label teaches the trigger; covers have their right label and are not "
        "counted.\n",
        "## TPR with other filters\n",
        filter_table(content),
        "\n## Other defenses\n",
        "AC is Activation Clustering with two of its rules. SS is Spectral Signatures, which removes the same share of "
        "every class. `inspect` is given the network and clean images.\n",
        other_table(content),
        f"\n{shared.versions_line(content)}\n",
    ]
    return "\n".join(parts)


def main() -> None:
    options = shared.seeds_parser(__doc__, 3).parse_args()
    digits, test = undoor.read("digits"), undoor.read("digits", split="test")
    for seed, name in product(range(options.seeds), ATTACKERS):
        if not STUDY.has("rows", attacker=name, seed=seed):
            STUDY.add("rows", measure(digits, test, name, seed))
    STUDY.write_page(page(STUDY.read()))
    write_marked(DOCUMENT, MARKS, block(STUDY.read()))


if __name__ == "__main__":
    main()

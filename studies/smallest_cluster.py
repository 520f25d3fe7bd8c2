"""The smallest poisoned cluster that the mixture finds, with and without reducing the features.

    python -m studies.smallest_cluster --seeds 2

writes results/smallest-cluster. Measurements there are not repeated. The real features are those of networks that are
trained here on the embedded digits and, if its evidence lies beside the checkout, of a ResNet-20 trained on CIFAR-10.
"""

import time
from dataclasses import replace
from functools import cache, partial
from itertools import product

import numpy as np
import torch
from torch import nn

from studies.shared import ROOT, Study, grouped_table, seeds_parser
from undoor.attacks import Attack, poison
from undoor.data.readers import read
from undoor.engine import one_thread
from undoor.evidence.collect import collect
from undoor.mixtures.sweep import MixtureSettings, bic, cluster
from undoor.networks.classifier import Classifier
from undoor.networks.recipes import recipe
from undoor.networks.training import train

STUDY = Study(ROOT / "results" / "smallest-cluster")
CIFAR = ROOT.parent / "shared" / "data" / "evidence" / "cifar10-multiple-source-0.25.npz"

WIDTHS = (64, 512, 2048)
"""Numbers of features."""
CLEAN = 5000
"""Clean images of the classes with Gaussian features."""
COUNTS = (50, 100, 200, 300, 500, 1000)
DIGITS_COUNTS = (10, 25, 50, 100, 300)
"""Numbers of poisoned images."""
GROUPS = 4
"""Groups of clean images in a class with Gaussian features."""
APART = 6.0
"""Distance of each group from the centre of the class, in standard deviations of a feature."""
DISTANCE = 10.0
"""Distance of the poisoned images from their groups, in standard deviations of a feature."""
FOUND = 0.9
"""The recall from which on a cluster counts as found."""
AFTER = MixtureSettings(restarts=1, dimensions="few")
BEFORE = replace(AFTER, dimensions=None)
"""The mixture with and without the reduction of the features."""
REAL, DECAYING = "CIFAR-10, ResNet-20", "Gaussian, variance of feature j ∝ 1/j"
"""Kinds of features; the others are "digits" and "Gaussian"."""
TRIED_BEFORE = 64
"""Beyond this width the sweep without reduction is not run: one EM takes minutes, and K = 2 cannot win."""

Class = tuple[np.ndarray, np.ndarray]
"""(n, t) float32 features of the images with one label, and (n,) bool: which of them are poisoned."""


def gaussian(width: int, count: int, seed: int, *, decaying: bool) -> Class:
    """Return a class of four Gaussian groups with unit covariance, with a poisoned cluster.

    The groups lie at the distance APART from the centre in random directions. Each poisoned image belongs to one of the
    groups and is moved by DISTANCE in another random direction. If ``decaying``, feature j is then divided by
    √(1 + j), so that the distances lie where the variance is small.
    """
    generator = np.random.default_rng((seed, width, count))
    groups = generator.normal(size=(GROUPS, width))
    groups *= APART / np.linalg.norm(groups, axis=1, keepdims=True)
    offset = generator.normal(size=width)
    offset *= DISTANCE / np.linalg.norm(offset)
    poisoned = np.arange(CLEAN + count) >= CLEAN
    features = generator.normal(size=(CLEAN + count, width)) + groups[generator.integers(0, GROUPS, CLEAN + count)]
    features[poisoned] += offset
    scale = 1 / np.sqrt(1 + np.arange(width)) if decaying else 1.0
    return (features * scale).astype(np.float32), poisoned


class WideCNN(nn.Sequential):
    """Two convolutions and a hidden layer, whose width is the number of penultimate features."""

    def __init__(self, width: int, classes: int) -> None:
        def stage(inputs: int, outputs: int) -> list[nn.Module]:
            convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]

        hidden = [nn.Flatten(), nn.Linear(32 * 4 * 4, width), nn.ReLU()]
        super().__init__(*stage(1, 16), *stage(16, 32), *hidden, nn.Linear(width, classes))


@cache
def digits_class(width: int) -> Class:
    """Train on 5 000 digits and 300 poisoned ones; return the target class."""
    digits = read("digits")
    attack = Attack.one_pixel(digits, target="0", count=300, size=0.4, seed=0)
    poisoned = poison(digits, attack)
    torch.manual_seed(0)
    network = train(poisoned, recipe(epochs=10, learning_rate=0.05), WideCNN(width, 10))
    in_class = poisoned.labels == 0
    features = collect(Classifier(network), poisoned.take(in_class), ()).plain.features
    return features, poisoned.truth.poisoned[in_class]


@cache
def cifar_class(width: int) -> Class:
    """Return the target class of a ResNet-20; wider features are those of a hidden layer trained on top of its 64."""
    with np.load(CIFAR) as file:
        features, labels, poisoned = file["features"].astype(np.float32), file["labels"], file["poisoned"]
    in_class = labels == labels[poisoned][0]
    if width == features.shape[1]:
        return features[in_class], poisoned[in_class]
    torch.manual_seed(0)
    hidden = nn.Sequential(nn.Linear(features.shape[1], width), nn.ReLU())
    head = nn.Linear(width, 10)
    optimizer = torch.optim.Adam([*hidden.parameters(), *head.parameters()], 1e-3)
    inputs, targets = torch.from_numpy(features), torch.from_numpy(labels.astype(np.int64))
    for _ in range(2):
        for rows in torch.randperm(len(inputs)).split(256):
            optimizer.zero_grad()
            nn.functional.cross_entropy(head(hidden(inputs[rows])), targets[rows]).backward()
            optimizer.step()
    with torch.no_grad():
        return hidden(inputs[in_class]).numpy(), poisoned[in_class]


VICTIMS = {"digits": digits_class, REAL: cifar_class}


def with_fewer_poisons(whole: Class, count: int, seed: int) -> Class:
    """Return a class with ``count`` of its poisoned images (all, if it has fewer), drawn at random."""
    features, poisoned = whole
    count = min(count, int(poisoned.sum()))
    drawn = np.random.default_rng((seed, count)).choice(np.flatnonzero(poisoned), count, replace=False)
    rows = np.sort(np.concatenate([np.flatnonzero(~poisoned), drawn]))
    return features[rows], poisoned[rows]


def make_class(features: str, t: int, count: int, seed: int) -> Class:
    """Return the class of one measurement."""
    if features in VICTIMS:
        return with_fewer_poisons(VICTIMS[features](t), count, seed)
    return gaussian(t, count, seed, decaying=features == DECAYING)


def fit(members: Class, settings: MixtureSettings) -> dict:
    """Fit the mixture, and compare the clusters that are mostly poisoned with the truth."""
    features, poisoned = members
    begin = time.process_time()
    with one_thread():
        found = cluster(features, settings, seed=0)
    seconds = time.process_time() - begin
    shares = np.bincount(found.assignments, poisoned) / np.maximum(np.bincount(found.assignments), 1)
    caught = shares[found.assignments] > 0.5
    return {
        "components": found.components,
        "recall": float((caught & poisoned).sum() / poisoned.sum()),
        "precision": float((caught & poisoned).sum() / max(caught.sum(), 1)),
        "seconds": round(seconds, 2),
    }


def one_component_margin(members: Class) -> float:
    """Return by how many nats BIC prefers one Gaussian to the planted truth, without reducing the features."""
    features, poisoned = members

    def log_likelihood(rows: np.ndarray) -> float:
        """Return the log-likelihood of one Gaussian that is fitted to the rows, with the ridge of the mixture."""
        centred = rows - rows.mean(axis=0)
        scatter = centred.T @ centred / len(rows)
        covariance = scatter + BEFORE.regularisation * np.eye(rows.shape[1])
        trace = np.trace(np.linalg.solve(covariance, scatter))
        return -len(rows) / 2 * (np.linalg.slogdet(2 * np.pi * covariance)[1] + trace)

    rows, (n, t) = features.astype(np.float64), features.shape
    parts = [rows[poisoned], rows[~poisoned]]
    two = sum(log_likelihood(part) + len(part) * np.log(len(part) / n) for part in parts)
    return bic(two, 2, n, t) - bic(log_likelihood(rows), 1, n, t)


def measure(key: dict, *, first: bool) -> dict:
    """Measure one class; only that of the first seed is tried without reduction."""
    members = make_class(**key)
    row = {**key, "after": fit(members, AFTER)}
    if first and key["t"] <= TRIED_BEFORE:
        row["before"] = fit(members, BEFORE)
    elif first and key["count"] == max(COUNTS):
        row["one_component_preferred_by"] = round(one_component_margin(members))
    return row


def rates_cell(fits: list[dict], count: int) -> str:
    """Return the median recall and precision for a number of poisoned images."""
    fits = [fitted for fitted in fits if fitted["count"] == count]
    recall, precision = (np.median([fitted[name] for fitted in fits]) for name in ("recall", "precision"))
    return f"{recall:.2f} / {precision:.2f}" if recall else "0"


def smallest_cell(fits: list[dict]) -> str:
    """Return the smallest number of poisoned images that is found with every seed, like every larger number."""
    smallest = "none"
    for count in sorted({fitted["count"] for fitted in fits}, reverse=True):
        if min(fitted["recall"] for fitted in fits if fitted["count"] == count) < FOUND:
            break
        smallest = f"**{count}**"
    return smallest


def section(name: str, rows: list[dict]) -> str:
    """Return the table for one kind of features, with the comparisons by BIC below it."""
    groups = {
        (str(t), side): [{"count": row["count"], **row[side]} for row in rows if row["t"] == t and side in row]
        for t, side in product(WIDTHS, ("before", "after"))
    }
    counts = list(dict.fromkeys(row["count"] for row in rows))
    columns = {"smallest found": smallest_cell, **{str(count): partial(rates_cell, count=count) for count in counts}}
    comparisons = [
        f"t = {row['t']} before: BIC prefers one component to the planted truth of {row['count']} poisoned images by "
        f"{row['one_component_preferred_by']:,} nats. The sweep was not run.".replace(",", " ")
        for row in rows
        if "one_component_preferred_by" in row
    ]
    return "\n\n".join([f"## {name}", grouped_table(("t", ""), groups, columns), *comparisons])


def page(content: dict) -> str:
    """Return the page of the results."""
    seconds = sum(row["after"]["seconds"] for row in content["rows"])
    seeds = len({row["seed"] for row in content["rows"]})
    kinds = dict.fromkeys(row["features"] for row in content["rows"])
    sections = [section(kind, [row for row in content["rows"] if row["features"] == kind]) for kind in kinds]
    return (
        f"""\
# The smallest poisoned cluster that is found

`python -m studies.smallest_cluster` wrote this page. A class has {CLEAN} clean images (about 480 of the digits) and a
poisoned cluster. The mixture is fitted to t features: *before*, to all of them; *after*, to those that
`undoor.mixtures.reduction` leaves. Each cell is the recall / precision of the clusters that are mostly poisoned, as the
median over {seeds} seeds (before: the first seed only). A cluster is *found* if the recall is at least {FOUND} with
every seed, and with every larger number of poisoned images too.

Gaussian features: {GROUPS} groups of unit covariance lie at a distance of {APART:g} from the centre of the class, in
random directions. The poisoned images lie at a distance of {DISTANCE:g} from their groups, in another direction. Real
victims: the network was trained with all poisoned images, and then all but the given number are left out of the class.
The wide features of the ResNet-20 are those of a hidden layer trained on top of its 64 features. It was trained with
999 poisoned images, which the column 1000 shows.

EM starts {AFTER.restarts} time for every K. All fits after the reduction took, together with the reduction, \
{seconds:.0f} s
on one core; torch {content["versions"]["torch"]}, numpy {content["versions"]["numpy"]}.

"""
        + "\n\n".join(sections)
        + "\n"
    )


def main() -> None:
    seeds = range(seeds_parser(__doc__, 2, "number of seeds; each draws other classes").parse_args().seeds)
    for features in ("digits", *([REAL] if CIFAR.exists() else []), "Gaussian", DECAYING):
        counts = DIGITS_COUNTS if features == "digits" else COUNTS
        for t, count, seed in product(WIDTHS, counts, seeds):
            key = {"features": features, "t": t, "count": count, "seed": seed}
            if not STUDY.has("rows", **key):
                STUDY.add("rows", measure(key, first=seed == seeds[0]))
    STUDY.write_page(page(STUDY.read()))


if __name__ == "__main__":
    main()

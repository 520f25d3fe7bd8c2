"""False alarms: how often a clean training set is called poisoned, and a clean network backdoored.

    python benchmarks/false_alarms.py --seeds 20

trains on the clean digits with so many seeds, as ``undoor bench quick`` does for its clean cell, and runs the default
defences and ``inspect`` on every network. Networks and findings are kept in build/false-alarms: a run that was cut
short goes on. The clean victims of results/paper, trained on CIFAR-10, are read as they lie there. Writes
results/false-alarms/results.json and README.md, and the block in docs/limits.md.
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

from marked import write_marked
from undoor.experiments.before_training import CI, CONTENDERS
from undoor.experiments.contenders import slug
from undoor.experiments.report.tables import markdown
from undoor.experiments.runner import Bench, Board
from undoor.experiments.store import Store
from undoor.experiments.suites import Suite, suite
from undoor.networks.training import Step
from undoor.storage.atomic import write_text

ROOT = Path(__file__).parents[1]
OUT = ROOT / "results" / "false-alarms"
PAGE = ROOT / "docs" / "limits.md"
DIGITS, CIFAR = Store(ROOT / "build" / "false-alarms"), Store(ROOT / "results" / "paper")
MARKS = ("<!-- false alarms: written by `benchmarks/false_alarms.py` -->", "<!-- end of false alarms -->")

PLAIN = "CI, poster"
DEFENSES = {
    CI: "Cluster Impurity, default",
    PLAIN: "Cluster Impurity, the paper's plain decision",
    "SS": "Spectral Signatures",
    "AC": "Activation Clustering",
}
INSPECTION = "reverse engineering"
LEVEL = 0.95
ALL = "all"


def clean_suite(seeds: int) -> Suite:
    """Return the clean cells of ``bench quick`` with the defences of this page alone."""
    whole = suite("quick", seeds=range(seeds), cells="clean-*")
    return replace(
        whole,
        cells=tuple(replace(cell, ablations=False) for cell in whole.cells),
        contenders=tuple(contender for contender in CONTENDERS if contender.name in DEFENSES),
        examined=tuple(contender for contender in whole.examined if contender.name == INSPECTION),
    )


def stored(store: Store) -> Iterator[dict]:
    """Yield what a store holds of every network that was trained on a clean set."""
    for key, victim in store.all("victims").items():
        if victim["cell"]["scenario"] != "clean":
            continue
        found = {name: store.read("findings", f"{key}-{slug(name)}") for name in DEFENSES}
        if None in found.values():
            continue
        inspected = store.read("examinations", f"{key}-{slug(INSPECTION)}")
        yield {
            "data": victim["data"],
            "network": victim["network"],
            "seed": victim["cell"]["seed"],
            "images": victim["train_images"],
            "epochs": victim["recipe"]["epochs"],
            "clean_accuracy": victim["clean_accuracy"],
            "torch": victim["versions"]["torch"],
            "defenses": {name: condensed(one) for name, one in found.items()},
            "inspected": inspected and {"backdoored": inspected["detected"], "p": inspected["inspection"]["p"]},
        }


def condensed(found: dict) -> dict:
    impurities = [cluster["impurity"] for cluster in found["clusters"]]
    return {
        "flagged": found["flagged"],
        "classes_flagged": found["classes_flagged"],
        "threshold": found["threshold"],
        "highest_impurity": max(impurities) if found["defense"] == "cluster_impurity" else None,
    }


def collected() -> dict:
    rows = sorted((*stored(DIGITS), *stored(CIFAR)), key=lambda row: (row["data"] != "digits", row["seed"]))
    return {"rows": rows}


def by_data(content: dict) -> dict[str, list[dict]]:
    rows = content["rows"]
    parts = {data: [row for row in rows if row["data"] == data] for data in dict.fromkeys(row["data"] for row in rows)}
    return {**parts, ALL: rows} if len(parts) > 1 else parts


def interval(alarms: int, n: int) -> tuple[float, float]:
    """Return the two-sided interval of Clopper and Pearson (Biometrika 1934) of a rate."""
    low, high = binomtest(alarms, n).proportion_ci(LEVEL, "exact")
    return float(low), float(high)


def rate(alarms: int, n: int) -> list[str]:
    low, high = interval(alarms, n)
    return [f"{alarms} of {n}", f"{alarms / n:.1%}", f"{low:.1%} – {high:.1%}"]


def alarms(rows: Iterable[dict], name: str) -> int:
    return sum(row["defenses"][name]["flagged"] > 0 for row in rows)


def sets_table(content: dict) -> str:
    lines = []
    for data, rows in by_data(content).items():
        for name, title in DEFENSES.items():
            flagged = sum(row["defenses"][name]["flagged"] for row in rows)
            images = sum(row["images"] for row in rows)
            counts = [f"{flagged:,} of {images:,}", f"{flagged / images:.3%}"]
            lines.append([data, title, *rate(alarms(rows, name), len(rows)), *counts])
    interval_of = f"{LEVEL:.0%} interval"
    return markdown(
        ("data", "defence", "called poisoned", "rate", interval_of, "images flagged", "of all images"), lines
    )


def impurity_table(content: dict) -> str:
    lines = []
    for data, rows in by_data(content).items():
        for name in (CI, PLAIN):
            values = [row["defenses"][name]["highest_impurity"] for row in rows]
            threshold = rows[0]["defenses"][name]["threshold"]
            lines.append([data, DEFENSES[name], threshold, f"{np.median(values):.3f}", f"{max(values):.3f}"])
    return markdown(("data", "decision", "threshold", "highest of a set, median", "highest of all"), lines)


def inspection_table(content: dict) -> str:
    lines = []
    for data, rows in by_data(content).items():
        inspected = [row["inspected"] for row in rows if row["inspected"]]
        if inspected:
            lines.append([data, *rate(sum(one["backdoored"] for one in inspected), len(inspected))])
    return markdown(("data", "called backdoored", "rate", f"{LEVEL:.0%} interval"), lines)


def every_set(content: dict) -> str:
    lines = []
    for row in content["rows"]:
        told = [", ".join(row["defenses"][name]["classes_flagged"]) or "–" for name in (CI, PLAIN)]
        highest = [f"{row['defenses'][name]['highest_impurity']:.3f}" for name in (CI, PLAIN)]
        p = f"{min(row['inspected']['p'].values()):.3f}" if row["inspected"] else "–"
        accuracy = f"{row['clean_accuracy']:.3f}"
        lines.append([row["data"], row["seed"], accuracy, highest[0], told[0], highest[1], told[1], p])
    return markdown(
        (
            "data",
            "seed",
            "accuracy",
            "S, default",
            "classes flagged",
            "S, plain",
            "classes flagged",
            "inspect: lowest p",
        ),
        lines,
    )


def page(content: dict) -> str:
    """Return the README of the results."""
    trained = "\n".join(
        f"- {data}: {rows[0]['images']:,} images, {rows[0]['network']}, {rows[0]['epochs']} epochs, "
        f"seeds {rows[0]['seed']} to {rows[-1]['seed']}"
        for data, rows in by_data(content).items()
        if data != ALL
    )
    versions = ", ".join(sorted({row["torch"] for row in content["rows"]}))
    return f"""\
# False alarms on clean training sets

`python benchmarks/false_alarms.py` wrote this page. Nothing is planted: whatever is flagged is a false alarm. Every
network was trained on the whole clean set with another seed, and scanned with default settings:

{trained}

with torch {versions}. Those of CIFAR-10 are read as they lie in [results/paper](../paper/README.md).

The intervals are those of Clopper and Pearson. They speak of trainings on these data, not of other data: the
networks of one row differ in their seed alone.

## Sets called poisoned

{sets_table(content)}

A set is called poisoned when anything is flagged. Spectral Signatures always flags a share of every class.

## How far clean clusters stay below the threshold

{impurity_table(content)}

S is the impurity of a cluster, in nats; a cluster above the threshold is flagged.

## Networks called backdoored by `inspect`

{inspection_table(content)}

## Every set

{every_set(content)}
"""


def block(content: dict) -> str:
    """Return what docs/limits.md says."""
    parts = by_data(content)
    rows = content["rows"]
    inspected = [row["inspected"]["backdoored"] for row in rows if row["inspected"]]
    lines = [[DEFENSES[CI], data, *rate(alarms(mine, CI), len(mine))] for data, mine in parts.items()]
    lines.append([DEFENSES[PLAIN], ALL, *rate(alarms(rows, PLAIN), len(rows))])
    lines.append(["`inspect`, networks called backdoored", ALL, *rate(sum(inspected), len(inspected))])
    highest = max(row["defenses"][CI]["highest_impurity"] for row in rows)
    return f"""\
{markdown(("clean training sets", "data", "called poisoned", "rate", f"{LEVEL:.0%} interval"), lines)}

The highest impurity of a clean cluster was {highest:.3f} with the default, whose threshold is \
{rows[0]["defenses"][CI]["threshold"]}. The trainings differ in
their seed; the data are two sets, and the intervals speak of no others: [every
training](../results/false-alarms/README.md)."""


def write(content: dict) -> None:
    write_text(OUT / "results.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    write_text(OUT / "README.md", page(content))
    write_marked(PAGE, MARKS, block(content))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="trainings on the digits")
    trainings = clean_suite(parser.parse_args().seeds)

    def tell(board: Board, step: Step | None) -> None:
        if step is None:
            print(f"{board.done} of {len(board.cells)} done; {board.running}", flush=True)

    Bench(trainings, DIGITS, ("victims", "findings", "examinations"), on_change=tell).run()
    content = collected()
    write(content)
    print(block(content))

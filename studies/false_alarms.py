"""False alarms: how often a clean training set is called poisoned, and a clean network backdoored.

    python -m studies.false_alarms --seeds 20

trains on the clean digits with each seed, as ``undoor bench quick`` does for its clean cell, and runs the default
defenses and ``inspect`` on every network. Networks and findings are kept in build/false-alarms, so that a run that was
stopped continues. The clean victims of results/paper, trained on CIFAR-10, are read from there. The study writes
results/false-alarms and the table in docs/limits.md.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
from scipy.stats import binomtest

from studies.shared import ROOT, Study, seeds_parser
from tools.marked import write_marked
from undoor.experiments.cells import slug
from undoor.experiments.report.tables import markdown
from undoor.experiments.runner import Bench, Board
from undoor.experiments.store import Store
from undoor.experiments.suites import CI, CONTENDERS, Suite, suite
from undoor.networks.training import Step

STUDY = Study(ROOT / "results" / "false-alarms")
DOCUMENT = ROOT / "docs" / "limits.md"
MARKS = ("<!-- false alarms: written by `python -m studies.false_alarms` -->", "<!-- end of false alarms -->")
DIGITS, CIFAR = Store(ROOT / "build" / "false-alarms"), Store(ROOT / "results" / "paper")

PLAIN = "CI, poster"
DEFENSES = {
    CI: "Cluster Impurity, default",
    PLAIN: "Cluster Impurity, the paper's plain decision",
    "SS": "Spectral Signatures",
    "AC": "Activation Clustering",
}
"""The contenders of ``undoor bench`` that are measured, and their names in the tables."""
INSPECTION = "reverse engineering"
LEVEL = 0.95
"""The coverage of the confidence intervals."""
INTERVAL = f"{LEVEL:.0%} interval"
ALL = "all"
"""The name of the rows over all data sets."""


def clean_suite(seeds: int) -> Suite:
    """Return the clean cells of ``bench quick``, with the defenses of this study only."""
    quick = suite("quick", seeds=range(seeds), cells="clean-*")
    return replace(
        quick,
        cells=tuple(replace(cell, ablations=False) for cell in quick.cells),
        contenders=tuple(contender for contender in CONTENDERS if contender.name in DEFENSES),
        examined=(),
        examinations=tuple(examination for examination in quick.examinations if examination.name == INSPECTION),
    )


def stored(store: Store) -> Iterator[dict]:
    """Yield the results of every network in a store that was trained on a clean set."""
    for key, victim in store.all("victims").items():
        if victim["cell"]["scenario"] != "clean":
            continue
        found = {name: store.read("findings", f"{key}-{slug(name)}") for name in DEFENSES}
        if None in found.values():
            continue
        inspected = store.read("examined", f"{key}-{slug(INSPECTION)}")
        yield {
            "data": victim["data"],
            "network": victim["network"],
            "seed": victim["cell"]["seed"],
            "images": victim["train_images"],
            "epochs": victim["recipe"]["epochs"],
            "clean_accuracy": victim["clean_accuracy"],
            "torch": victim["versions"]["torch"],
            "defenses": {name: condensed(findings) for name, findings in found.items()},
            "inspected": inspected and {"backdoored": inspected["detected"], "p": inspected["p"]},
        }


def condensed(findings: dict) -> dict:
    impurities = [cluster["impurity"] for cluster in findings["clusters"]]
    return {
        "flagged": findings["flagged"],
        "classes_flagged": findings["classes_flagged"],
        "threshold": findings["threshold"],
        "highest_impurity": max(impurities) if findings["defense"] == "cluster_impurity" else None,
    }


def collected() -> dict:
    """Return the results of both stores, the digits first."""
    rows = sorted((*stored(DIGITS), *stored(CIFAR)), key=lambda row: (row["data"] != "digits", row["seed"]))
    return {"rows": rows}


def by_data(content: dict) -> dict[str, list[dict]]:
    """Return the rows of each data set, and of all data sets if there are several."""
    rows = content["rows"]
    parts = {data: [row for row in rows if row["data"] == data] for data in dict.fromkeys(row["data"] for row in rows)}
    return {**parts, ALL: rows} if len(parts) > 1 else parts


def interval(alarms: int, n: int) -> tuple[float, float]:
    """Return the two-sided confidence interval of a rate by Clopper and Pearson (Biometrika 1934)."""
    low, high = binomtest(alarms, n).proportion_ci(LEVEL, "exact")
    return float(low), float(high)


def rate_cells(alarms: int, n: int) -> list[str]:
    """Return three cells: the count, the rate and its interval."""
    low, high = interval(alarms, n)
    return [f"{alarms} of {n}", f"{alarms / n:.1%}", f"{low:.1%} – {high:.1%}"]


def alarms(rows: Iterable[dict], name: str) -> int:
    """Return the number of sets in which a defense flags anything."""
    return sum(row["defenses"][name]["flagged"] > 0 for row in rows)


def sets_table(content: dict) -> str:
    lines = []
    for data, rows in by_data(content).items():
        for name, title in DEFENSES.items():
            flagged = sum(row["defenses"][name]["flagged"] for row in rows)
            images = sum(row["images"] for row in rows)
            counts = [f"{flagged:,} of {images:,}", f"{flagged / images:.3%}"]
            lines.append([data, title, *rate_cells(alarms(rows, name), len(rows)), *counts])
    return markdown(("data", "defense", "called poisoned", "rate", INTERVAL, "images flagged", "of all images"), lines)


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
        verdicts = [row["inspected"]["backdoored"] for row in rows if row["inspected"]]
        if verdicts:
            lines.append([data, *rate_cells(sum(verdicts), len(verdicts))])
    return markdown(("data", "called backdoored", "rate", INTERVAL), lines)


def every_set_table(content: dict) -> str:
    lines = []
    for row in content["rows"]:
        cells = []
        for name in (CI, PLAIN):
            found = row["defenses"][name]
            cells += [f"{found['highest_impurity']:.3f}", ", ".join(found["classes_flagged"]) or "–"]
        p = f"{min(row['inspected']['p'].values()):.3f}" if row["inspected"] else "–"
        lines.append([row["data"], row["seed"], f"{row['clean_accuracy']:.3f}", *cells, p])
    decisions = ("S, default", "classes flagged", "S, plain", "classes flagged")
    return markdown(("data", "seed", "accuracy", *decisions, "inspect: lowest p"), lines)


def page(content: dict) -> str:
    """Return the page of the results."""
    trainings = "\n".join(
        f"- {data}: {rows[0]['images']:,} images, {rows[0]['network']}, {rows[0]['epochs']} epochs, "
        f"seeds {rows[0]['seed']} to {rows[-1]['seed']}"
        for data, rows in by_data(content).items()
        if data != ALL
    )
    torch_versions = ", ".join(sorted({row["torch"] for row in content["rows"]}))
    return f"""\
# False alarms on clean training sets

`python -m studies.false_alarms` wrote this page. Nothing is poisoned here, so whatever is flagged is a false alarm.
Each network was trained on a whole clean set with its own seed, and the set was scanned with default settings:

{trainings}

with torch {torch_versions}. The networks of CIFAR-10 are those of [results/paper](../paper/README.md).

The intervals are those of Clopper and Pearson. They hold for trainings on these data, not for other data: the
networks of one row differ only in their seed.

## Sets called poisoned

{sets_table(content)}

A set is called poisoned when anything is flagged. Spectral Signatures always flags a share of every class.

## How far clean clusters stay below the threshold

{impurity_table(content)}

S is the impurity of a cluster, in nats. A cluster above the threshold is flagged.

## Networks called backdoored by `inspect`

{inspection_table(content)}

## Every set

{every_set_table(content)}
"""


def block(content: dict) -> str:
    """Return the part of docs/limits.md that this study writes."""
    rows = content["rows"]
    verdicts = [row["inspected"]["backdoored"] for row in rows if row["inspected"]]
    lines = [
        *([DEFENSES[CI], data, *rate_cells(alarms(part, CI), len(part))] for data, part in by_data(content).items()),
        [DEFENSES[PLAIN], ALL, *rate_cells(alarms(rows, PLAIN), len(rows))],
        ["`inspect`, networks called backdoored", ALL, *rate_cells(sum(verdicts), len(verdicts))],
    ]
    highest = max(row["defenses"][CI]["highest_impurity"] for row in rows)
    return f"""\
{markdown(("clean training sets", "data", "called poisoned", "rate", INTERVAL), lines)}

The highest impurity of a clean cluster was {highest:.3f} with the default settings, whose threshold is \
{rows[0]["defenses"][CI]["threshold"]}. The trainings
differ only in their seed, and the intervals hold for these two data sets only: [every
training](../results/false-alarms/README.md)."""


def main() -> None:
    seeds = seeds_parser(__doc__, 20, "number of trainings on the digits").parse_args().seeds

    def print_progress(board: Board, step: Step | None) -> None:
        if step is None:
            print(f"{board.done} of {len(board.cells)} done; {board.running}", flush=True)

    Bench(clean_suite(seeds), DIGITS, ("victims", "findings", "examinations"), on_change=print_progress).run()
    content = collected()
    STUDY.write(content)
    STUDY.write_page(page(content))
    write_marked(DOCUMENT, MARKS, block(content))


if __name__ == "__main__":
    main()

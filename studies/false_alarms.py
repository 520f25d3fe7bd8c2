"""False alarms: how often a clean training set is called poisoned, and a clean network backdoored.

    python -m studies.false_alarms --seeds 20

trains on the clean digits with each seed, as ``undoor bench quick`` does for its clean cell, and runs the default
defenses and ``inspect`` on every network. Networks and findings are kept in build/false-alarms, so that a run that was
stopped continues. The clean victims of results/paper, trained on CIFAR-10, are read from there. The study writes
results/false-alarms and the table in docs/limits.md.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from scipy.stats import binomtest

from studies.shared import ROOT, Column, Study, grouped_table, seeds_parser, share
from tools.marked import write_marked
from undoor.experiments.before_training import CI, CONTENDERS
from undoor.experiments.contenders import slug
from undoor.experiments.report.tables import markdown
from undoor.experiments.runner import Bench, Board
from undoor.experiments.store import Store
from undoor.experiments.suites import Suite, suite
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
        examined=tuple(contender for contender in quick.examined if contender.name == INSPECTION),
    )


def stored(store: Store) -> Iterator[dict]:
    """Yield the results of every network in a store that was trained on a clean set."""
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
            "defenses": {name: condensed(findings) for name, findings in found.items()},
            "inspected": inspected and {"backdoored": inspected["detected"], "p": inspected["inspection"]["p"]},
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


def alarm_columns(heading: str) -> dict[str, Column]:
    """Return the columns with the number of alarms, their rate and its interval."""

    def count(rows: list[dict]) -> int:
        return sum(row["alarm"] for row in rows)

    def interval_cell(rows: list[dict]) -> str:
        low, high = interval(count(rows), len(rows))
        return f"{low:.1%} – {high:.1%}"

    return {heading: share("alarm"), "rate": lambda rows: f"{count(rows) / len(rows):.1%}", INTERVAL: interval_cell}


def found_by(name: str, rows: list[dict]) -> list[dict]:
    """Return what one defense found in each set."""
    return [
        {**row["defenses"][name], "images": row["images"], "alarm": row["defenses"][name]["flagged"] > 0}
        for row in rows
    ]


def inspected(rows: list[dict]) -> list[dict]:
    return [{"alarm": row["inspected"]["backdoored"]} for row in rows if row["inspected"]]


def sets_table(content: dict) -> str:
    groups = {
        (data, title): found_by(name, rows)
        for data, rows in by_data(content).items()
        for name, title in DEFENSES.items()
    }

    def flagged(rows: list[dict]) -> tuple[int, int]:
        return sum(row["flagged"] for row in rows), sum(row["images"] for row in rows)

    columns = {
        **alarm_columns("called poisoned"),
        "images flagged": lambda rows: "{:,} of {:,}".format(*flagged(rows)),
        "of all images": lambda rows: f"{np.divide(*flagged(rows)):.3%}",
    }
    return grouped_table(("data", "defense"), groups, columns)


def impurity_table(content: dict) -> str:
    groups = {
        (data, DEFENSES[name]): found_by(name, rows) for data, rows in by_data(content).items() for name in (CI, PLAIN)
    }
    columns = {
        "threshold": lambda rows: rows[0]["threshold"],
        "highest of a set, median": lambda rows: f"{np.median([row['highest_impurity'] for row in rows]):.3f}",
        "highest of all": lambda rows: f"{max(row['highest_impurity'] for row in rows):.3f}",
    }
    return grouped_table(("data", "decision"), groups, columns)


def inspection_table(content: dict) -> str:
    groups = {(data,): inspected(rows) for data, rows in by_data(content).items()}
    return grouped_table(("data",), groups, alarm_columns("called backdoored"))


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
    found = found_by(CI, rows)
    groups = {
        **{(DEFENSES[CI], data): found_by(CI, part) for data, part in by_data(content).items()},
        (DEFENSES[PLAIN], ALL): found_by(PLAIN, rows),
        ("`inspect`, networks called backdoored", ALL): inspected(rows),
    }
    return f"""\
{grouped_table(("clean training sets", "data"), groups, alarm_columns("called poisoned"))}

The highest impurity of a clean cluster was {max(row["highest_impurity"] for row in found):.3f} with the default \
settings, whose threshold is {found[0]["threshold"]}. The trainings
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

"""The tables of detection: what the paper compares, and every defense in every cell."""

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from undoor.experiments.report.clusters import is_variant_of_ci
from undoor.experiments.report.published import DENOMINATOR, Rates
from undoor.experiments.report.results import Results, groups
from undoor.experiments.report.tables import (
    MISSING,
    RATE_HEADINGS,
    difference,
    marked,
    named,
    rates,
    shown,
    success,
    table,
)

COMPARED = {
    "SS, target class": "SS",
    "AC, smaller cluster of target class": "AC",
    "CI, poster": "CI",
    "CI": "CI",
    "SS": None,
    "AC": None,
}
"""The rows of Tables 1 and 2, and the published method that each is comparable with.

The published SS and AC flag only within the target class, which no defender knows. They are oracles.
"""


def detection(
    results: Results, scenario: str, sizes: Sequence[float], published: Mapping[float, Mapping[str, Rates]]
) -> str:
    """Return the rates of the defenses that the paper compares, for every size, beside the published ones if given."""
    group_of_size = {group.size: group for group in groups(results, scenario, keep_originals=True)}
    header = ["size", "ASR", "defense", *RATE_HEADINGS]
    header += ["published TPR", "difference", "published FPR", "difference"] if published else []
    lines = []
    for size in sizes:
        group = group_of_size.get(size)
        victims, cells = (results.victims[:0], results.cells[:0]) if group is None else (group.victims, group.cells)
        for defense, method in COMPARED.items():
            rows = cells[cells["defense"] == defense]
            name = named(defense, oracle=defense.endswith("target class"))
            line = [f"{size:.2f}", success(victims), name, *rates(rows, len(victims))]
            if published:
                line += _beside(rows, published.get(size, {}).get(method or ""), method)
            lines.append(marked(line, victims))
    return table(header, lines, results.cells[results.cells["scenario"] == scenario])


def _beside(rows: pd.DataFrame, published: Rates | None, method: str | None) -> list[str]:
    """Return the published rates and the differences."""
    if published is None or method is None:
        return [MISSING] * 4
    denominator = DENOMINATOR[method]
    classes = denominator.removeprefix("fpr_").replace("_", " ")
    return [
        f"{published.tpr:.3f}",
        difference(rows["tpr"], published.tpr),
        f"{published.fpr:.3f} ({classes})",
        difference(rows[denominator], published.fpr),
    ]


def every_cell(results: Results) -> Iterator[str]:
    """Yield heading and table of every attacked cell, with one row a contender; the controls are always there."""
    header = ["defense", *RATE_HEADINGS, "AUROC", "AUROC, target class", "precision", "ASR before", "ASR after"]
    header += ["accuracy before", "accuracy after", "seconds"]
    for name, size, victims, cells in groups(results, "single-source", "multiple-source"):
        if victims.empty:
            continue
        lines, n = [], len(victims)
        contenders = cells.loc[~is_variant_of_ci(cells), "defense"]
        for defense in dict.fromkeys([*contenders, "random removal", "perfect removal"]):
            rows = cells[cells["defense"] == defense]
            oracle = defense == "perfect removal" or bool(rows["oracle"].any())
            line = [named(defense, oracle), *rates(rows, n)]
            line += [shown(rows[column], 4, n) for column in ("auroc", "auroc_target_class")]
            line += [shown(rows["precision"], 3, n), success(victims)]
            line += [shown(rows["retrained_attack_success_rate"], 4, n), shown(victims["clean_accuracy"], 4)]
            line += [shown(rows["retrained_clean_accuracy"], 4, n), shown(rows["seconds"], 1, n)]
            lines.append(marked(line, victims))
        title = name.replace(f" {size:.2f}", f", size {size:.2f}")
        yield f"#### {title}: ASR {success(victims)}, clean accuracy {shown(victims['clean_accuracy'], 4)}"
        yield table(header, lines, cells if len(cells) else victims)

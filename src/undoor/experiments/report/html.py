"""The page of a suite: one HTML file with its tables and figures."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from undoor.experiments.report.moments import HEADER, INSPECTION_HEADER, inspections, moments
from undoor.experiments.report.results import Results
from undoor.report.result import render_result

CELL_COLUMNS = (
    "cell", "defense", "oracle", "attack_success_rate", "tpr", "fpr_target_class", "fpr_all_classes", "auroc", "tp",
    "fp", "fn", "retrained_attack_success_rate", "clean_accuracy", "retrained_clean_accuracy", "seconds",
)  # fmt: skip
VICTIM_COLUMNS = ("cell", "sources", "target", "count", "clean_accuracy", "attack_success_rate", "seconds", "hardware")


def render_bench(
    suite: str, settings: Sequence[Results], progress: str, figures: Sequence[tuple[str, str]], folder: Path
) -> str:
    """Return victims, findings and figures of a suite as one page, whose tables can be sorted and searched.

    Args:
        suite: name of the suite.
        settings: the results, one for each setting.
        progress: a sentence that says how much of the suite is done.
        figures: name and caption of every figure.
        folder: the folder of the figures, which are read from ``NAME.png``.

    """
    tables: dict[str, pd.DataFrame] = {}
    for results in settings:
        parts = {
            "Every defense in every cell": results.cells[list(CELL_COLUMNS)],
            "Victims": results.victims[list(VICTIM_COLUMNS)],
            "Other moments: what each defense needs, finds and costs": pd.DataFrame(
                moments(results)[0], columns=list(HEADER)
            ),
            "Inspected victims": pd.DataFrame(inspections(results), columns=list(INSPECTION_HEADER)),
        }
        tables |= {f"{title} · {results.setting}": part for title, part in parts.items() if len(part)}
    versions = sorted({version for results in settings for version in results.victims["versions"].dropna()})
    return render_result(
        suite,
        progress,
        {"versions": {f"of results {number}": version for number, version in enumerate(versions, 1)}},
        alarming=False,
        heading="Suite",
        notes=[
            "Rates lie between 0 and 1. An oracle is a setting that rests on something no defender knows. If the "
            "attack success rate is low, the attack does not work and detection says nothing."
        ],
        tables=tables,
        marked_by="oracle",
        images=[(caption, (folder / f"{name}.png").read_bytes()) for name, caption in figures],
    )

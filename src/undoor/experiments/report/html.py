"""What a store holds of a suite, as one HTML file."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from undoor.experiments.report.moments import inspections, moments
from undoor.experiments.report.tables import Results
from undoor.report.result import render_result

CELL_COLUMNS = (
    "cell", "defense", "oracle", "attack_success_rate", "tpr", "fpr_target_class", "fpr_all_classes", "auroc", "tp",
    "fp", "fn", "retrained_attack_success_rate", "clean_accuracy", "retrained_clean_accuracy", "seconds",
)  # fmt: skip
VICTIM_COLUMNS = ("cell", "sources", "target", "count", "clean_accuracy", "attack_success_rate", "seconds", "hardware")


def render_bench(
    suite: str, every: Sequence[Results], told: str, figures: Sequence[tuple[str, str]], folder: Path
) -> str:
    """Return victims, findings and figures of a suite as one page, with a table that can be sorted and sifted.

    Args:
        suite: its name.
        every: the results, one for each setting.
        told: how much is done.
        figures: name and caption of each; ``folder`` holds them as NAME.png.
        folder: of the figures.

    """
    tables: dict[str, pd.DataFrame] = {}
    for results in every:
        setting = f" · {results.setting}"
        tables[f"Every defence in every cell{setting}"] = results.cells[list(CELL_COLUMNS)]
        tables[f"Victims{setting}"] = results.victims[list(VICTIM_COLUMNS)]
        for caption, (header, lines) in (
            ("Other moments: what each defence needs, finds and costs", moments(results)),
            ("Inspected victims", inspections(results)),
        ):
            if lines:
                tables[caption + setting] = pd.DataFrame(lines, columns=header)
    versions = sorted({version for results in every for version in results.victims["versions"].dropna()})
    return render_result(
        suite,
        told,
        {"versions": {f"of results {k}": version for k, version in enumerate(versions, 1)}},
        alarming=False,
        heading="Suite",
        notes=[
            "Rates lie between 0 and 1. Oracle: a setting that rests on something no defender knows. Where the attack "
            "success rate is low the attack does not work, and detection says nothing."
        ],
        tables=tables,
        marked_by="oracle",
        images=[(caption, (folder / f"{name}.png").read_bytes()) for name, caption in figures],
    )

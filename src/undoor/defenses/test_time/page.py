"""The page of a guard's check."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from undoor.defenses.test_time.guard import Checked, Guard
from undoor.report import Axis, render_result
from undoor.report.pictures import encoded

SHOWN = 60
"""Rejected queries that are shown: those of the highest statistic."""


def render_checked(guard: Guard, checked: Checked, images: NDArray[np.uint8], ids: NDArray[np.str_]) -> str:
    """Return what a guard says of N queries as one HTML file.

    Args:
        guard: that checked them.
        checked: what it says.
        images: (N, C, H, W) uint8, the queries.
        ids: (N,).

    """
    table = checked.table(ids, guard.class_names)
    table = table.sort_values("statistic", ascending=False, kind="stable")
    rejected = int(checked.rejected.sum())
    told = [f"{row.id}: {row.statistic:.3f}" for row in table.itertuples()]
    marks = pd.DataFrame(
        {"row": table["decision"], "value": table["statistic"], "told": told, "flagged": table["rejected"]}
    )
    axis = Axis(
        "Every query by its statistic",
        "A line a decision, a mark a query: how little it looks like the images of the class it is given to.",
        "statistic",
        marks,
        guard.threshold,
    )
    worst = table.index[: min(rejected, SHOWN)].to_numpy()
    return render_result(
        f"{rejected} rejected" if rejected else "none rejected",
        f"{rejected} of {len(table)} queries should be refused.",
        {"queries": len(table), "rejected": rejected, **guard.summary()},
        alarming=rejected > 0,
        notes=_notes(guard, rejected),
        axis=axis,
        tables={"Queries, the most suspicious first": table},
        marked_by="rejected",
        images=[
            (f"{ids[row]}: decided {guard.class_names[checked.decisions[row]]}, {checked.statistic[row]:.3f}", content)
            for row, content in zip(worst, encoded(np.asarray(images[worst])), strict=True)
        ],
    )


def _notes(guard: Guard, rejected: int) -> Sequence[str]:
    share = guard.provenance.settings["false_positive_rate"]
    notes = [
        f"A query is refused when its statistic exceeds {guard.threshold:.3f}; the guard was fitted to refuse "
        f"{share:.1%} of clean ones."
    ]
    if rejected > SHOWN:
        notes.append(f"The {SHOWN} of the highest statistic are shown.")
    return notes

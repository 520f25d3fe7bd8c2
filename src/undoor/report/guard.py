"""The page of a guard's check."""

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from undoor.defenses.test_time.guard import Checked, Guard
from undoor.report.page import percent
from undoor.report.pictures import encoded
from undoor.report.result import Axis, render_result
from undoor.storage.atomic import staged

SHOWN_QUERIES = 60
"""The page shows the images of at most this many rejected queries, those with the highest statistic."""


def write_checked(guard: Guard, checked: Checked, images: NDArray[np.uint8], ids: NDArray[np.str_], path: Path) -> None:
    """Write the verdict on every query to ``path``, NAME.parquet, and the page to NAME.html, over what was there.

    The other arguments are those of ``render_checked``.
    """
    page = render_checked(guard, checked, images, ids)
    with staged(path.parent, last=path.name) as folder:
        (folder / path.with_suffix(".html").name).write_text(page, encoding="utf-8")
        checked.table(ids, guard.class_names).to_parquet(folder / path.name, index=False)


def render_checked(guard: Guard, checked: Checked, images: NDArray[np.uint8], ids: NDArray[np.str_]) -> str:
    """Return the verdict of a guard on N queries as one HTML file.

    Args:
        guard: the guard that checked them.
        checked: its verdict.
        images: (N, C, H, W) uint8, the queries.
        ids: (N,), the names of the queries.

    """
    table = checked.table(ids, guard.class_names).sort_values("statistic", ascending=False, kind="stable")
    rejected = int(checked.rejected.sum())
    labels = [f"{row.id}: {row.statistic:.3f}" for row in table.itertuples()]
    axis = Axis(
        "Every query by its statistic",
        "Each line is a decision, each mark a query. Its value is high if the query does not look like clean images of "
        "the class that the network decides for.",
        "statistic",
        pd.DataFrame(
            {"row": table["decision"], "value": table["statistic"], "label": labels, "flagged": table["rejected"]}
        ),
        guard.threshold,
    )
    share = guard.provenance.settings["false_positive_rate"]
    notes = [
        f"A query is rejected if its statistic exceeds {guard.threshold:.3f}. The guard was fitted to reject "
        f"{percent(share)} of clean queries."
    ]
    if rejected > SHOWN_QUERIES:
        notes.append(f"The pictures are of the {SHOWN_QUERIES} queries with the highest statistic.")
    highest = table.index[: min(rejected, SHOWN_QUERIES)].to_numpy()
    captions = [
        f"{ids[row]}: decided {guard.class_names[checked.decisions[row]]}, {checked.statistic[row]:.3f}"
        for row in highest
    ]
    return render_result(
        f"{rejected} rejected" if rejected else "none rejected",
        f"{rejected} of {len(table)} queries are rejected.",
        {"queries": len(table), "rejected": rejected, **guard.summary()},
        alarming=rejected > 0,
        notes=notes,
        axis=axis,
        tables={"Queries, the most suspicious first": table},
        marked_by="rejected",
        images=list(zip(captions, encoded(np.asarray(images[highest])), strict=True)),
    )

"""The page that every result other than findings has: it is made from the summary and the tables of the result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from undoor.findings.notebook import png_uri
from undoor.report import charts, pictures
from undoor.report.page import decimal, number, render

ROWS = 1000
"""A table shows at most this many rows; the others are in the files beside the page."""

MARKS = 2000
"""An axis shows at most this many marks: all that are flagged before others, which are evenly spaced."""

ORIGIN = ("schema_version", "defense", "method_version", "verdict", "settings", "seed", "seconds", "versions")
"""The values of a summary that the page shows elsewhere than among the facts."""


@dataclass(frozen=True, eq=False)
class Axis:
    """Values that can be compared, as marks on one axis.

    Args:
        heading: the heading of the section.
        caption: what a mark is, and what a high value means.
        measure: the name of the values.
        marks: one row a mark; columns row (the name of the line it is on), value, label (the text for it), flagged.
        threshold: a mark is flagged above it; None if there is no threshold.

    """

    heading: str
    caption: str
    measure: str
    marks: pd.DataFrame
    threshold: float | None = None


def render_result(
    verdict: str,
    lead: str,
    summary: Mapping[str, Any],
    *,
    alarming: bool,
    heading: str = "Verdict",
    notes: Sequence[str] = (),
    axis: Axis | None = None,
    tables: Mapping[str, pd.DataFrame] | None = None,
    marked_by: str = "",
    images: Sequence[tuple[str, bytes]] = (),
) -> str:
    """Return a result as one HTML file.

    Args:
        verdict: one word or two.
        lead: one sentence that says what was found.
        summary: plain values, as a result's ``summary()`` returns them. Defense, settings, seed, seconds and versions
            are shown as the origin of the result, everything else as facts.
        alarming: whether the verdict is shown as an alarm.
        heading: what the verdict is.
        notes: further sentences below the verdict.
        axis: the values on which the verdict is based.
        tables: by their captions; they can be sorted by every column.
        marked_by: the boolean column that says which rows stand out, in the tables that have it.
        images: caption and PNG of each.

    """
    if axis is not None and axis.marks.empty:
        axis = None
    return render(
        "result.html.j2",
        verdict=verdict,
        lead=lead,
        alarming=alarming,
        heading=heading,
        notes=notes,
        axis=None if axis is None else charts.axis(_rows(axis.marks), axis.threshold),
        axis_text=axis,
        facts={name: value for name, value in summary.items() if name not in ORIGIN and value is not None},
        marked_by=marked_by,
        summary={"settings": {}, "seconds": {}, "versions": {}, **summary},
        tables=[_table(caption, frame, marked_by) for caption, frame in (tables or {}).items()],
        pictures=[{"caption": caption, "uri": png_uri(content)} for caption, content in images],
    )


def _rows(marks: pd.DataFrame) -> dict[str, list[dict[str, Any]]]:
    """Return the marks by their row, the row with the highest value first."""
    flagged, others = (np.flatnonzero(marks["flagged"] == value) for value in (True, False))
    shown = np.concatenate([flagged[:MARKS], pictures.evenly(others, max(MARKS - len(flagged), 0))])
    chosen = marks.iloc[np.sort(shown)]
    order = chosen.groupby("row")["value"].max().sort_values(ascending=False, kind="stable").index
    return {str(name): chosen[chosen["row"] == name].to_dict("records") for name in order}


def _table(caption: str, frame: pd.DataFrame, marked_by: str) -> dict[str, Any]:
    """Return what the template needs of a table; "n" is the kind of a column of numbers."""
    shown = frame.head(ROWS)
    kinds = ["n" if _is_number(frame[name]) else "" for name in frame]
    return {
        "caption": caption,
        "columns": [(str(name).replace("_", " "), kind) for name, kind in zip(frame, kinds, strict=True)],
        "rows": [[_cell(value) for value in row] for row in shown.itertuples(index=False)],
        "left_out": len(frame) - len(shown),
        "marked_by": marked_by if marked_by in frame else "",
        "marked": shown[marked_by].tolist() if marked_by in frame else [],
    }


def _is_number(column: "pd.Series[Any]") -> bool:
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def _cell(value: Any) -> str | tuple[str, float]:
    """Return the text of a cell, for numbers with the value by which the cell is sorted."""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return number(int(value)), int(value)
    if isinstance(value, float | np.floating):
        exact = float(value)
        if np.isnan(exact):
            return "–", -np.inf
        if not np.isfinite(exact):
            return str(exact), exact
        small = exact != 0 and abs(exact) < 1e-3
        return f"{exact:.2e}" if small else decimal(exact, 4), exact
    return "" if value is None or value is pd.NA else str(value)

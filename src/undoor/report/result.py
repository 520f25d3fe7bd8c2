"""The page of any other result: of an inspection, a guard's check, pruning or a bench, from its summary and tables."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from undoor.report.page import decimal, number, render

ROWS = 1000
"""Of a table at most; the rest is in the files beside the page."""

TOLD_ELSEWHERE = ("schema_version", "defense", "method", "verdict", "settings", "seed", "seconds", "versions")


def render_result(
    verdict: str,
    lead: str,
    summary: Mapping[str, Any],
    *,
    alarming: bool,
    tables: Mapping[str, pd.DataFrame] | None = None,
    pictures: Sequence[tuple[str, bytes]] = (),
) -> str:
    """Return a result as one HTML file, from the templates of the findings' report.

    Args:
        verdict: one word or two.
        lead: one sentence that says what was found.
        summary: plain values, as a result's ``summary()`` returns; settings, seed, seconds and versions are shown
            as the origin of the result, all else as facts.
        alarming: whether the verdict is shown as an alarm.
        tables: by their captions; can be sorted by every column.
        pictures: caption and PNG of each.

    """
    facts = {name: value for name, value in summary.items() if name not in TOLD_ELSEWHERE}
    return render(
        "result.html.j2",
        verdict=verdict,
        lead=lead,
        alarming=alarming,
        facts=facts,
        summary={"settings": {}, "seconds": {}, "versions": {}, **summary},
        tables=[_table(caption, frame) for caption, frame in (tables or {}).items()],
        pictures=[
            {"caption": caption, "uri": "data:image/png;base64," + base64.b64encode(content).decode("ascii")}
            for caption, content in pictures
        ],
    )


def _table(caption: str, frame: pd.DataFrame) -> dict[str, Any]:
    kinds = ["n" if _is_number(frame[name]) else "" for name in frame]
    shown = frame.head(ROWS)
    return {
        "caption": caption,
        "columns": [(str(name).replace("_", " "), kind) for name, kind in zip(frame, kinds, strict=True)],
        "rows": [[_cell(value) for value in row] for row in shown.itertuples(index=False)],
        "left_out": len(frame) - len(shown),
    }


def _is_number(column: "pd.Series[Any]") -> bool:
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def _cell(value: Any) -> str | tuple[str, float]:
    """Return a text, or a text and the number it is sorted by."""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return number(int(value)), int(value)
    if isinstance(value, float | np.floating):
        exact = float(value)
        if not np.isfinite(exact):
            return str(exact), -np.inf
        small = exact != 0 and abs(exact) < 1e-3
        return f"{exact:.2e}" if small else decimal(exact, 4), exact
    return "" if value is None else str(value)

"""Where the marks of the page's charts lie; the templates draw them as SVG."""

from collections.abc import Mapping, Sequence
from math import copysign, sqrt
from typing import Any

import pandas as pd

from undoor.findings.findings import Findings
from undoor.report.page import decimal, number

ROWS = 40
"""An axis shows at most this many rows, and there are at most half as many curves: the classes of highest impurity."""

STEPS = sorted(digit * 10.0**power for power in range(-3, 5) for digit in (1, 2, 5))
SCALE = 0.8
"""The scale of a mark that stands for nothing with a size."""

TICK_DISTANCE = 13.0
"""Two ticks lie at least this far apart, in per cent of the axis."""

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 220, 120, 12, 22, 24
"""The size of the chart of a curve and its margins, in pixels."""


def impurity_axis(findings: Findings) -> dict[str, Any]:
    """Return every cluster as a mark on one axis: a row a class, the class of highest impurity first."""
    rows: dict[str, Any] = {}
    for label in _by_impurity(findings):
        clusters = findings.clusters[findings.clusters["class"] == label].to_dict("records")
        rows[findings.class_names[label]] = [
            {**row, "value": row["impurity"], "label": f"cluster {row['cluster']}: {number(row['size'])} images, "
             f"impurity {decimal(row['impurity'])}"}
            for row in clusters
        ]  # fmt: skip
    return axis(rows, findings.threshold)


def axis(rows: Mapping[str, Sequence[Mapping[str, Any]]], threshold: float | None = None) -> dict[str, Any]:
    """Return marks on one axis, in as many rows as there is room for; places are in per cent of the axis.

    The axis is linear in the square roots, so that values near 0 can be told apart beside large values.

    Args:
        rows: the marks of each row, by the row's name. A mark has a value, a label (the text for it), flagged, a size
            if its area is to show one, and anything else that the template uses.
        threshold: it is drawn if there is one.

    """
    shown = {name: rows[name] for name in list(rows)[:ROWS]}
    values = [mark["value"] for marks in rows.values() for mark in marks]
    low = _root(min(0.0, *values))
    high = _root(max(*values, 0.0 if threshold is None else threshold)) * 1.02 + 1e-9
    largest = max(mark.get("size", 0) for marks in shown.values() for mark in marks)

    def place(value: float) -> float:
        return round(1 + 97 * (_root(value) - low) / (high - low), 2)

    def scale(mark: Mapping[str, Any]) -> float:
        return round(0.5 + 0.9 * sqrt(mark["size"] / largest), 2) if "size" in mark else SCALE

    table = [
        {"name": name, "marks": [{**mark, "x": place(mark["value"]), "scale": scale(mark)} for mark in marks]}
        for name, marks in shown.items()
    ]
    occupied = [] if threshold is None else [place(threshold)]
    ticks = []
    for value in (0.0, *STEPS, *(-step for step in STEPS)):
        x = place(value)
        if 0 <= x <= 96 and all(abs(x - other) > TICK_DISTANCE for other in occupied):
            occupied.append(x)
            ticks.append({"x": x, "text": f"{value:g}".replace("-", "\N{MINUS SIGN}")})
    line = None if threshold is None else {"x": place(threshold), "text": decimal(threshold)}
    return {"rows": table, "left_out": len(rows) - len(table), "ticks": ticks, "threshold": line}


def bic_curves(findings: Findings) -> dict[str, Any]:
    """Return a curve for each class and look: the criterion of every number of components, above the lowest."""
    order = _by_impurity(findings)
    charts = []
    for label in order[: ROWS // 2]:
        curves = findings.curves[findings.curves["class"] == label]
        # A second look in as many dimensions as the first has the same criteria.
        for look, curve in curves.drop_duplicates(["dimensions", "components"]).groupby("look"):
            shown = (findings.clusters["class"] == label) & (findings.clusters["look"] == look)
            charts.append({"name": findings.class_names[label], "look": look, "shown": shown.any(), **_curve(curve)})
    return {"charts": charts, "left_out": max(len(order) - ROWS // 2, 0)}


def _by_impurity(findings: Findings) -> list[int]:
    """Return the labels of the classes that have clusters, the class of highest impurity first."""
    highest = findings.clusters.groupby("class")["impurity"].max()
    labels: list[int] = highest.sort_values(ascending=False, kind="stable").index.tolist()
    return labels


def _curve(curve: pd.DataFrame) -> dict[str, Any]:
    values = (curve["criterion"] - curve["criterion"].min()).tolist()
    highest = max(values)
    xs = [round(LEFT + (WIDTH - 2 * LEFT) * (k / max(len(values) - 1, 1)), 1) for k in range(len(values))]
    ys = [round(TOP + (HEIGHT - BOTTOM - TOP) * (1 - value / (highest or 1.0)), 1) for value in values]
    points = [{"k": k, "x": x, "y": y} for k, (x, y) in enumerate(zip(xs, ys, strict=True), 1)]
    return {
        "dimensions": int(curve["dimensions"].iloc[0]),
        "points": points,
        "best": points[values.index(0.0)],
        "labels": points[:: -(-len(values) // 10)],
        "highest": highest,
        "width": WIDTH,
        "height": HEIGHT,
    }


def destinations(counts: Sequence[int], class_names: Sequence[str], most: int = 8) -> list[dict[str, Any]]:
    """Return bars that show which classes the changed decisions are for, the most frequent class first.

    Each bar has its share of all changes. Beyond ``most`` classes, the others share one bar.
    """
    order = sorted((k for k, count in enumerate(counts) if count), key=lambda k: -counts[k])
    most += len(order) == most + 1  # a single further class gets its own bar
    bars: list[dict[str, Any]] = [{"name": class_names[k], "count": int(counts[k])} for k in order[:most]]
    rest = sum(int(counts[k]) for k in order[most:])
    if rest:
        bars.append({"name": f"{len(order) - most} others", "count": rest})
    total = sum(bar["count"] for bar in bars)
    return [{**bar, "share": bar["count"] / total} for bar in bars]


def _root(value: float) -> float:
    """Return the square root, with the sign of the value."""
    return copysign(sqrt(abs(value)), value)

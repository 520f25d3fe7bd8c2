"""Where the marks of the page's charts lie; the templates draw them as SVG."""

from collections.abc import Sequence
from math import copysign, sqrt
from typing import Any

import pandas as pd

from undoor.findings import Findings

ROWS = 40
"""Classes on the axis of impurity, and half as many with curves: those with the highest impurity."""

STEPS = sorted(digit * 10.0**power for power in range(-3, 5) for digit in (1, 2, 5))
ROOM = 0.09
"""Of the axis, between two ticks at least."""

WIDTH, HEIGHT, LEFT, BOTTOM = 220, 120, 12, 22
"""Pixels of the chart of a curve, and of its margins."""


def impurity_axis(findings: Findings) -> dict[str, Any]:
    """Return every cluster as a mark on one axis, a row a class, the most impure class first; places in per cent.

    The axis shows square roots, so that clusters near 0 can be told apart beside poisoned ones.
    """
    clusters = findings.clusters
    low = _root(min(0.0, float(clusters["impurity"].min())))
    high = _root(max(float(clusters["impurity"].max()), findings.threshold)) * 1.02 + 1e-9

    def place(value: float) -> float:
        return round(1 + 97 * (_root(value) - low) / (high - low), 2)

    largest = clusters["size"].max()
    rows = []
    order = clusters.groupby("class")["impurity"].max().sort_values(ascending=False, kind="stable").index
    for label in order[:ROWS]:
        mine = clusters[clusters["class"] == label].to_dict("records")
        marks = [
            {**row, "x": place(row["impurity"]), "scale": round(0.5 + 0.9 * sqrt(row["size"] / largest), 2)}
            for row in mine
        ]
        rows.append({"name": findings.class_names[label], "marks": marks})
    ends = [place(findings.threshold)]
    ticks = []
    for value in (0.0, *STEPS, *(-step for step in STEPS)):
        x = place(value)
        if 0 <= x <= 100 and all(abs(x - other) > 100 * ROOM for other in ends):
            ends.append(x)
            ticks.append({"x": x, "text": f"{value:g}".replace("-", "\N{MINUS SIGN}")})
    return {"rows": rows, "left_out": len(order) - len(rows), "ticks": ticks, "threshold": ends[0]}


def bic_curves(findings: Findings) -> dict[str, Any]:
    """Return the criterion of every number of components above the lowest, as a line a class and look."""
    order = findings.clusters.groupby("class")["impurity"].max().sort_values(ascending=False, kind="stable").index
    charts = []
    for label in order[: ROWS // 2]:
        of_class = findings.curves[findings.curves["class"] == label]
        # A second look in as many dimensions sees the same.
        for look, curve in of_class.drop_duplicates(["dimensions", "components"]).groupby("look"):
            shown = (findings.clusters["class"] == label) & (findings.clusters["look"] == look)
            charts.append({"name": findings.class_names[label], "look": look, "shown": shown.any(), **_line(curve)})
    return {"charts": charts, "left_out": max(len(order) - ROWS // 2, 0)}


def _line(curve: pd.DataFrame) -> dict[str, Any]:
    values = (curve["criterion"] - curve["criterion"].min()).tolist()
    top = max(values) or 1.0
    inner_width, inner_height = WIDTH - 2 * LEFT, HEIGHT - BOTTOM - 24

    def x(k: int) -> float:
        return round(LEFT + inner_width * (k / max(len(values) - 1, 1)), 1)

    points = [{"k": k + 1, "x": x(k), "y": round(24 + inner_height * (1 - v / top), 1)} for k, v in enumerate(values)]
    best = min(range(len(values)), key=values.__getitem__)
    every = -(-len(values) // 10)
    return {
        "dimensions": int(curve["dimensions"].iloc[0]),
        "points": points,
        "best": points[best],
        "labels": points[::every],
        "highest": max(values),
        "width": WIDTH,
        "height": HEIGHT,
    }


def destinations(counts: Sequence[int], class_names: Sequence[str], most: int = 8) -> list[dict[str, Any]]:
    """Return where changed decisions went, the most frequent class first, with bars in per cent of all of them."""
    order = sorted((k for k, count in enumerate(counts) if count), key=lambda k: -counts[k])
    most += len(order) == most + 1  # one class alone has a name
    bars: list[dict[str, Any]] = [{"name": class_names[k], "count": int(counts[k])} for k in order[:most]]
    rest = sum(int(counts[k]) for k in order[most:])
    if rest:
        bars.append({"name": f"{len(order) - most} others", "count": rest})
    total = sum(int(count) for count in counts)
    return [{**bar, "share": bar["count"] / total} for bar in bars]


def _root(value: float) -> float:
    return copysign(sqrt(abs(value)), value)

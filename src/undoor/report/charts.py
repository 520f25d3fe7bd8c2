"""Where the marks of the page's charts lie; the templates draw them as SVG."""

from collections.abc import Mapping, Sequence
from math import copysign, sqrt
from typing import Any

import pandas as pd

from undoor.findings.findings import Findings
from undoor.report.page import decimal, number

ROWS = 40
"""Rows of an axis, and half as many curves: of the classes with the highest impurity."""

STEPS = sorted(digit * 10.0**power for power in range(-3, 5) for digit in (1, 2, 5))
SCALE = 0.8
"""Of a mark that has no size."""

ROOM = 0.13
"""Of the axis, between two ticks at least."""

WIDTH, HEIGHT, LEFT, BOTTOM = 220, 120, 12, 22
"""Pixels of the chart of a curve, and of its margins."""


def impurity_axis(findings: Findings) -> dict[str, Any]:
    """Return every cluster as a mark on one axis, a row a class, the most impure class first."""
    clusters = findings.clusters
    rows = {}
    order = clusters.groupby("class")["impurity"].max().sort_values(ascending=False, kind="stable").index
    for label in order:
        rows[findings.class_names[label]] = [
            {
                **row,
                "value": row["impurity"],
                "told": f"cluster {row['cluster']}: {number(row['size'])} images, impurity {decimal(row['impurity'])}",
            }
            for row in clusters[clusters["class"] == label].to_dict("records")
        ]
    return axis(rows, findings.threshold)


def axis(rows: Mapping[str, Sequence[Mapping[str, Any]]], threshold: float | None = None) -> dict[str, Any]:
    """Return marks on one axis, so many rows as have room; places in per cent.

    The axis shows square roots, so that values near 0 can be told apart beside large ones.

    Args:
        rows: by their names, the marks of each: value, told (in words), flagged, size (where it has one;
            its area grows with it) and what else the page is to know of it.
        threshold: is drawn where there is one.

    """
    shown = {name: rows[name] for name in list(rows)[:ROWS]}
    values = [mark["value"] for marks in rows.values() for mark in marks]
    low = _root(min(0.0, *values))
    high = _root(max(*values, 0.0 if threshold is None else threshold)) * 1.02 + 1e-9

    def place(value: float) -> float:
        return round(1 + 97 * (_root(value) - low) / (high - low), 2)

    def scale(mark: Mapping[str, Any]) -> float:
        return round(0.5 + 0.9 * sqrt(mark["size"] / largest), 2) if "size" in mark else SCALE

    largest = max(mark.get("size", 0) for marks in shown.values() for mark in marks)
    table = [
        {
            "name": name,
            "marks": [{**mark, "x": place(mark["value"]), "scale": scale(mark)} for mark in marks],
        }
        for name, marks in shown.items()
    ]
    ends = [] if threshold is None else [place(threshold)]
    ticks = []
    for value in (0.0, *STEPS, *(-step for step in STEPS)):
        x = place(value)
        if 0 <= x <= 96 and all(abs(x - other) > 100 * ROOM for other in ends):
            ends.append(x)
            ticks.append({"x": x, "text": f"{value:g}".replace("-", "\N{MINUS SIGN}")})
    crossed = None if threshold is None else {"x": place(threshold), "text": decimal(threshold)}
    return {"rows": table, "left_out": len(rows) - len(table), "ticks": ticks, "threshold": crossed}


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

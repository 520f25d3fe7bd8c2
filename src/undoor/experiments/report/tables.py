"""How numbers, names and tables are written in Markdown."""

import html
import re
from collections.abc import Sequence
from typing import Any

import pandas as pd

from undoor.experiments.report.results import works

MISSING = "–"
UNSURE = "†"
"""Marks an attack success rate that is too low to say anything about detection."""

RATES = {"tpr": 3, "fpr_target_class": 4, "fpr_all_classes": 4}
"""The columns with the rates of detection, and the digits that are shown of them."""

RATE_HEADINGS = ("TPR", "FPR, target class", "FPR, all classes")


def shown(values: "pd.Series[Any]", digits: int = 3, seeds: int | None = None) -> str:
    """Return median (lowest–highest) as text; – if there is no value.

    If there are fewer values than ``seeds``, by default the length of the series, their number is added.
    """
    present = values.dropna()
    wanted = len(values) if seeds is None else seeds
    if present.empty:
        return MISSING
    median = f"{present.median():.{digits}f}"
    if present.min() < present.max():
        median += f" ({present.min():.{digits}f}–{present.max():.{digits}f})"
    return median if len(present) >= wanted else f"{median} [{len(present)} of {wanted} seeds]"


def difference(values: "pd.Series[Any]", published: float | None, digits: int = 3) -> str:
    """Return the median minus the published value, with its sign; – if either is missing."""
    present = values.dropna()
    if present.empty or published is None:
        return MISSING
    # Adding 0.0 turns a rounded −0 into 0.
    return f"{round(float(present.median()) - published, digits) + 0.0:+.{digits}f}".replace("-", "−")


def how_many(count: float, n: float) -> str:
    """Return "count of n"; – if n is 0."""
    return f"{int(count)} of {int(n)}" if n else MISSING


def markdown(header: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """Return a table in Markdown."""
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in [header, ["---"] * len(header), *lines])


def table(header: Sequence[str], lines: Sequence[Sequence[object]], rows: pd.DataFrame | None = None) -> str:
    """Return a table in Markdown, and below it the caption that says what its ``rows`` rest on."""
    if not lines:
        return "There are no results yet."
    return markdown(header, lines) + ("" if rows is None or rows.empty else f"\n\n<sub>{caption(rows)}</sub>")


def caption(rows: pd.DataFrame) -> str:
    """Return what rows rest on: data, preset, seeds, counts, hardware, and the versions of methods and packages."""

    def listed(values: "pd.Series[Any]") -> str:
        present = sorted(set(values.dropna()))
        return ", ".join(value if isinstance(value, str) else f"{value:,}" for value in present)

    clean = listed(rows.loc[(rows["moment"] != "in use").fillna(value=True), "samples"] - rows["count"])
    methods = listed(rows["method"] + " " + rows["method_version"].astype("string"))
    parts = [
        listed(rows["setting"]),
        f"seeds {listed(rows['seed'])}",
        f"{listed(rows['count'])} poisoned images" + (f" beside {clean} clean images" if clean else ""),
        listed(rows["hardware"]),
        f"method versions: {methods}" if methods else "",
        listed(rows["versions"]),
    ]
    return text("; ".join(part for part in parts if part))


def rates(rows: pd.DataFrame, seeds: int) -> list[str]:
    """Return the rates of detection, ``RATES``, as text."""
    return [shown(rows[name], digits, seeds) for name, digits in RATES.items()]


def success(victims: pd.DataFrame) -> str:
    """Return the attack success rate, marked if the attack does not work."""
    rate = shown(victims["attack_success_rate"])
    return rate if rate == MISSING or works(victims) else f"{rate} {UNSURE}"


def named(defense: str, oracle: bool) -> str:
    """Return the name of a contender, marked if it is an oracle."""
    return text(defense) + (" **oracle**" if oracle else "")


def marked(line: list[str], victims: pd.DataFrame) -> list[str]:
    """Return the line of a table, in italics if there are victims on which the attack does not work."""
    attacked = victims[victims["scenario"] != "clean"]
    if attacked.empty or works(attacked):
        return line
    return [part if part == MISSING else f"*{part}*" for part in line]


def text(value: str) -> str:
    """Return a text as Markdown that shows it as it is."""
    return re.sub(r"([\\`*_{}\[\]|~$#])", r"\\\1", html.escape(" ".join(value.split()), quote=False))

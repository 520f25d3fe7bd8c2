"""The paper's figures, drawn from the store."""

from base64 import b64decode
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from undoor.experiments.report.tables import WORKING, Results, is_poisoned, places, works
from undoor.experiments.store import Result
from undoor.safe.images import open_image
from undoor.storage.atomic import atomic

BLACK, ORANGE, SKY, GREEN, BLUE, RED, PURPLE, GREY = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#777777",
)  # fmt: skip
"""Colours that colour-blind readers tell apart (Okabe and Ito)."""

STYLES: dict[str, dict[str, Any]] = {
    "CI": {"color": BLUE, "marker": "o", "linestyle": "-"},
    "SS": {"color": RED, "marker": "s", "linestyle": "-"},
    "AC": {"color": GREEN, "marker": "^", "linestyle": "-"},
    "random removal": {"color": GREY, "marker": "x", "linestyle": ":"},
    "perfect removal": {"color": BLACK, "marker": "*", "linestyle": "-."},
    "SS, target class": {"color": ORANGE, "marker": "D", "linestyle": "--", "markerfacecolor": "white"},
    "AC, smaller cluster of target class": {
        "color": PURPLE, "marker": "v", "linestyle": "--", "markerfacecolor": "white",
    },
}  # fmt: skip
"""Of the defences that are drawn, in the order of the legend."""

PARAMETERS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "text.parse_math": False,
    "svg.hashsalt": "undoor",
}
WIDTH = 6.5
"""Inches; of a page."""

MEASURES = ("attack_success_rate", "clean_accuracy")
LEAST_FPR = 1e-4
LEAST_IMPURITY = 1e-3

Draw = Callable[[Results], Figure | None]


def write_figures(folder: Path, results: Results, suffix: str = "", dpi: int = 200) -> list[tuple[str, str]]:
    """Draw what there is; return the name and the caption of each figure.

    Args:
        folder: where ``NAME.svg`` and ``NAME.png`` are written.
        results: of one setting.
        suffix: of the names, to tell settings apart.
        dpi: of the PNG.

    """
    written = []
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(PARAMETERS)
        for name, caption, draw in _figures():
            figure = draw(results)
            if figure is None:
                continue
            # No date and no version: the same results make the same bytes.
            for kind, metadata in (("svg", {"Date": None, "Creator": None}), ("png", {"Software": None})):
                with atomic(folder / f"{name}{suffix}.{kind}") as temporary:
                    figure.savefig(temporary, format=kind, metadata=metadata, dpi=dpi)
            written.append((f"{name}{suffix}", caption))
    return written


def _figures() -> Iterable[tuple[str, str, Draw]]:
    yield "fig1", "Fig. 1: a test image without and with the trigger, enlarged.", trigger
    for number, scenario in ((2, "single-source"), (5, "multiple-source")):
        yield (
            f"fig{number}",
            f"Fig. {number}: attack success and clean accuracy against the size of the trigger, {scenario}. "
            "Line: median over seeds; band: lowest to highest.",
            partial(attack, scenario=scenario),
        )
    for name, scenario in (("fig6-single-source", "single-source"), ("fig6", "multiple-source")):
        yield (
            name,
            f"{'Fig. 6' if name == 'fig6' else 'The single-source twin of Fig. 6'}: attack success and clean accuracy "
            f"after retraining without what each defence flags, {scenario}. Points are set apart sideways.",
            partial(retraining, scenario=scenario),
        )
    for scenario in ("single-source", "multiple-source"):
        yield (
            f"roc-{scenario}",
            f"ROC curves of the scores, {scenario}: TPR at no more than the given FPR among all clean images. "
            "Where an attack success rate is too low to speak of detection the title says so.",
            partial(roc, scenario=scenario),
        )
    yield (
        "impurity",
        f"Impurity of every cluster that CI found; below {LEAST_IMPURITY:g} it is drawn at the left edge. "
        "Poisoned: more than half of the cluster is poison.",
        impurity,
    )


def trigger(results: Results) -> Figure | None:
    """Draw an image with and without the trigger (Fig. 1), the multiple-source one of size 0.25 if it is there."""
    shown = [one for one in results.attacked if one["pictures"]]
    if not shown:
        return None
    first = min(shown, key=lambda one: (one["cell"]["scenario"] != "multiple-source", abs(one["cell"]["size"] - 0.25)))
    figure = Figure(figsize=(4.4, 2.4))
    panels = figure.subplots(1, 2)
    at = first["attack"]["trigger"]
    for panel, picture, title in zip(
        panels, first["pictures"], ("without the trigger", "with the trigger"), strict=True
    ):
        pixels = np.asarray(open_image(b64decode(picture)))
        panel.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="none")
        panel.add_patch(
            Rectangle((at["column"] - 1.5, at["row"] - 1.5), 3, 3, fill=False, edgecolor=RED, linewidth=1.5)
        )
        panel.set_title(title if title.startswith("without") else f"{title}, size {at['size']:.2f}", fontsize=8)
        panel.set_axis_off()
    return figure


def attack(results: Results, scenario: str) -> Figure | None:
    """Draw attack success and clean accuracy against size (Figs. 2 and 5)."""
    victims = dict(places(results.victims, scenario))
    if not victims:
        return None
    figure, panels = _two_panels(sizes=list(victims), height=2.6)
    for panel, column in zip(panels, MEASURES, strict=True):
        values = {size: rows[column] for size, rows in victims.items()}
        _line(panel, values, label=f"{scenario} attack", color=BLUE, marker="o")
    panels[0].axhline(WORKING, color=GREY, linestyle=":", linewidth=1, label=f"the attack works: {WORKING}")
    for _, rows in places(results.victims, "clean"):
        panels[1].axhline(rows["clean_accuracy"].median(), color=BLACK, linestyle="--", linewidth=1, label="no attack")
    _widen(panels[1])
    _legend_below(figure, *panels)
    return figure


def retraining(results: Results, scenario: str) -> Figure | None:
    """Draw attack success and clean accuracy after retraining, by defence (Fig. 6)."""
    known = results.cells[results.cells["retrain"] & results.cells["retrained_clean_accuracy"].notna()]
    after = dict(places(known, scenario))
    victims = dict(places(results.victims, scenario))
    if not after:
        return None
    figure, panels = _two_panels(sizes=[*after, *victims], height=3.3)
    drawn = [name for name in STYLES if (known["defense"] == name).any()]
    for panel, column in zip(panels, MEASURES, strict=True):
        before = {size: rows[column] for size, rows in victims.items()}
        _line(panel, before, label="before", color=SKY, marker="P", linestyle="-")
        for place, name in enumerate(drawn):
            aside = 0.003 * (place - (len(drawn) - 1) / 2)
            rows_of = {size: rows[rows["defense"] == name] for size, rows in after.items()}
            values = {size + aside: rows[f"retrained_{column}"] for size, rows in rows_of.items()}
            _line(panel, values, label=_label(name, known), **STYLES[name])
    _widen(panels[1])
    _legend_below(figure, panels[0])
    return figure


def roc(results: Results, scenario: str) -> Figure | None:
    """Draw the ROC curves of every size, on a logarithmic FPR axis."""
    found = [
        one
        for one in results.found
        if one["roc"] and one["contender"] in STYLES and one["cell"]["keep_originals"]
        and one["cell"]["scenario"] == scenario and one["contender"] != "perfect removal"
    ]  # fmt: skip
    sizes = sorted({one["cell"]["size"] for one in found})
    if not sizes:
        return None
    across = min(len(sizes), 4)
    down = -(-len(sizes) // across)
    figure = Figure(figsize=(max(WIDTH * across / 4, 3.6), 2.0 * down + 0.8))
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flat
    grid = np.logspace(np.log10(LEAST_FPR), 0, 81)
    victims = dict(places(results.victims, scenario))
    for at, (panel, size) in enumerate(zip(panels, sizes, strict=False)):
        for place, name in enumerate(STYLES):
            curves = [one["roc"] for one in found if one["contender"] == name and one["cell"]["size"] == size]
            if curves:
                heights = np.stack([_at_most(curve, grid) for curve in curves])
                marks = {"label": _label(name, results.cells), "markevery": (2 * place, 16)}
                panel.plot(grid, np.median(heights, axis=0), **marks, **STYLES[name])
                _band(panel, grid, heights, STYLES[name]["color"])
        panel.set(xscale="log", xlim=(LEAST_FPR, 1), ylim=(-0.03, 1.03))
        panel.set_xticks((LEAST_FPR, 1e-2, 1), ("10⁻⁴", "10⁻²", "1"))
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.set_title(f"size {size:.2f}{_rate(victims.get(size))}", fontsize=8)
        if at % across == 0:
            panel.set_ylabel("TPR")
        if at + across >= len(sizes):
            panel.set_xlabel("FPR, all classes")
            panel.tick_params(labelbottom=True)
    every = list(figure.axes)
    for panel in every[len(sizes) :]:
        panel.set_axis_off()
    _legend_below(figure, *every)
    return figure


def _rate(victims: pd.DataFrame | None) -> str:
    if victims is None or victims["attack_success_rate"].isna().all():
        return ""
    return f"\nASR {victims['attack_success_rate'].median():.2f}" + ("" if works(victims) else ": too low")


def _at_most(curve: list[list[float]], grid: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the highest TPR at an FPR of no more than each value of the grid."""
    false, true = np.array(curve).T
    return np.asarray(true[np.searchsorted(false, grid, side="right") - 1])


def impurity(results: Results) -> Figure | None:
    """Draw the impurity of every cluster of CI in every cell, with the threshold."""
    found = [one for one in results.found if one["contender"] == "CI" and one["clusters"]]
    if not found:
        return None
    rows = list(dict.fromkeys(_place(one) for one in found))
    figure = Figure(figsize=(WIDTH, 0.22 * len(rows) + 1.2))
    panel = figure.subplots()
    for kind, color, marker in (("clean cluster", SKY, "o"), ("poisoned cluster", RED, "D")):
        points = [
            (max(cluster["impurity"], LEAST_IMPURITY), rows.index(_place(one)))
            for one in found
            for cluster in one["clusters"]
            if is_poisoned(cluster) == (kind == "poisoned cluster")
        ]
        x, y = np.array(points).reshape(-1, 2).T
        panel.plot(
            x, y, linestyle="", marker=marker, color=color, markeredgecolor="black", markeredgewidth=0.3, label=kind
        )
    at = [rows.index(_place(one)) for one in found]
    panel.vlines(
        [one["threshold"] for one in found], np.array(at) - 0.4, np.array(at) + 0.4, color=BLACK, label="threshold"
    )
    panel.set(xscale="log", xlabel="impurity (−log p, nats)", ylim=(len(rows) - 0.4, -0.6))
    panel.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    rates = {
        _place({"cell": {"scenario": scenario, "size": size, "keep_originals": keep}}): _rate(victims)
        for scenario in ("single-source", "multiple-source")
        for keep in (True, False)
        for size, victims in places(results.victims, scenario, keep_originals=keep)
    }
    panel.set_yticks(range(len(rows)), [row + rates.get(row, "").replace("\n", ", ") for row in rows])
    panel.grid(visible=False, axis="x")
    _legend_below(figure, panel)
    return figure


def _place(one: Result) -> str:
    cell = one["cell"]
    if cell["scenario"] == "clean":
        return "clean"
    return f"{cell['scenario']} {cell['size']:.2f}{'' if cell['keep_originals'] else ', originals replaced'}"


def _two_panels(sizes: list[float], height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure with a panel for each of ``MEASURES`` against size."""
    figure = Figure(figsize=(WIDTH, height))
    panels: list[Axes] = list(figure.subplots(1, 2))
    ticks = sorted(set(sizes))
    for panel, column in zip(panels, MEASURES, strict=True):
        panel.set(xlabel="size of the trigger", ylabel=column.replace("_", " "))
        panel.set_xticks(ticks, [f"{size:.2f}" for size in ticks])
    panels[0].set_ylim(-0.03, 1.03)
    return figure, panels


def _widen(panel: Axes) -> None:
    """Show at least two hundredths, so that noise does not look like an effect."""
    low, high = panel.get_ylim()
    spare = max(0.0, 0.02 - (high - low)) / 2
    panel.set_ylim(low - spare, high + spare)


def _line(panel: Axes, values: dict[float, "pd.Series[Any]"], **style: Any) -> None:
    """Draw the median over seeds against size, with a band from the lowest to the highest."""
    known = {size: series.dropna() for size, series in values.items() if series.notna().any()}
    x = np.array(list(known))
    panel.plot(x, [float(series.median()) for series in known.values()], **style)
    if any(len(series) > 1 for series in known.values()):
        ends = np.array([[float(series.min()), float(series.max())] for series in known.values()]).T
        _band(panel, x, ends, style["color"])


def _band(panel: Axes, x: "np.ndarray[Any, Any]", heights: "np.ndarray[Any, Any]", color: str) -> None:
    if len(heights) > 1:
        panel.fill_between(x, heights.min(axis=0), heights.max(axis=0), color=color, alpha=0.2, linewidth=0)


def _label(name: str, cells: pd.DataFrame) -> str:
    return f"{name} (oracle)" if cells.loc[cells["defense"] == name, "oracle"].any() else name


def _legend_below(figure: Figure, *panels: Axes) -> None:
    handles = {
        label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3)

"""The figures of the paper, drawn from the results in a store."""

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

from undoor.experiments.report.results import WORKING, Results, group_name, groups, is_poisoned, works
from undoor.safe.images import open_image
from undoor.storage.atomic import atomic

BLACK, ORANGE, SKY, GREEN, BLUE, RED, PURPLE, GREY = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#777777",
)  # fmt: skip
"""Colours that colour-blind readers can tell apart (Okabe and Ito)."""

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
"""How each contender is drawn, in the order of the legend. Others are not drawn."""

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
"""Width of a figure in inches: that of the text on a page."""

MEASURES = ("attack_success_rate", "clean_accuracy")

LEAST_FPR = 1e-4
"""The left end of the FPR axis of ROC curves."""

LEAST_IMPURITY = 1e-3
"""The left end of the axis of impurities."""

Draw = Callable[[Results], Figure | None]


def write_figures(folder: Path, results: Results, suffix: str = "", dpi: int = 200) -> list[tuple[str, str]]:
    """Draw the figures for which there are results; return the name and the caption of each.

    Args:
        folder: the folder in which ``NAME.svg`` and ``NAME.png`` are written.
        results: the results of one setting.
        suffix: the end of the names, which distinguishes settings.
        dpi: resolution of the PNG.

    """
    written = []
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(PARAMETERS)
        for name, caption, draw in _figures():
            figure = draw(results)
            if figure is None:
                continue
            # Without date and version the same results make the same bytes.
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
            f"Fig. {number}: attack success rate and clean accuracy against the size of the trigger, {scenario}. "
            "The line is the median over seeds, the band goes from the lowest to the highest value.",
            partial(attack, scenario=scenario),
        )
    for name, title, scenario in (
        ("fig6-single-source", "The single-source counterpart of Fig. 6", "single-source"),
        ("fig6", "Fig. 6", "multiple-source"),
    ):
        yield (
            name,
            f"{title}: attack success rate and clean accuracy after retraining without what each defense flags, "
            f"{scenario}. Points of the same size are drawn side by side.",
            partial(retraining, scenario=scenario),
        )
    for scenario in ("single-source", "multiple-source"):
        yield (
            f"roc-{scenario}",
            f"ROC curves of the scores, {scenario}: the highest TPR at an FPR, among all clean images, of no more than "
            "the given value. A title says so if the attack success rate is too low to say anything about detection.",
            partial(roc, scenario=scenario),
        )
    yield (
        "impurity",
        f"Impurity of every cluster that CI found. An impurity below {LEAST_IMPURITY:g} is drawn at the left edge. "
        "A cluster is called poisoned if more than half of its images are poisoned.",
        impurity,
    )


def trigger(results: Results) -> Figure | None:
    """Draw a test image without and with the trigger (Fig. 1), if possible the multiple-source trigger of size 0.25."""
    pictured = [victim for victim in results.victim_results if victim["pictures"]]
    if not pictured:
        return None
    victim = min(pictured, key=lambda v: (v["cell"]["scenario"] != "multiple-source", abs(v["cell"]["size"] - 0.25)))
    pixel = victim["attack"]["trigger"]
    figure = Figure(figsize=(4.4, 2.4))
    titles = ("without the trigger", f"with the trigger, size {pixel['size']:.2f}")
    for panel, picture, title in zip(figure.subplots(1, 2), victim["pictures"], titles, strict=True):
        pixels = np.asarray(open_image(b64decode(picture)))
        panel.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="none")
        corner = pixel["column"] - 1.5, pixel["row"] - 1.5
        panel.add_patch(Rectangle(corner, 3, 3, fill=False, edgecolor=RED, linewidth=1.5))
        panel.set_title(title, fontsize=8)
        panel.set_axis_off()
    return figure


def attack(results: Results, scenario: str) -> Figure | None:
    """Draw attack success rate and clean accuracy against the size of the trigger (Figs. 2 and 5)."""
    victims = _victims(results, scenario)
    if not victims:
        return None
    figure, panels = _two_panels(sizes=list(victims), height=2.6)
    for panel, column in zip(panels, MEASURES, strict=True):
        values = {size: rows[column] for size, rows in victims.items()}
        _line(panel, values, label=f"{scenario} attack", color=BLUE, marker="o")
    panels[0].axhline(WORKING, color=GREY, linestyle=":", linewidth=1, label=f"the attack works: {WORKING}")
    for rows in _victims(results, "clean").values():
        panels[1].axhline(rows["clean_accuracy"].median(), color=BLACK, linestyle="--", linewidth=1, label="no attack")
    _widen(panels[1])
    _legend_below(figure, *panels)
    return figure


def retraining(results: Results, scenario: str) -> Figure | None:
    """Draw attack success rate and clean accuracy after retraining, for every contender (Fig. 6)."""
    retrained = results.cells[results.cells["retrain"] & results.cells["retrained_clean_accuracy"].notna()]
    of_scenario = retrained[(retrained["scenario"] == scenario) & retrained["keep_originals"]]
    victims = _victims(results, scenario)
    if of_scenario.empty:
        return None
    sizes = sorted(map(float, of_scenario["size"].unique()))
    figure, panels = _two_panels(sizes=[*sizes, *victims], height=3.3)
    drawn = [name for name in STYLES if (retrained["defense"] == name).any()]
    for panel, column in zip(panels, MEASURES, strict=True):
        before = {size: rows[column] for size, rows in victims.items()}
        _line(panel, before, label="before", color=SKY, marker="P", linestyle="-")
        for number, name in enumerate(drawn):
            sideways = 0.003 * (number - (len(drawn) - 1) / 2)
            rows = of_scenario[of_scenario["defense"] == name]
            values = {size + sideways: rows.loc[rows["size"] == size, f"retrained_{column}"] for size in sizes}
            _line(panel, values, label=_label(name, retrained), **STYLES[name])
    _widen(panels[1])
    _legend_below(figure, panels[0])
    return figure


def roc(results: Results, scenario: str) -> Figure | None:
    """Draw the ROC curves for every size of the trigger, with a logarithmic FPR axis."""
    curves: dict[float, dict[str, list[Any]]] = {}
    for result in results.cell_results:
        cell, name = result["cell"], result["contender"]
        chosen = cell["scenario"] == scenario and cell["keep_originals"] and name in STYLES
        if chosen and result["roc"] and name != "perfect removal":
            curves.setdefault(cell["size"], {}).setdefault(name, []).append(result["roc"])
    if not curves:
        return None
    across = min(len(curves), 4)
    down = -(-len(curves) // across)
    figure = Figure(figsize=(max(WIDTH * across / 4, 3.6), 2.0 * down + 0.8))
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flat
    grid = np.logspace(np.log10(LEAST_FPR), 0, 81)
    victims = _victims(results, scenario)
    for number, (panel, size) in enumerate(zip(panels, sorted(curves), strict=False)):
        for order, name in enumerate(STYLES):
            if name in curves[size]:
                heights = np.stack([_at_most(curve, grid) for curve in curves[size][name]])
                marks = {"label": _label(name, results.cells), "markevery": (2 * order, 16)}
                panel.plot(grid, np.median(heights, axis=0), **marks, **STYLES[name])
                _band(panel, grid, heights, STYLES[name]["color"])
        panel.set(xscale="log", xlim=(LEAST_FPR, 1), ylim=(-0.03, 1.03))
        panel.set_xticks((LEAST_FPR, 1e-2, 1), ("10⁻⁴", "10⁻²", "1"))
        panel.xaxis.set_minor_formatter(NullFormatter())
        rate = _rate(victims[size]) if size in victims else ""
        panel.set_title(f"size {size:.2f}" + (f"\n{rate}" if rate else ""), fontsize=8)
        if number % across == 0:
            panel.set_ylabel("TPR")
        if number + across >= len(curves):
            panel.set_xlabel("FPR, all classes")
            panel.tick_params(labelbottom=True)
    for panel in figure.axes[len(curves) :]:
        panel.set_axis_off()
    _legend_below(figure, *figure.axes)
    return figure


def _victims(results: Results, scenario: str) -> dict[float, pd.DataFrame]:
    """Return the victims of a scenario whose originals stay, by the size of the trigger."""
    of_scenario = groups(results, scenario, keep_originals=True)
    return {group.size: group.victims for group in of_scenario if len(group.victims)}


def _rate(victims: pd.DataFrame) -> str:
    """Return the median attack success rate in words; empty if it is not known."""
    if victims["attack_success_rate"].isna().all():
        return ""
    return f"ASR {victims['attack_success_rate'].median():.2f}" + ("" if works(victims) else ": too low")


def _at_most(curve: list[list[float]], grid: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the highest TPR of a curve at an FPR of no more than each value of the grid."""
    false, true = np.array(curve).T
    return np.asarray(true[np.searchsorted(false, grid, side="right") - 1])


def impurity(results: Results) -> Figure | None:
    """Draw the impurity of every cluster of CI in every cell, with the threshold."""
    of_ci = [result for result in results.cell_results if result["contender"] == "CI" and result["clusters"]]
    if not of_ci:
        return None
    names = [group_name(result["cell"]) for result in of_ci]
    lines = list(dict.fromkeys(names))
    heights = np.array([lines.index(name) for name in names])
    figure = Figure(figsize=(WIDTH, 0.22 * len(lines) + 1.2))
    panel = figure.subplots()
    for poisoned, label, color, marker in (
        (False, "clean cluster", SKY, "o"), (True, "poisoned cluster", RED, "D"),
    ):  # fmt: skip
        points = [
            (max(cluster["impurity"], LEAST_IMPURITY), height)
            for result, height in zip(of_ci, heights, strict=True)
            for cluster in result["clusters"]
            if is_poisoned(cluster) == poisoned
        ]
        x, y = np.array(points).reshape(-1, 2).T
        edge: dict[str, Any] = {"markeredgecolor": "black", "markeredgewidth": 0.3}
        panel.plot(x, y, linestyle="", label=label, marker=marker, color=color, **edge)
    thresholds = [result["threshold"] for result in of_ci]
    panel.vlines(thresholds, heights - 0.4, heights + 0.4, color=BLACK, label="threshold")
    panel.set(xscale="log", xlabel="impurity (−log p, nats)", ylim=(len(lines) - 0.4, -0.6))
    panel.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    rates = {group.name: _rate(group.victims) for group in groups(results)}
    panel.set_yticks(range(len(lines)), [", ".join(filter(None, (name, rates.get(name)))) for name in lines])
    panel.grid(visible=False, axis="x")
    _legend_below(figure, panel)
    return figure


def _two_panels(sizes: list[float], height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure with two panels, one for each of ``MEASURES``, against the size of the trigger."""
    figure = Figure(figsize=(WIDTH, height))
    panels: list[Axes] = list(figure.subplots(1, 2))
    ticks = sorted(set(sizes))
    for panel, column in zip(panels, MEASURES, strict=True):
        panel.set(xlabel="size of the trigger", ylabel=column.replace("_", " "))
        panel.set_xticks(ticks, [f"{size:.2f}" for size in ticks])
    panels[0].set_ylim(-0.03, 1.03)
    return figure, panels


def _widen(panel: Axes) -> None:
    """Make the vertical axis at least 0.02 long, so that noise does not look like an effect."""
    low, high = panel.get_ylim()
    spare = max(0.0, 0.02 - (high - low)) / 2
    panel.set_ylim(low - spare, high + spare)


def _line(panel: Axes, values: dict[float, "pd.Series[Any]"], **style: Any) -> None:
    """Draw the median over seeds against size, with a band from the lowest to the highest value."""
    present = {size: series.dropna() for size, series in values.items() if series.notna().any()}
    x = np.array(list(present))
    panel.plot(x, [float(series.median()) for series in present.values()], **style)
    if any(len(series) > 1 for series in present.values()):
        ends = np.array([[float(series.min()), float(series.max())] for series in present.values()]).T
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

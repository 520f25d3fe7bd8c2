"""The pruning curve as a figure."""

from pathlib import Path

import pandas as pd

from undoor.errors import require_extra

RED, BLUE, GREY = "#D55E00", "#0072B2", "#777777"
"""Colours that colour-blind readers tell apart (Okabe and Ito)."""


def write_curve(curve: pd.DataFrame, count: int, tolerance: float, path: Path) -> None:
    """Draw accuracy, and attack success where it is known, against the share of pruned channels.

    Args:
        curve: of ``Pruned``, with the column attack_success_rate where an experimenter measured it.
        count: of channels after which pruning stopped.
        tolerance: how far accuracy was allowed to fall.
        path: without suffix; ``.svg`` and ``.png`` are written, the same bytes for the same curve.

    Raises:
        UndoorError: if matplotlib is not installed.

    """
    require_extra("matplotlib", "figures", "the pruning curve")
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"font.size": 8, "svg.hashsalt": "undoor", "figure.constrained_layout.use": True})
        figure = Figure(figsize=(4.2, 3.0))
        axes = figure.subplots()
        axes.plot(curve["share"], curve["accuracy"], color=BLUE, label="accuracy on clean images held out")
        if "attack_success_rate" in curve:
            axes.plot(curve["share"], curve["attack_success_rate"], "--", color=RED, label="attack success rate")
        axes.axhline(curve["accuracy"].iloc[0] - tolerance, color=GREY, linewidth=0.8, linestyle=":", label="tolerated")
        axes.axvline(curve["share"].iloc[count], color=GREY, linewidth=0.8, label="where pruning stopped")
        axes.set(xlabel="share of channels pruned", ylabel="share of images", xlim=(0, 1), ylim=(0, 1.02))
        figure.legend(frameon=False, loc="outside upper center", ncols=2)
        # No date and no version: the same results make the same bytes.
        figure.savefig(path.with_name(f"{path.name}.svg"), metadata={"Date": None, "Creator": None})
        figure.savefig(path.with_name(f"{path.name}.png"), metadata={"Software": None}, dpi=200)

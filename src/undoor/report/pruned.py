"""The page of Fine-Pruning, and the picture of its curve."""

import io
from pathlib import Path

import pandas as pd

from undoor.defenses.post_training.pruned import Pruned
from undoor.networks.weights import Architecture
from undoor.report.result import render_result

RED, BLUE, GREY = "#D55E00", "#0072B2", "#777777"
"""Colours that colour-blind readers can tell apart (Okabe and Ito)."""


def write_pruned(result: Pruned, path: Path, architecture: Architecture, *, overwrite: bool = False) -> None:
    """Write the repaired network with its page and the picture of its curve, as SVG and PNG.

    Args:
        result: the result of ``FinePruning``.
        path: NAME.safetensors; the other files are NAME.html, NAME.json and NAME-curve.parquet, .svg and .png.
        architecture: the description of the given network.
        overwrite: replace the files of an earlier run.

    """
    svg, png = curve_pictures(result.curve, result.count, result.provenance.settings["tolerance"])
    pictures = {f"{path.stem}-curve.svg": svg, f"{path.stem}-curve.png": png}
    result.write(path, architecture, render_pruned(result, png), pictures, overwrite=overwrite)


def render_pruned(result: Pruned, curve: bytes) -> str:
    """Return the result of Fine-Pruning as one HTML file; ``curve`` is the picture of its curve as PNG."""
    table = result.table()
    before, after = table.iloc[0], table.iloc[-1]
    lead = (
        f"{result.count} of {result.channels.count} channels of {result.channels.convolution} are pruned, and the "
        f"network is fine-tuned on {result.images_tuning} clean images."
    )
    notes = [
        f"{name.replace('_', ' ').capitalize()}: {before[name]:.4f} before, {after[name]:.4f} after."
        for name in table.columns[1:]
    ]
    notes += [f"Note: {result.doubt}."] if result.doubt else []
    caption = "Accuracy by the share of channels that are pruned. The dotted line is the lowest accuracy tolerated."
    return render_result(
        "worse" if result.doubt else "repaired", lead, result.summary(), alarming=result.doubt is not None,
        heading="Network", notes=notes, images=[(caption, curve)],
        tables={"Before, after pruning, and after fine-tuning": table, "Along the curve": result.curve},
    )  # fmt: skip


def curve_pictures(curve: pd.DataFrame, count: int, tolerance: float) -> tuple[bytes, bytes]:
    """Draw accuracy, and the attack success rate where it was measured, by the share of pruned channels.

    Args:
        curve: the curve of a ``Pruned``.
        count: how many channels were pruned.
        tolerance: how far accuracy was allowed to fall.

    Returns:
        The picture as SVG and as PNG. The same curve gives the same bytes.

    """
    import matplotlib as mpl  # is slow to import, and no other page needs it
    from matplotlib.figure import Figure

    svg, png = io.BytesIO(), io.BytesIO()
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update({"font.size": 8, "svg.hashsalt": "undoor", "figure.constrained_layout.use": True})
        figure = Figure(figsize=(4.2, 3.0))
        axes = figure.subplots()
        axes.plot(curve["share"], curve["accuracy"], color=BLUE, label="accuracy on clean images held out")
        if "attack_success_rate" in curve:
            axes.plot(curve["share"], curve["attack_success_rate"], "--", color=RED, label="attack success rate")
        axes.axhline(curve["accuracy"].iloc[0] - tolerance, color=GREY, linewidth=0.8, linestyle=":", label="tolerated")
        axes.axvline(curve["share"].iloc[count], color=GREY, linewidth=0.8, label="where pruning stopped")
        axes.set(xlabel="share of channels pruned", ylabel="share of images", xlim=(0, 1), ylim=(0, 1.02))
        figure.legend(frameon=False, loc="outside upper center", ncols=2)
        # Without date and version, the same curve gives the same bytes.
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
        figure.savefig(png, format="png", metadata={"Software": None}, dpi=200)
    return svg.getvalue(), png.getvalue()

"""The page of Fine-Pruning, and the picture of its curve."""

import json
from dataclasses import replace
from pathlib import Path

from undoor.defenses.post_training.pruned import Pruned, refuse_network
from undoor.errors import require_extra
from undoor.networks.weights import Architecture, save_model
from undoor.report.result import render_result
from undoor.storage.atomic import staged

RED, BLUE, GREY = "#D55E00", "#0072B2", "#777777"
"""Colours that colour-blind readers can tell apart (Okabe and Ito)."""


def write_pruned(result: Pruned, path: Path, architecture: Architecture, *, overwrite: bool = False) -> None:
    """Write the repaired network to ``path``, NAME.safetensors, and beside it its summary, its page and its curve.

    These are NAME.json, NAME.html and NAME-curve.parquet, .svg and .png. ``architecture`` describes the given network;
    how it was repaired is added in the file.
    """
    refuse_network(path, overwrite)
    repair = {**result.provenance.settings, "seed": result.provenance.seed}
    described = replace(architecture, recipe={**architecture.recipe, "fine_pruning": repair})
    with staged(path.parent, last=path.name) as folder:
        curve = folder / f"{path.stem}-curve"
        result.curve.to_parquet(f"{curve}.parquet", index=False)
        draw_curve(result, curve)
        page = render_pruned(result, Path(f"{curve}.png").read_bytes())
        (folder / f"{path.stem}.html").write_text(page, encoding="utf-8")
        text = json.dumps(result.summary(), indent=2, ensure_ascii=False) + "\n"
        (folder / f"{path.stem}.json").write_text(text, encoding="utf-8")
        save_model(result.tuned.model, described, folder / path.name)


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


def draw_curve(result: Pruned, path: Path) -> None:
    """Draw accuracy, and attack success rate if it was measured, by the share of pruned channels, as SVG and PNG.

    The same curve gives the same bytes. ``path`` is the path of both files without their suffixes.
    """
    require_extra("matplotlib", "figures", "the pruning curve")
    import matplotlib as mpl  # it is slow to import, and no other page needs it
    from matplotlib.figure import Figure

    curve, tolerated = result.curve, result.curve["accuracy"].iloc[0] - result.provenance.settings["tolerance"]
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update({"font.size": 8, "svg.hashsalt": "undoor", "figure.constrained_layout.use": True})
        figure = Figure(figsize=(4.2, 3.0))
        axes = figure.subplots()
        axes.plot(curve["share"], curve["accuracy"], color=BLUE, label="accuracy on clean images held out")
        if "attack_success_rate" in curve:
            axes.plot(curve["share"], curve["attack_success_rate"], "--", color=RED, label="attack success rate")
        axes.axhline(tolerated, color=GREY, linewidth=0.8, linestyle=":", label="lowest accuracy tolerated")
        axes.axvline(curve["share"].iloc[result.count], color=GREY, linewidth=0.8, label="where pruning stopped")
        axes.set(xlabel="share of channels pruned", ylabel="share of images", xlim=(0, 1), ylim=(0, 1.02))
        figure.legend(frameon=False, loc="outside upper center", ncols=2)
        # A date or a version would change the bytes.
        figure.savefig(f"{path}.svg", metadata={"Date": None, "Creator": None})
        figure.savefig(f"{path}.png", metadata={"Software": None}, dpi=200)

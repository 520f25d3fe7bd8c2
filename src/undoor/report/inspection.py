"""The page of an inspection, and the pictures of its perturbations."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import save

from undoor.defenses.post_training.inspection import Inspection
from undoor.findings.findings import refuse_findings
from undoor.report.result import Axis, render_result
from undoor.safe.images import encode_png
from undoor.storage.atomic import staged

SHOWN_PAIRS = 6
"""The page shows the perturbations of this many pairs: detected ones before others, the closest first."""

PICTURE_SIDE = 160
"""Each of the three parts of a picture is enlarged until its longer side has at least this many pixels."""


def write_inspection(inspection: Inspection, folder: Path, *, overwrite: bool = False) -> None:
    """Write pairs, perturbations, a picture of every detected pair's, the page and ``summary.json``, in this order."""
    refuse_findings(folder, overwrite)
    with staged(folder, last="summary.json", stale=folder.glob("perturbation-*.png")) as temporary:
        inspection.pairs.to_parquet(temporary / "pairs.parquet", index=False)
        (temporary / "perturbations.safetensors").write_bytes(save({"perturbations": inspection.perturbations}))
        for row in np.flatnonzero(inspection.pairs["detected"]).tolist():
            source, target = (_file_name(inspection, name) for name in _names(inspection, row))
            picture = perturbation_picture(inspection, row)
            (temporary / f"perturbation-{source}-{target}.png").write_bytes(picture)
        (temporary / "report.html").write_text(render_inspection(inspection), encoding="utf-8")
        text = json.dumps(inspection.summary(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        (temporary / "summary.json").write_text(text, encoding="utf-8")


def render_inspection(inspection: Inspection) -> str:
    """Return an inspection as one HTML file: the verdict, every pair on one axis, and pictures of the closest pairs."""
    pairs = inspection.pairs
    (other,) = (rule for rule in inspection.inferences if rule != inspection.rule)
    notes = [
        f"How sure: rule {inspection.rule} decides, with p = {inspection.p:.3g}; rule {other} gives p = "
        f"{inspection.inferences[other].p:.3g}. A backdoor is detected if p ≤ {inspection.level}."
    ]
    if inspection.target is None:
        lead = "No class pair is closer than chance would explain."
        notes.append("“Clean” means that this method found nothing. It does not prove that there is no backdoor.")
    else:
        shortest = pairs.loc[pairs["detected"], "norm"].min()
        others = pairs.loc[pairs["target"] != inspection.target, "norm"].min()
        lead = (
            f"A change of length {shortest:.2f} is enough to send images of {', '.join(inspection.sources)} to "
            f"{inspection.target}; other targets need {others:.2f} or more."
        )
        notes.append(
            "The sources are all classes that reach the target as easily, whether the attacker used them or not."
        )
    labels = [f"from {row.source}: length {row.norm:.2f}" for row in pairs.itertuples()]
    axis = Axis(
        "Every class pair by how close it is",
        "Each line is a target class, each mark a source class. Its value is 1/‖v‖₂, where v is the smallest change of "
        "images in [0, 1] that sends the images of the source to the target. A backdoor brings its pairs close, and "
        "their values are high.",
        "1/‖v‖₂",
        pd.DataFrame({"row": pairs["target"], "value": pairs["r"], "label": labels, "flagged": pairs["detected"]}),
    )
    closest = pairs.sort_values(["detected", "norm"], ascending=[False, True], kind="stable").index[:SHOWN_PAIRS]
    images = [
        (
            f"{' → '.join(_names(inspection, row))}: v, amplified, where grey is no change; an image without v; the "
            f"same image with v. ‖v‖₂ = {pairs['norm'].iloc[row]:.3f}.",
            perturbation_picture(inspection, row),
        )
        for row in closest
    ]
    return render_result(
        inspection.verdict, lead, inspection.summary(), alarming=inspection.target is not None, notes=notes, axis=axis,
        tables={"Class pairs, the closest first": pairs.sort_values("norm", kind="stable")}, marked_by="detected",
        images=images,
    )  # fmt: skip


def perturbation_picture(inspection: Inspection, row: int) -> bytes:
    """Return, as PNG, v of a pair amplified around grey, an image of its source class, and the same image with v."""
    pattern = inspection.perturbations[row]
    image = inspection.examples[inspection.class_names.index(_names(inspection, row)[0])]
    amplified = 127.5 + 127.5 * pattern / max(float(np.abs(pattern).max()), 1e-9)
    moved = np.clip(image + 255 * pattern, 0, 255)
    gap = np.full((*image.shape[:2], 1), 255)
    parts = np.concatenate([amplified, gap, image, gap, moved], axis=2)
    times = -(-PICTURE_SIDE // max(image.shape[1:]))
    return encode_png(np.rint(parts).astype(np.uint8).repeat(times, axis=1).repeat(times, axis=2))


def _names(inspection: Inspection, row: int) -> tuple[str, str]:
    """Return the names of the source and the target class of the pair in this row."""
    pair = inspection.pairs.iloc[row]
    return str(pair["source"]), str(pair["target"])


def _file_name(inspection: Inspection, name: str) -> str:
    """Return a class name as part of a file name; if it had to be changed, the number of the class makes it unique."""
    safe = re.sub(r"[^A-Za-z0-9_]+", "_", name)[:60]
    return safe if safe == name else f"{safe}{inspection.class_names.index(name)}"

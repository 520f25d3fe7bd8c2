"""What the inspection of a network found: the closest class pairs, p-values, and the perturbations as pictures."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors.numpy import save

from undoor.defenses.post_training.gamma_null import Inference, Rule
from undoor.findings.findings import refuse_findings
from undoor.findings.provenance import Provenance
from undoor.report import Axis, render_result
from undoor.safe.images import encode_png
from undoor.storage.atomic import staged

PAIR_COLUMNS = ("source", "target", "norm", "rate", "r", "reached", "steps", "p", "detected")

SHOWN = 6
"""Pairs whose pictures are in the report: detected ones before others, the closest first."""

PICTURE = 160
"""Pixels, at least, of the longer side of each of the three parts of a picture."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Inspection:
    """The result of reverse engineering.

    Args:
        pairs: one row an ordered class pair; columns ``PAIR_COLUMNS``: source, target (names), norm (‖v‖₂ of images in
            [0, 1]), rate (share of the source's images that v sends to the target), r = 1 / norm, reached (whether
            rate is the share asked for; where not, r is only known to be smaller), steps, p (of the pair alone, by the
            rule that decides), detected.
        perturbations: (P, C, H, W) float32, v, in the order of ``pairs``.
        examples: (K, C, H, W) uint8, an image of each class.
        inferences: of both rules.
        rule: which of them decides.
        level: a backdoor is detected at p ≤ ``level``.
        class_names: the K names.
        images: how many images of each class were used, by its name.
        provenance: of which method and settings, and how long it took.

    """

    pairs: pd.DataFrame
    perturbations: NDArray[np.float32]
    examples: NDArray[np.uint8]
    inferences: Mapping[Rule, Inference]
    rule: Rule
    level: float
    class_names: tuple[str, ...]
    images: Mapping[str, int]
    provenance: Provenance

    @property
    def p(self) -> float:
        """The p-value that decides."""
        return self.inferences[self.rule].p

    @property
    def verdict(self) -> Literal["backdoored", "clean"]:
        """Whether a backdoor is detected."""
        return "backdoored" if self.p <= self.level else "clean"

    @property
    def target(self) -> str | None:
        """The name of the target class; None if no backdoor is detected."""
        return None if self.verdict == "clean" else self.class_names[self.inferences[self.rule].pair[1]]

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the source classes: of the detected pairs, the closest first."""
        found = self.pairs[self.pairs["detected"]].sort_values("norm", kind="stable")
        return tuple(found["source"])

    def perturbation(self, source: str, target: str) -> NDArray[np.float32]:
        """Return v, (C, H, W), of a pair of class names."""
        row = (self.pairs["source"] == source) & (self.pairs["target"] == target)
        pattern: NDArray[np.float32] = self.perturbations[row.to_numpy()][0]
        return pattern

    def summary(self) -> dict[str, Any]:
        """Return the content of ``summary.json``."""
        return {
            **self.provenance.summary(),
            "verdict": self.verdict,
            "target": self.target,
            "sources": list(self.sources),
            "p": self.p,
            "rule": self.rule,
            "level": self.level,
            "inferences": {rule: self._told(inference) for rule, inference in self.inferences.items()},
            "pairs_that_never_reached_the_share": int((~self.pairs["reached"]).sum()),
            "images": dict(self.images),
        }

    def _told(self, inference: Inference) -> dict[str, Any]:
        source, target = inference.pair
        return {
            "p": inference.p,
            "nominal_p": inference.nominal,
            "closest_pair": [self.class_names[source], self.class_names[target]],
            "gamma": {"shape": inference.shape, "scale": inference.scale},
        }

    def _file_name(self, name: str) -> str:
        """Return a class name as part of a file's name; what had to be changed is told apart by the class's number."""
        safe = re.sub(r"[^A-Za-z0-9_]+", "_", name)[:60]
        return safe if safe == name else f"{safe}{self.class_names.index(name)}"

    def _pair(self, row: int) -> tuple[str, str]:
        source, target = (str(self.pairs[end].iloc[row]) for end in ("source", "target"))
        return source, target

    def _picture(self, row: int) -> bytes:
        example = self.examples[self.class_names.index(self._pair(row)[0])]
        return encode_png(picture(self.perturbations[row], example))

    def report(self) -> str:
        """Return the inspection as one HTML file: the verdict, every pair on one axis, pictures of the closest."""
        pairs, other = self.pairs, next(rule for rule in self.inferences if rule != self.rule)
        lead = "No class pair is so close that chance would not explain it."
        if self.target is not None:
            shortest = pairs.loc[pairs["detected"], "norm"].min()
            others = pairs.loc[pairs["target"] != self.target, "norm"].min()
            lead = (
                f"A change of length {shortest:.2f} is enough to send images of {', '.join(self.sources)} to "
                f"{self.target}; other targets need {others:.2f} or more."
            )
        notes = [
            f"How sure: p = {self.p:.3g} by rule {self.rule}, which decides, and p = {self.inferences[other].p:.3g} by "
            f"rule {other}; a backdoor is detected at p ≤ {self.level}.",
            "Sources are all classes that reach the target as easily, whether or not the attacker used them.",
        ]
        if self.target is None:
            notes[1:] = ["“Clean” means that this method found nothing, not that nothing is there."]
        told = [f"from {row.source}: length {row.norm:.2f}" for row in pairs.itertuples()]
        marks = pd.DataFrame({"row": pairs["target"], "value": pairs["r"], "told": told, "flagged": pairs["detected"]})
        axis = Axis(
            "Every class pair by how close it is",
            "A line a target, a mark a source: 1/‖v‖₂ of the smallest change v, of images in [0, 1], that sends the "
            "source's images to the target. A backdoor brings its pairs close.",
            "1/‖v‖₂",
            marks,
        )
        order = pairs.sort_values(["detected", "norm"], ascending=[False, True], kind="stable").index[:SHOWN]
        images = [
            (
                f"{' → '.join(self._pair(row))}: v amplified around grey; an image without it; and with it. "
                f"‖v‖₂ = {pairs['norm'].iloc[row]:.3f}.",
                self._picture(row),
            )
            for row in order
        ]
        return render_result(
            self.verdict, lead, self.summary(), alarming=self.target is not None, notes=notes, axis=axis,
            tables={"Class pairs, the closest first": pairs.sort_values("norm", kind="stable")}, marked_by="detected",
            images=images,
        )  # fmt: skip

    def write(self, folder: Path, *, overwrite: bool = False) -> None:
        """Write pairs, perturbations, a picture of every detected pair's, the report and ``summary.json``, the last.

        A picture shows v around grey, amplified, beside an image of the source class without it and with it.
        """
        refuse_findings(folder, overwrite)
        with staged(folder, last="summary.json", stale=folder.glob("perturbation-*.png")) as temporary:
            self.pairs.to_parquet(temporary / "pairs.parquet", index=False)
            (temporary / "perturbations.safetensors").write_bytes(save({"perturbations": self.perturbations}))
            for row in np.flatnonzero(self.pairs["detected"]).tolist():
                source, target = self._pair(row)
                name = f"perturbation-{self._file_name(source)}-{self._file_name(target)}.png"
                (temporary / name).write_bytes(self._picture(row))
            (temporary / "report.html").write_text(self.report(), encoding="utf-8")
            text = json.dumps(self.summary(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
            (temporary / "summary.json").write_text(text, encoding="utf-8")


def picture(pattern: NDArray[np.float32], image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return v, (C, H, W), amplified around grey, beside a (C, H, W) image without and with it, all enlarged."""
    amplified = 127.5 + 127.5 * pattern / max(float(np.abs(pattern).max()), 1e-9)
    moved = np.clip(image + 255 * pattern, 0, 255)
    gap = np.full((*image.shape[:2], 1), 255)
    row = np.concatenate([amplified, gap, image, gap, moved], axis=2)
    times = -(-PICTURE // max(image.shape[1:]))
    enlarged: NDArray[np.uint8] = np.rint(row).astype(np.uint8).repeat(times, axis=1).repeat(times, axis=2)
    return enlarged

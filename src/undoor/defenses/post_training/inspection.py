"""The result of inspecting a network for a backdoor: the closest class pairs, p-values, and the perturbations."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from undoor.defenses.post_training.gamma_null import Inference, Rule
from undoor.findings.provenance import Provenance

PAIR_COLUMNS = ("source", "target", "norm", "rate", "r", "reached", "steps", "p", "detected")


@dataclass(frozen=True, eq=False, kw_only=True)
class Inspection:
    """The result of reverse engineering; the example of ``ReverseEngineering`` makes one.

    ``undoor.report.write_inspection`` writes it into a folder with its HTML page.

    Args:
        provenance: the method, its settings, and how long it took.
        pairs: one row an ordered class pair. Its columns are ``PAIR_COLUMNS``: source and target (class names), norm
            (‖v‖₂ of images in [0, 1]), rate (the share of the source's images that v sends to the target), r = 1 /
            norm, reached (whether the rate is the share asked for; if not, r is only known to be smaller), steps, p
            (of this pair alone, by the rule that decides) and detected.
        perturbations: (P, C, H, W) float32, v, in the order of ``pairs``.
        examples: (K, C, H, W) uint8, an image of each class.
        inferences: what each of the two rules infers.
        rule: the rule that decides.
        level: a backdoor is detected if p ≤ ``level``.
        class_names: the K names.
        images: for each class name, how many images were used.

    """

    provenance: Provenance
    pairs: pd.DataFrame
    perturbations: NDArray[np.float32]
    examples: NDArray[np.uint8]
    inferences: Mapping[Rule, Inference]
    rule: Rule
    level: float
    class_names: tuple[str, ...]
    images: Mapping[str, int]

    @property
    def p(self) -> float:
        """The p-value that decides."""
        return self.inferences[self.rule].p

    @property
    def verdict(self) -> Literal["backdoored", "clean"]:
        """``"backdoored"`` if a backdoor is detected."""
        return "backdoored" if self.p <= self.level else "clean"

    @property
    def target(self) -> str | None:
        """The name of the target class; None if no backdoor is detected."""
        return None if self.verdict == "clean" else self.class_names[self.inferences[self.rule].pair[1]]

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the source classes of the detected pairs, the closest pair first."""
        return tuple(self.pairs[self.pairs["detected"]].sort_values("norm", kind="stable")["source"])

    def perturbation(self, source: str, target: str) -> NDArray[np.float32]:
        """Return v, (C, H, W), of a pair of class names."""
        row = (self.pairs["source"] == source) & (self.pairs["target"] == target)
        pattern: NDArray[np.float32] = self.perturbations[row.to_numpy()][0]
        return pattern

    def summary(self) -> dict[str, Any]:
        """Return the content of ``summary.json``."""
        return self.provenance.summary(
            verdict=self.verdict,
            target=self.target,
            sources=list(self.sources),
            p=self.p,
            rule=self.rule,
            level=self.level,
            inferences={
                rule: {
                    "p": inference.p,
                    "nominal_p": inference.nominal,
                    "closest_pair": [self.class_names[label] for label in inference.pair],
                    "gamma": {"shape": inference.shape, "scale": inference.scale},
                }
                for rule, inference in self.inferences.items()
            },
            pairs_that_never_reached_the_share=int((~self.pairs["reached"]).sum()),
            images=dict(self.images),
        )

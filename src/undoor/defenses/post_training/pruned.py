"""The result of Fine-Pruning: the repaired network, the pruning curve, and how good the network is on the way."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from undoor.defenses.post_training.channels import Channels, decisions_along
from undoor.errors import UndoorError
from undoor.findings.provenance import Provenance
from undoor.networks.classifier import Classifier


@dataclass(frozen=True, eq=False, kw_only=True)
class Pruned:
    """The result of Fine-Pruning; the example of ``FinePruning`` makes one.

    ``undoor.report.write_pruned`` writes it with its HTML page.

    Args:
        provenance: the method, its settings, and how long it took.
        channels: the channels of the pruned layer.
        order: (C,), the channels in the order in which they are pruned.
        count: how many of them are pruned.
        curve: one row for each number of pruned channels, 0 … C. Its columns are pruned, share, channel (the last
            pruned channel; −1 in the first row), activation (its mean on clean images; NaN in the first row) and
            accuracy (on the clean images held out).
        before: a copy of the given network, with its scaling.
        pruned: the network after pruning.
        tuned: the network after fine-tuning, that is, the repaired network.
        accuracies: of these three networks, by their names, on the clean images held out.
        images_tuning: how many clean images the channels are ranked and the network is fine-tuned on.
        images_held_out: how many clean images accuracy is measured on.
        measured: what an experimenter measured of the three networks, by their names, such as clean accuracy and attack
            success rate on test images; None if nothing was measured. It is filled in after the defense has finished.

    """

    provenance: Provenance
    channels: Channels
    order: NDArray[np.int64]
    count: int
    curve: pd.DataFrame
    before: Classifier
    pruned: Classifier
    tuned: Classifier
    accuracies: Mapping[str, float]
    images_tuning: int
    images_held_out: int
    measured: Mapping[str, Any] | None = None

    def decisions_along(
        self, images: NDArray[np.uint8], on_batch: Callable[[int, int], None] | None = None
    ) -> NDArray[np.int64]:
        """Return the decisions (C + 1, N) on (N, C, H, W) uint8 images of every network along the curve."""
        return decisions_along(self.before, self.channels, self.order, images, on_batch)

    def against(self, measured: Mapping[str, Any], success_along: Sequence[float] | None = None) -> "Pruned":
        """Return this result with what an experimenter measured.

        Args:
            measured: of the networks before, pruned and tuned, by these names.
            success_along: (C + 1,) attack success rates along the curve.

        """
        curve = self.curve if success_along is None else self.curve.assign(attack_success_rate=success_along)
        return replace(self, measured=measured, curve=curve)

    @property
    def doubt(self) -> str | None:
        """What is wrong with the repaired network, in a sentence; None if accuracy has not fallen by too much."""
        fallen, tolerance = self.accuracies["before"] - self.accuracies["tuned"], self.provenance.settings["tolerance"]
        if fallen <= tolerance:
            return None
        return (
            f"accuracy on the clean images held out has fallen by {fallen:.3f}, more than the tolerance of "
            f"{tolerance}; give more clean images, a lower --learning-rate or more --epochs"
        )

    def table(self) -> pd.DataFrame:
        """Return one row for each of the networks before, pruned and tuned.

        The columns are network, accuracy_on_images_held_out, and, where they were measured, clean_accuracy and
        attack_success_rate.
        """
        rows = [
            {"network": name, "accuracy_on_images_held_out": value, **(self.measured or {}).get(name, {})}
            for name, value in self.accuracies.items()
        ]
        return pd.DataFrame(rows).dropna(axis="columns", how="all")

    def summary(self) -> dict[str, Any]:
        """Return the content of NAME.json."""
        return self.provenance.summary(
            layer=self.channels.convolution,
            norms=list(self.channels.norms),
            channels=self.channels.count,
            pruned=self.order[: self.count].tolist(),
            accuracy=dict(self.accuracies),
            images={"tuning": self.images_tuning, "held_out": self.images_held_out},
            doubt=self.doubt,
            measured=None if self.measured is None else dict(self.measured),
        )


def refuse_network(path: Path, overwrite: bool) -> None:
    """Raise if a network may not be written to ``path``: it has another suffix, or a file is in the way."""
    if path.suffix != ".safetensors":
        raise UndoorError(f"{path} should end in .safetensors; choose such a name for --out")
    for file in (path, path.with_suffix(".html")):
        if file.exists() and not overwrite:
            raise UndoorError(f"{file} exists already; choose another --out or add --overwrite")

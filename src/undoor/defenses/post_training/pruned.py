"""What Fine-Pruning made of a network: the repaired one, the curve, and how good the network is on the way."""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from undoor.defenses.post_training.channels import Channels, decisions_along, silence
from undoor.errors import UndoorError
from undoor.findings.provenance import Provenance
from undoor.networks.classifier import Classifier
from undoor.networks.weights import Architecture, save_model
from undoor.report import render_result
from undoor.report.curve import write_curve
from undoor.storage.atomic import staged


@dataclass(frozen=True, eq=False, kw_only=True)
class Pruned:
    """What Fine-Pruning made of a network.

    Args:
        provenance: of which method and settings, and how long it took.
        channels: those of the pruned layer.
        order: (C,), the channels in the order in which they are pruned.
        count: how many of them are pruned.
        curve: one row for 0 … C pruned channels; columns pruned, share, channel (the last one pruned; −1 for
            none), activation (its mean on clean images; not a number for none) and accuracy (on the clean images
            held out).
        before: a copy of the network as it was, with its scaling.
        pruned: after pruning.
        tuned: after fine-tuning: the repaired network.
        accuracies: on the clean images held out, of the three.
        images_tuning: number of clean images for ranking and fine-tuning.
        images_held_out: number of clean images for accuracy.
        measured: what the experimenter knows of the three networks, such as clean accuracy and attack success
            rate on test images; None where nothing is known. Filled in after the defence has finished.

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

    def at(self, count: int) -> Classifier:
        """Return the network with the first ``count`` channels of the order pruned, and not fine-tuned."""
        classifier = copy.deepcopy(self.before)
        silence(classifier.model, self.channels, self.order[:count])
        return classifier

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

    def summary(self) -> dict[str, Any]:
        """Return the result as plain values."""
        return {
            **self.provenance.summary(),
            "layer": self.channels.convolution,
            "norms": list(self.channels.norms),
            "channels": self.channels.count,
            "pruned": self.order[: self.count].tolist(),
            "accuracy": dict(self.accuracies),
            "images": {"tuning": self.images_tuning, "held_out": self.images_held_out},
            "doubt": self.doubt,
            "measured": None if self.measured is None else dict(self.measured),
        }

    def table(self) -> pd.DataFrame:
        """Return one row a network, before, pruned and tuned: its accuracy on images held out, and what was measured.

        Columns: network, accuracy_on_images_held_out, and where they are known clean_accuracy, attack_success_rate.
        """
        rows = [
            {"network": name, "accuracy_on_images_held_out": value, **(self.measured or {}).get(name, {})}
            for name, value in self.accuracies.items()
        ]
        return pd.DataFrame(rows).dropna(axis="columns", how="all")

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

    def report(self, curve: bytes) -> str:
        """Return the result as one HTML file with the curve, a PNG."""
        before, after = (self.table().iloc[row] for row in (0, -1))
        lead = (
            f"{self.count} of {self.channels.count} channels of {self.channels.convolution} are pruned, and the "
            f"network is fine-tuned on {self.images_tuning} clean images."
        )
        notes = [
            f"{name.replace('_', ' ').capitalize()}: {before[name]:.4f} before, {after[name]:.4f} after."
            for name in self.table().columns[1:]
        ]
        notes += [f"Note: {self.doubt}."] if self.doubt else []
        caption = "Accuracy against the share of channels pruned; the line across is what is tolerated."
        return render_result(
            "worse" if self.doubt else "repaired", lead, self.summary(), alarming=self.doubt is not None,
            heading="Network", notes=notes, images=[(caption, curve)],
            tables={"Before, after pruning, and after fine-tuning": self.table(), "Along the curve": self.curve},
        )  # fmt: skip

    def write(self, path: Path, architecture: Architecture, *, overwrite: bool = False) -> None:
        """Write the repaired network to ``path``; curve (Parquet, SVG, PNG), summary (JSON) and report beside it.

        Args:
            path: NAME.safetensors; the others are NAME-curve.parquet, NAME-curve.svg, NAME-curve.png, NAME.json
                and NAME.html.
            architecture: what the file is to say of the network; how it was repaired is added.
            overwrite: replace files of an earlier run.

        """
        refuse_network(path, overwrite)
        described = replace(
            architecture, recipe={**architecture.recipe, "fine_pruning": dict(self.provenance.settings)}
        )
        with staged(path.parent, last=path.name) as folder:
            self.curve.to_parquet(folder / f"{path.stem}-curve.parquet", index=False)
            write_curve(self.curve, self.count, self.provenance.settings["tolerance"], folder / f"{path.stem}-curve")
            text = json.dumps(self.summary(), indent=2, ensure_ascii=False) + "\n"
            (folder / f"{path.stem}.json").write_text(text, encoding="utf-8")
            drawn = (folder / f"{path.stem}-curve.png").read_bytes()
            (folder / f"{path.stem}.html").write_text(self.report(drawn), encoding="utf-8")
            save_model(self.tuned.model, described, folder / path.name)


def refuse_network(path: Path, overwrite: bool) -> None:
    """Raise if a network cannot be written to ``path``, or another file is there that may not be replaced."""
    if path.suffix != ".safetensors":
        raise UndoorError(f"{path} should end in .safetensors; choose such a name for --out")
    for file in (path, path.with_suffix(".html")):
        if file.exists() and not overwrite:
            raise UndoorError(f"{file} exists already; choose another --out or add --overwrite")

"""The demonstration on the embedded digits: poison, train, scan, remove what is flagged, train again."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from undoor.attacks import Attack, poison
from undoor.data.dataset import Dataset
from undoor.data.readers import read
from undoor.defenses.training_set import ClusterImpurity
from undoor.experiments.measure import Success, measure
from undoor.filters import Average
from undoor.findings.findings import Findings, refuse_findings
from undoor.findings.provenance import versions
from undoor.networks.recipes import recipe
from undoor.networks.training import Step, train
from undoor.report.findings import write_findings
from undoor.scanning import scan
from undoor.storage.atomic import write_text

EPOCHS = 10
COUNT, SIZE, SOURCE, TARGET = 300, 0.4, "7", "0"
"""The attack: number of poisoned images, size of the trigger, source class and target class."""


@dataclass(frozen=True, eq=False)
class Demo:
    """The result of the demonstration.

    Args:
        attack: the attack.
        before: clean accuracy and attack success rate of the victim.
        after: the same of the network that was trained without what was flagged.
        findings: the findings, with their hits and false alarms.
        seconds: how long each stage took.

    """

    attack: Attack
    before: Success
    after: Success
    findings: Findings
    seconds: dict[str, float]

    def summary(self) -> dict[str, Any]:
        """Return the content of ``demo.json``."""
        return {
            "attack": asdict(self.attack),
            "before": self.before,
            "after": self.after,
            "truth": self.findings.truth,
            "seed": self.findings.provenance.seed,
            "seconds": {stage: round(value, 2) for stage, value in self.seconds.items()},
            "versions": versions(),
        }


def demo(
    out: Path | None = None,
    seed: int = 0,
    *,
    overwrite: bool = False,
    on_step: Callable[[str, Step], None] = lambda *_: None,
    on_count: Callable[[str, int, int], None] = lambda *_: None,
) -> Demo:
    """Poison the digits, 7 → 0, train on them, scan, remove what is flagged, and train again.

    Args:
        out: the folder in which ``findings/`` and ``demo.json`` are written; None writes nothing.
        seed: seed of everything that is random.
        overwrite: whether earlier results in ``out`` are replaced.
        on_step: is called after every training step with the name of the stage, "train" or "retrain", and the step.
        on_count: is called in the other stages with the name of the stage, how many items are done, and of how many.

    """
    if out is not None:
        refuse_findings(out / "findings", overwrite)
    seconds: dict[str, float] = {}

    def fit(stage: str, training_set: Dataset) -> nn.Module:
        begun = time.perf_counter()
        model = train(training_set, recipe(epochs=EPOCHS, seed=seed), on_step=partial(on_step, stage))
        seconds[stage] = time.perf_counter() - begun
        return model

    clean, test = read("digits"), read("digits", split="test")
    attack = Attack.one_pixel(clean, sources=[SOURCE], target=TARGET, count=COUNT, size=SIZE, seed=seed)
    poisoned = poison(clean, attack)
    model = fit("train", poisoned)
    before = measure(model, test, attack)
    defense = ClusterImpurity(seed=seed, on_mixture=partial(on_count, "mixtures"))
    findings = scan(model, poisoned, defense, on_batch=partial(on_count, "evidence"))
    seconds["scan"] = sum(findings.provenance.seconds.values())
    after = measure(fit("retrain", poisoned.take(~findings.flagged)), test, attack)

    result = Demo(attack, before, after, findings, seconds)
    if out is not None:
        write_findings(findings, poisoned, Average(), out / "findings", overwrite=overwrite)
        write_text(out / "demo.json", json.dumps(result.summary(), indent=2) + "\n")
    return result

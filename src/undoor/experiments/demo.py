"""The whole way on the embedded data: plant, train, scan, remove, retrain."""

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


@dataclass(frozen=True, eq=False)
class Demo:
    """What the demonstration showed: the attack, the findings, and the network before and after."""

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
    """Poison the digits, 7 → 0, train on them, scan, remove what is flagged, and retrain.

    Args:
        out: writes ``out/findings/`` and ``out/demo.json`` if given.
        seed: of everything that is random.
        overwrite: earlier results in ``out``.
        on_step: told the name of the stage, train or retrain, and each training step.
        on_count: told the name of another stage, and how many of how many are done in it.

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

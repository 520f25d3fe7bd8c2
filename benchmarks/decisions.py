"""How far clean and poisoned clusters lie apart in the impurity of the poster and of the default.

Victims are trained on the digits, over five seeds; evidence of CIFAR-10 victims is read where it lies in
``../shared/data/evidence``. Writes results/decisions/results.json and the tables in README.md beside it.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from undoor.attacks import Attack, poison
from undoor.classifier import Classifier
from undoor.dataset import row_ids
from undoor.defenses.training_set import ClusterImpurity
from undoor.evidence import Evidence, Outputs, collect
from undoor.experiments.measure import measure
from undoor.findings import versions
from undoor.mixture import MixtureSettings
from undoor.readers import read
from undoor.readers.cifar import CIFAR10
from undoor.recipes import recipe
from undoor.training import train

ROOT = Path(__file__).parents[1]
EVIDENCE = ROOT.parent / "shared" / "data" / "evidence"
OUT = ROOT / "results" / "decisions"
EPOCHS, COUNT, TARGET = 10, 300, "0"
CELLS = (
    ("clean", 0.0, range(5)),
    ("single-source", 0.4, range(5)),
    ("multiple-source", 0.4, range(5)),
    ("single-source", 0.2, range(3)),
    ("multiple-source", 0.2, range(3)),
    ("single-source", 0.1, range(3)),
    ("multiple-source", 0.1, range(3)),
)
RESTARTS = (1, 10)
TEMPERATURES = (0.3, 3.0, 10.0)


def digits() -> Iterator[dict]:
    """Yield the evidence of every digits victim with its truth and the success of its attack."""
    clean, test = read("digits"), read("digits", split="test")
    for scenario, size, seeds in CELLS:
        for seed in seeds:
            data, attack = clean, None
            if size:
                sources = ["7"] if scenario == "single-source" else None
                attack = Attack.one_pixel(clean, sources=sources, target=TARGET, count=COUNT, size=size, seed=seed)
                data = poison(clean, attack)
            model = train(data, recipe(epochs=EPOCHS, seed=seed))
            yield {
                "victim": "digits",
                "scenario": scenario,
                "size": size,
                "seed": seed,
                "asr": measure(model, test, attack)["attack_success_rate"],
                "evidence": collect(Classifier(model), data),
                "poisoned": np.zeros(len(data), bool) if attack is None else data.truth.poisoned,
            }


def cifar() -> Iterator[dict]:
    """Yield the stored evidence of CIFAR-10 victims; some hold probabilities instead of logits."""
    for file in sorted(EVIDENCE.glob("cifar10-*.npz")):
        with np.load(file) as arrays:
            labels, poisoned = arrays["labels"].astype(np.int64), arrays["poisoned"]
            plain, filtered = (
                Outputs(
                    arrays[f"{prefix}features"].astype(np.float32),
                    np.log(arrays[f"{prefix}probabilities"].astype(np.float32) + 1e-8),
                )
                for prefix in ("", "filtered_")
            )
        evidence = Evidence(plain, {"average": filtered}, labels, row_ids(len(labels)), CIFAR10)
        scenario, _, size = file.stem.removeprefix("cifar10-").rpartition("-")
        yield {
            "victim": "CIFAR-10 (JPEG q75)",
            "scenario": scenario or size,
            "size": float(size) if scenario else 0.0,
            "seed": 0,
            "asr": None,
            "evidence": evidence,
            "poisoned": poisoned,
        }


def with_temperature(evidence: Evidence, factor: float) -> Evidence:
    def scaled(outputs: Outputs) -> Outputs:
        return replace(outputs, logits=factor * outputs.logits)

    filtered = {name: scaled(outputs) for name, outputs in evidence.filtered.items()}
    return replace(evidence, plain=scaled(evidence.plain), filtered=filtered)


def row(victim: dict, name: str, restarts: int) -> dict:
    """Judge a victim by one decision; a cluster is called poisoned in truth if most of its images are."""
    mixture = MixtureSettings(restarts=restarts)
    defense = (ClusterImpurity.poster if name == "poster" else ClusterImpurity)(mixture=mixture, seed=victim["seed"])
    findings = defense(victim["evidence"]).against(victim["poisoned"])
    poison_share = findings.samples.assign(poisoned=victim["poisoned"]).groupby(["label", "cluster"])["poisoned"].mean()
    clusters = findings.clusters.set_index(["class", "cluster"])
    bad = poison_share.reindex(clusters.index).to_numpy() > 0.5
    impurities = clusters["impurity"].to_numpy()
    return {
        **{key: victim[key] for key in ("victim", "scenario", "size", "seed", "asr")},
        "decision": name,
        "restarts": restarts,
        "threshold": findings.threshold,
        "clean_highest": float(impurities[~bad].max()),
        "poison_lowest": float(impurities[bad].min()) if bad.any() else None,
        "verdict": findings.verdict,
        "truth": findings.truth,
        "seconds": dict(findings.seconds),
    }


def moved(victim: dict) -> int:
    """Return how many images the default decides otherwise when the logits are multiplied by some factor."""
    defense = ClusterImpurity(seed=victim["seed"])
    flagged = defense(victim["evidence"]).flagged
    return max(int((defense(with_temperature(victim["evidence"], t)).flagged != flagged).sum()) for t in TEMPERATURES)


def table(rows: list[dict]) -> str:
    """Return one line a kind of victim, decision and number of restarts: the worst over its seeds."""

    def worst(cell: list[dict], key: str, choose) -> str:
        values = [value for r in cell if (value := r.get(key, r["truth"].get(key))) is not None]
        return f"{choose(values):.4g}" if values else "–"

    lines = [
        "| victim | attack | size | seeds | decision | restarts | ASR (lowest) | highest clean S | lowest poison S "
        "| threshold | TPR (lowest) | FPR, all classes (highest) | FPR, target class (highest) | called poisoned |",
        "|---" * 14 + "|",
    ]
    keys = ("victim", "scenario", "size", "decision", "restarts")
    for kind in dict.fromkeys(tuple(r[key] for key in keys) for r in rows):
        cell = [r for r in rows if tuple(r[key] for key in keys) == kind]
        victim, scenario, size, decision, restarts = kind
        called = sum(r["verdict"] == "poisoned" for r in cell)
        lines.append(
            f"| {victim} | {scenario} | {size or '–'} | {len(cell)} | {decision} | {restarts} "
            f"| {worst(cell, 'asr', min)} | {worst(cell, 'clean_highest', max)} | {worst(cell, 'poison_lowest', min)} "
            f"| {cell[0]['threshold']} | {worst(cell, 'tpr', min)} | {worst(cell, 'fpr_all_classes', max)} "
            f"| {worst(cell, 'fpr_target_class', max)} | {called} of {len(cell)} |"
        )
    return "\n".join(lines)


def write(rows: list[dict], moves: list[int]) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    content = {"count": COUNT, "epochs": EPOCHS, "versions": versions(), "moved_by_temperature": moves, "rows": rows}
    (OUT / "results.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    text = (
        "# The impurity of clean and of poisoned clusters\n\n"
        f"Digits: {COUNT} poisoned images, {EPOCHS} epochs. A cluster counts as poisoned if most of its images are; "
        'each line shows the worst over the seeds. "clean" on CIFAR-10 holds a few relabelled images. '
        "`python benchmarks/decisions.py` makes this file.\n\n"
        f"{table(rows)}\n\n"
        f"Logits multiplied by {', '.join(map(str, TEMPERATURES))}: {max(moves)} images at most are decided otherwise "
        f"by the default, over {len(moves)} victims.\n"
    )
    (OUT / "README.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    rows: list[dict] = []
    moves: list[int] = []
    for make, restarts in ((digits, RESTARTS), (cifar, (1,))):
        for victim in make():
            rows += [row(victim, name, n) for n in restarts for name in ("poster", "default")]
            if victim["seed"] == 0:
                moves.append(moved(victim))
            write(rows, moves)

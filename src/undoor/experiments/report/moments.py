"""Which defence helps at which moment: what it needs, what it finds, what it costs."""

from collections.abc import Callable

import pandas as pd

from undoor.experiments.cells import EXAMINED_SIZES
from undoor.experiments.examinations import REFUSED
from undoor.experiments.report.tables import MISSING, WORKING, Results, shown
from undoor.experiments.store import Result

BEFORE_TRAINING = "before training"
TRAINING_SET = {
    "CI": "the training set, a network trained on it",
    "SS": "the same",
    "AC": "the same",
    "RE": "the same, and the network's gradients",
    "random removal": "nothing",
    "perfect removal": "the truth",
}

HEADER = (
    "moment", "defence", "needs", "finds a backdoor", "right target", "calls a clean victim backdoored", "TPR", "FPR",
    "AUROC", "ASR before", "ASR after", "accuracy before", "accuracy after", "seconds",
)  # fmt: skip

EXPLAINED = f"""\
On the victims whose attack success rate (ASR) is at least {WORKING}, and on clean ones. *Finds*: in how many victims it
says that there is a backdoor. TPR and FPR: before training, of the poisoned and of all clean training images; in use,
of the triggered test images that the attack succeeds with and of clean ones, where {REFUSED:.0%} may be refused. ASR
and accuracy after: of the network trained again without what was flagged, or of the repaired network. Seconds do not
count the training of a network. The defender's clean images and those measured with are the two halves of the test
set."""


def moments(results: Results) -> tuple[list[str], list[list[str]]]:
    """Return header and lines of the table: one line a defence, those of the training set first."""
    attacked = _working(results)
    lines = [_of_training_set(results, name, attacked) for name in TRAINING_SET]
    names = dict.fromkeys(one["examination"] for one in results.examined)
    lines += [_of_network(results, name, attacked) for name in names]
    return list(HEADER), [line for line in lines if line]


def _working(results: Results) -> set[str]:
    """Return the keys of the examined victims on which the attack works."""
    of_size = results.victims[results.victims["size"].isin(EXAMINED_SIZES) & results.victims["keep_originals"]]
    return set(of_size.loc[of_size["attack_success_rate"].fillna(0.0) >= WORKING, "victim"])


def _of_training_set(results: Results, name: str, attacked: set[str]) -> list[str]:
    of_defense = results.cells[results.cells["defense"] == name]
    found = of_defense[of_defense["victim"].isin(attacked)]
    clean = of_defense[of_defense["scenario"] == "clean"]
    if found.empty:
        return []
    hits = found[found["flagged"] > 0]
    right = (hits["classes_flagged"] == hits["target"]).sum()
    line = [_count((found["flagged"] > 0).sum(), len(found)), _count(right, len(hits))]
    line += [_count((clean["flagged"] > 0).sum(), len(clean))]
    line += [shown(found[column], digits) for column, digits in (("tpr", 3), ("fpr_all_classes", 4), ("auroc", 3))]
    columns = ("attack_success_rate", "retrained_attack_success_rate", "clean_accuracy", "retrained_clean_accuracy")
    line += [shown(found[column], 3, len(found)) for column in columns] + [shown(found["seconds"], 1)]
    oracle = " **oracle**" if found["oracle"].any() else ""
    return [BEFORE_TRAINING, _named(name, name == "random removal") + oracle, TRAINING_SET[name], *line]


def _of_network(results: Results, name: str, attacked: set[str]) -> list[str]:
    every = [one for one in results.examined if one["examination"] == name]
    found = [one for one in every if one["victim"] in attacked]
    clean = [one for one in every if one["attack"] is None]
    if not found:
        return []

    def of(rows: list[Result], key: str, digits: int = 3) -> str:
        return shown(pd.Series([row.get(key) for row in rows], dtype="Float64"), digits)

    def how_often(rows: list[Result], said: Callable[[Result], bool | None]) -> str:
        told = [value for row in rows if (value := said(row)) is not None]
        return _count(sum(told), len(told))

    victims = results.victims.set_index("victim").loc[[one["victim"] for one in found]]
    repaired = "repaired_attack_success_rate" in found[0]
    line = [how_often(found, lambda one: one.get("detected")), how_often(found, lambda one: one.get("target_right"))]
    line += [how_often(clean, lambda one: one.get("detected")), of(found, "tpr"), of([*found, *clean], "fpr", 4)]
    line += [of(found, "auroc"), shown(victims["attack_success_rate"]), of(found, "repaired_attack_success_rate")]
    line += [shown(victims["clean_accuracy"]) if repaired else MISSING, of(found, "repaired_clean_accuracy")]
    first = found[0]
    return [
        first["moment"],
        _named(name, first["control_of"] is not None),
        first["needs"],
        *line,
        of(every, "seconds", 1),
    ]


def inspections(results: Results) -> tuple[list[str], list[list[str]]]:
    """Return header and lines of a table of the inspected victims, one by one."""
    rates = results.victims.drop_duplicates("victim").set_index("victim")["attack_success_rate"]
    lines = []
    for one in results.examined:
        if one["examination"] != "reverse engineering":
            continue
        rate = shown(rates[rates.index == one["victim"]])
        sources = ", ".join(one["sources"]) or MISSING
        p = [f"{one['p'][rule]:.3f}" for rule in ("A", "B")]
        lines.append([one["name"], rate, *p, one["target"] or MISSING, sources, f"{one['seconds']:.0f}"])
    return ["victim", "ASR", "p, rule A", "p, rule B", "target found", "sources found", "seconds"], lines


def _count(of_these: int, n: int) -> str:
    return f"{of_these} of {n}" if n else MISSING


def _named(name: str, control: bool) -> str:
    return f"{name} (control)" if control else name

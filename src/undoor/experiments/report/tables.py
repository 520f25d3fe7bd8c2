"""A store as tables: one row a victim, one row a cell × defence × seed, and medians over seeds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import pandas as pd

from undoor.experiments.cells import retrained_key
from undoor.experiments.examinations import EXAMINATIONS
from undoor.experiments.store import Result, Store

MISSING = "–"
WORKING = 0.9
"""The attack success rate from which on something is said of detection."""

_TEXT, _REAL, _WHOLE, _FLAG = "string", "Float64", "Int64", "boolean"
COLUMNS = {
    "suite": _TEXT, "scenario": _TEXT, "size": _REAL, "count": _WHOLE, "seed": _WHOLE, "preset": _TEXT,
    "data": _TEXT, "hardware": _TEXT, "defense": _TEXT, "oracle": _FLAG, "clean_accuracy": _REAL,
    "attack_success_rate": _REAL, "tp": _WHOLE, "fp": _WHOLE, "fn": _WHOLE, "tn": _WHOLE, "tpr": _REAL,
    "fpr_target_class": _REAL, "fpr_all_classes": _REAL, "auroc": _REAL, "retrained_clean_accuracy": _REAL,
    "retrained_attack_success_rate": _REAL, "seconds": _REAL,
}  # fmt: skip
"""Of ``cells.parquet``, in this order; nullable types, so that what is missing is null."""
MISSED = {
    "missed_not_learned": "not learned",
    "missed_poisoned_clusters": "in poisoned clusters",
    "missed_mixed_clusters": "in mixed clusters",
    "missed_clean_clusters": "in clean clusters",
    "missed_no_cluster": "in no cluster",
}
"""What the poisons are that a defence does not flag: columns, and how they are called in tables."""
EXTRAS = {
    "cell": _TEXT, "keep_originals": _FLAG, "sources": _TEXT, "target": _TEXT, "network": _TEXT, "epochs": _WHOLE,
    "setting": _TEXT, "filter": _TEXT, "threshold": _REAL, "samples": _WHOLE, "flagged": _WHOLE, "precision": _REAL,
    "classes_flagged": _TEXT, "retrain": _FLAG, "clusters": _WHOLE, "highest_clean_impurity": _REAL,
    "lowest_poisoned_impurity": _REAL, "poisons_in_poisoned_clusters": _WHOLE, "auroc_target_class": _REAL,
    **dict.fromkeys(MISSED, _WHOLE), "victim": _TEXT, "torch": _TEXT, "versions": _TEXT,
}  # fmt: skip
"""Further columns of ``cells.parquet``."""

PLACE = ["scenario", "size", "keep_originals"]
"""A cell without its seed."""


@dataclass(frozen=True, eq=False)
class Results:
    """What a store holds of one suite in one setting: results of two settings are never mixed.

    Args:
        setting: data, network and recipe in words.
        cells: one row a cell × defence × seed; columns ``COLUMNS`` and ``EXTRAS``.
        victims: one row a victim; the same columns, null where they speak of a defence.
        found: what the store holds of each row of ``cells``.
        attacked: what the store holds of each row of ``victims``.
        examined: what defences of other moments found of the victims.

    """

    setting: str
    cells: pd.DataFrame
    victims: pd.DataFrame
    found: list[Result]
    attacked: list[Result]
    examined: list[Result]


def read_results(store: Store, suite: str) -> list[Results]:
    """Return the results of a suite, one for each setting; the one with most victims first."""
    victims = store.all("victims")
    retrained = store.all("retrained")
    attacked = [{**victim, "victim": key} for key, victim in victims.items() if victim["suite"] == suite]
    found = [one for one in store.all("findings").values() if one["suite"] == suite]
    # Defences come in the order of their names, those that know too much after those that do not.
    found.sort(key=lambda one: (_position(one["cell"]), one["oracle"], one["contender"]))
    attacked.sort(key=lambda one: _position(one["cell"]))
    examined = [one for one in store.all("examined").values() if one["suite"] == suite]
    order = [examination.name for examination in EXAMINATIONS]
    examined = [one for one in examined if one["examination"] in order]
    examined.sort(key=lambda one: (order.index(one["examination"]), _position(one["cell"])))
    every = [
        Results(
            setting,
            frame([_found_row(one, victims, retrained) for one in found if setting_of(one) == setting]),
            frame([_victim_row(one) for one in attacked if setting_of(one) == setting]),
            [one for one in found if setting_of(one) == setting],
            [one for one in attacked if setting_of(one) == setting],
            [one for one in examined if setting_of(one) == setting],
        )
        for setting in sorted({setting_of(one) for one in [*found, *attacked]})
    ]
    return sorted(every, key=lambda results: -len(results.victims))


def _position(cell: Result) -> tuple[Any, ...]:
    order = ("single-source", "multiple-source", "clean")
    return order.index(cell["scenario"]), cell["size"], not cell["keep_originals"], cell["seed"]


def frame(rows: list[Result]) -> pd.DataFrame:
    """Return rows with the columns ``COLUMNS`` and ``EXTRAS`` and their types."""
    types: Any = COLUMNS | EXTRAS
    return pd.DataFrame(rows, columns=list(types)).astype(types)


def setting_of(result: Result) -> str:
    """Return data, network and recipe in words; results agree in it if they differ in cell and seed alone."""
    recipe = result["recipe"]
    return (
        f"{data_of(result)}, {result['train_images']:,} training and {result['test_images']:,} test images; "
        f"{result['network']}; preset {recipe['name']}: {recipe['epochs']} epochs, batch {recipe['batch_size']}, "
        f"{recipe['optimizer']}, learning rate {recipe['learning_rate']} {recipe['schedule']}, "
        f"weight decay {recipe['weight_decay']}, {'' if recipe['augment'] else 'no '}augmentation, "
        f"{recipe['normalisation']} normalisation, {recipe['precision']}"
    )


def data_of(result: Result) -> str:
    """Return the name of the data; of a path from the root, its last part."""
    name: str = result["data"]
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(name).is_absolute():
            name = kind(name).name
    return name


def _victim_row(result: Result) -> Result:
    cell, attack, recipe = result["cell"], result["attack"], result["recipe"]
    return {
        "suite": result["suite"],
        **{name: cell[name] for name in ("scenario", "size", "seed", "keep_originals")},
        "cell": result["name"],
        "victim": result["victim"],
        "count": 0 if attack is None else attack["count"],
        "sources": None if attack is None else ", ".join(attack["sources"]),
        "target": None if attack is None else attack["target"],
        "preset": recipe["name"],
        "epochs": recipe["epochs"],
        "data": data_of(result),
        "network": result["network"],
        "setting": setting_of(result),
        "hardware": result["hardware"],
        "torch": result["versions"]["torch"],
        "versions": ", ".join(f"{name} {version}" for name, version in sorted(result["versions"].items())),
        "clean_accuracy": result.get("clean_accuracy"),
        "attack_success_rate": result.get("attack_success_rate"),
        "seconds": result["seconds"],
    }


def _found_row(result: Result, victims: dict[str, Result], retrained: dict[str, Result]) -> Result:
    victim = victims.get(result["victim"], {})
    after = retrained.get(retrained_key(result), {}) if result["flagged"] else victim
    return {
        **_victim_row(result),
        **result["truth"],
        **margin(result),
        **{name: result[name] for name in ("filter", "threshold", "samples", "flagged", "oracle", "retrain")},
        "auroc_target_class": result["auroc_target_class"],
        **{f"missed_{name}": count for name, count in result.get("missed", {}).items()},
        "defense": result["contender"],
        "classes_flagged": ", ".join(result["classes_flagged"]),
        "clean_accuracy": victim.get("clean_accuracy"),
        "attack_success_rate": victim.get("attack_success_rate"),
        "retrained_clean_accuracy": after.get("clean_accuracy"),
        "retrained_attack_success_rate": after.get("attack_success_rate"),
    }


def is_poisoned(cluster: Result) -> bool:
    """Whether more than half of a cluster is poison."""
    return bool(cluster["poisoned"] > cluster["size"] / 2)


def margin(result: Result) -> Result:
    """Return how far poisoned clusters stand from clean ones in impurity; None where there are none."""
    clean = [one["impurity"] for one in result["clusters"] if not is_poisoned(one)]
    poisoned = [one for one in result["clusters"] if is_poisoned(one)]
    return {
        "clusters": len(result["clusters"]) or None,
        "highest_clean_impurity": max(clean, default=None),
        "lowest_poisoned_impurity": min((one["impurity"] for one in poisoned), default=None),
        "poisons_in_poisoned_clusters": sum(one["poisoned"] for one in poisoned) if result["clusters"] else None,
    }


def places(table: pd.DataFrame, scenario: str, *, keep_originals: bool = True) -> Iterator[tuple[float, pd.DataFrame]]:
    """Yield the rows of each size of a scenario, the small sizes first."""
    chosen = table[(table["scenario"] == scenario) & (table["keep_originals"] == keep_originals)]
    for size in sorted(chosen["size"].unique()):
        yield float(size), chosen[chosen["size"] == size]


def works(victims: pd.DataFrame) -> bool:
    """Whether the attack works on every one of these victims, so that detection means something."""
    rates = victims["attack_success_rate"]
    return bool(len(rates)) and bool((rates.fillna(0.0) >= WORKING).all())


def median(values: "pd.Series[Any]") -> float | None:
    """Return the median of what is known, or None."""
    known = values.dropna()
    return None if known.empty else float(known.median())


def shown(values: "pd.Series[Any]", digits: int = 3, of: int | None = None) -> str:
    """Return median (lowest–highest) as text, and of how many seeds if not of all ``of``; – if nothing is known."""
    known = values.dropna()
    wanted = len(values) if of is None else of
    if known.empty:
        return MISSING
    text = f"{known.median():.{digits}f}"
    if known.min() < known.max():
        text += f" ({known.min():.{digits}f}–{known.max():.{digits}f})"
    return text if len(known) >= wanted else f"{text} [{len(known)} of {wanted} seeds]"


def difference(values: "pd.Series[Any]", published: float | None, digits: int = 3) -> str:
    """Return the median minus what was published, with its sign; – if either is unknown."""
    ours = median(values)
    if ours is None or published is None:
        return MISSING
    # 0.0 is added to turn a rounded −0 into 0.
    return f"{round(ours - published, digits) + 0.0:+.{digits}f}".replace("-", "−")


def markdown(header: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """Return a table in Markdown."""
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in [header, ["---"] * len(header), *lines])

"""The results of a suite as tables: one row a victim, and one row a cell, contender and seed."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

import pandas as pd

from undoor.experiments.cell_results import retrained_key
from undoor.experiments.packed import Result
from undoor.experiments.store import Store
from undoor.experiments.suites import ALL_CONTENDERS

SCENARIOS = ("single-source", "multiple-source", "clean")

WORKING = 0.9
"""An attack works if its success rate is at least this. Of other attacks the tables say nothing about detection."""

_TEXT, _REAL, _WHOLE, _FLAG = "string", "Float64", "Int64", "boolean"
COLUMNS = {
    "suite": _TEXT, "scenario": _TEXT, "size": _REAL, "count": _WHOLE, "seed": _WHOLE, "preset": _TEXT,
    "data": _TEXT, "hardware": _TEXT, "defense": _TEXT, "oracle": _FLAG, "clean_accuracy": _REAL,
    "attack_success_rate": _REAL, "tp": _WHOLE, "fp": _WHOLE, "fn": _WHOLE, "tn": _WHOLE, "tpr": _REAL,
    "fpr_target_class": _REAL, "fpr_all_classes": _REAL, "auroc": _REAL, "retrained_clean_accuracy": _REAL,
    "retrained_attack_success_rate": _REAL, "seconds": _REAL,
}  # fmt: skip
"""The first columns of ``cells.parquet`` and their types, in which a missing value is null."""

MISSED = {
    "missed_not_learned": "not learned",
    "missed_poisoned_clusters": "in poisoned clusters",
    "missed_mixed_clusters": "in mixed clusters",
    "missed_clean_clusters": "in clean clusters",
    "missed_no_cluster": "in no cluster",
}
"""Why poisoned images were not flagged: columns, and their headings in tables."""

EXTRAS = {
    "cell": _TEXT, "keep_originals": _FLAG, "sources": _TEXT, "target": _TEXT, "network": _TEXT, "epochs": _WHOLE,
    "setting": _TEXT, "filter": _TEXT, "threshold": _REAL, "samples": _WHOLE, "flagged": _WHOLE, "precision": _REAL,
    "classes_flagged": _TEXT, "retrain": _FLAG, "clusters": _WHOLE, "highest_clean_impurity": _REAL,
    "lowest_poisoned_impurity": _REAL, "poisons_in_poisoned_clusters": _WHOLE, "auroc_target_class": _REAL,
    **dict.fromkeys(MISSED, _WHOLE), "victim": _TEXT, "torch": _TEXT, "versions": _TEXT, "moment": _TEXT,
    "needs": _TEXT, "control_of": _TEXT, "method": _TEXT, "method_version": _WHOLE, "detected": _FLAG,
    "repaired_clean_accuracy": _REAL, "repaired_attack_success_rate": _REAL,
}  # fmt: skip
"""The further columns of ``cells.parquet``."""


@dataclass(frozen=True, eq=False)
class Results:
    """The results of one suite in one setting. Results of different settings are never mixed.

    All tables have the columns ``COLUMNS`` and ``EXTRAS``.

    Args:
        setting: data, network and recipe in words.
        cells: one row a cell, contender before training, and seed.
        examined: one row a cell, contender of another moment, and seed.
        victims: one row a victim; the columns about contenders are null.
        cell_results: the stored result of each row of ``cells``.
        examined_results: the stored result of each row of ``examined``.
        victim_results: the stored result of each row of ``victims``.

    """

    setting: str
    cells: pd.DataFrame
    examined: pd.DataFrame
    victims: pd.DataFrame
    cell_results: list[Result]
    examined_results: list[Result]
    victim_results: list[Result]


class Group(NamedTuple):
    """The rows of cells that differ only in their seed."""

    name: str
    size: float
    victims: pd.DataFrame
    cells: pd.DataFrame


def read_results(store: Store, suite: str) -> list[Results]:
    """Return the results of a suite, one for each setting; the one with most victims comes first."""
    all_victims, retrained = store.all("victims"), store.all("retrained")
    cells, examined = (
        [result for result in store.all(kind).values() if result["suite"] == suite]
        for kind in ("findings", "examinations")
    )
    victims = [{**result, "victim": key} for key, result in all_victims.items() if result["suite"] == suite]
    # Contenders come in the order of their names, oracles last; those of other moments in the order of the suite.
    names = [contender.name for contender in ALL_CONTENDERS]
    cells.sort(key=lambda result: (_position(result), result["oracle"], result["contender"]))
    examined.sort(key=lambda result: (_rank(names, result["contender"]), _position(result)))
    victims.sort(key=_position)

    def of_setting(setting: str) -> Results:
        chosen = [[result for result in part if setting_of(result) == setting] for part in (cells, examined, victims)]
        of_cells, of_examined = (
            frame([_contender_row(result, all_victims, retrained) for result in part]) for part in chosen[:2]
        )
        return Results(setting, of_cells, of_examined, frame([_common_row(result) for result in chosen[2]]), *chosen)

    settings = sorted({setting_of(result) for result in [*cells, *examined, *victims]})
    return sorted(map(of_setting, settings), key=lambda results: -len(results.victims))


def _position(result: Result) -> tuple[Any, ...]:
    cell = result["cell"]
    return SCENARIOS.index(cell["scenario"]), cell["size"], not cell["keep_originals"], cell["seed"]


def _rank(names: list[str], name: str) -> int:
    return names.index(name) if name in names else len(names)


def frame(rows: list[Result]) -> pd.DataFrame:
    """Return rows as a table with the columns ``COLUMNS`` and ``EXTRAS`` and their types."""
    types: Any = COLUMNS | EXTRAS
    return pd.DataFrame(rows, columns=list(types)).astype(types)


def setting_of(result: Result) -> str:
    """Return data, network and recipe in words. They are the same for results that differ only in cell and seed."""
    recipe = result["recipe"]
    return (
        f"{data_of(result)}, {result['train_images']:,} training and {result['test_images']:,} test images; "
        f"{result['network']}; preset {recipe['name']}: {recipe['epochs']} epochs, batch {recipe['batch_size']}, "
        f"{recipe['optimizer']}, learning rate {recipe['learning_rate']} {recipe['schedule']}, "
        f"weight decay {recipe['weight_decay']}, {'' if recipe['augment'] else 'no '}augmentation, "
        f"{recipe['normalisation']} normalisation, {recipe['precision']}"
    )


def data_of(result: Result) -> str:
    """Return the name of the data. Of an absolute path only the last part is shown."""
    name: str = result["data"]
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(name).is_absolute():
            name = kind(name).name
    return name


def _common_row(result: Result) -> Result:
    """Return the columns that victims and contenders share."""
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


def _contender_row(result: Result, victims: Mapping[str, Result], retrained: Mapping[str, Result]) -> Result:
    victim = victims.get(result["victim"], {})
    after: Result = {}
    if result["moment"] == "before training":
        after = retrained.get(retrained_key(result), {}) if result["flagged"] else victim
    named = result["classes_flagged"]
    return {
        **_common_row(result),
        **(result["truth"] or {}),
        **impurity_margin(result["clusters"] or []),
        **{name: result[name] for name in ("filter", "threshold", "samples", "flagged", "oracle", "retrain", "moment")},
        **{name: result[name] for name in ("needs", "control_of", "method_version", "detected", "auroc_target_class")},
        **{f"missed_{name}": count for name, count in (result["missed"] or {}).items()},
        "method": result["defense"],
        "defense": result["contender"],
        "classes_flagged": None if named is None else ", ".join(named),
        "clean_accuracy": victim.get("clean_accuracy"),
        "attack_success_rate": victim.get("attack_success_rate"),
        "retrained_clean_accuracy": after.get("clean_accuracy"),
        "retrained_attack_success_rate": after.get("attack_success_rate"),
        **{name: value for name, value in (result["repair"] or {}).items() if name in EXTRAS},
    }


def is_poisoned(cluster: Result) -> bool:
    """Whether more than half of the images of a cluster are poisoned."""
    return bool(cluster["poisoned"] > cluster["size"] / 2)


def impurity_margin(clusters: list[Result]) -> Result:
    """Return how far the impurities of poisoned clusters lie above those of clean ones; None without such clusters."""
    clean = [cluster["impurity"] for cluster in clusters if not is_poisoned(cluster)]
    poisoned = [cluster for cluster in clusters if is_poisoned(cluster)]
    return {
        "clusters": len(clusters) or None,
        "highest_clean_impurity": max(clean, default=None),
        "lowest_poisoned_impurity": min((cluster["impurity"] for cluster in poisoned), default=None),
        "poisons_in_poisoned_clusters": sum(cluster["poisoned"] for cluster in poisoned) if clusters else None,
    }


def groups(results: Results, *scenarios: str, keep_originals: bool | None = None) -> Iterator[Group]:
    """Yield the groups of these scenarios, by default of all, small triggers first.

    ``keep_originals`` chooses among the cells whose originals stay and those whose originals were replaced.
    """
    for scenario in scenarios or SCENARIOS:
        for keep in (True, False) if keep_originals is None else (keep_originals,):
            victims, cells = (
                table[(table["scenario"] == scenario) & (table["keep_originals"] == keep)]
                for table in (results.victims, results.cells)
            )
            for size in sorted({*victims["size"], *cells["size"]}):
                name = group_name({"scenario": scenario, "size": size, "keep_originals": keep})
                yield Group(name, float(size), victims[victims["size"] == size], cells[cells["size"] == size])


def group_name(cell: Mapping[str, Any]) -> str:
    """Return the name of a cell without its seed, such as ``multiple-source 0.25``."""
    if cell["scenario"] == "clean":
        return "clean"
    return f"{cell['scenario']} {cell['size']:.2f}{'' if cell['keep_originals'] else ', originals replaced'}"


def attack_works(victims: pd.DataFrame) -> "pd.Series[bool]":
    """Return for every victim whether the attack works on it."""
    return victims["attack_success_rate"].fillna(0.0) >= WORKING


def works(victims: pd.DataFrame) -> bool:
    """Whether there are victims and the attack works on all of them."""
    return bool(len(victims)) and bool(attack_works(victims).all())

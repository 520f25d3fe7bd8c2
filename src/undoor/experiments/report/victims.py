"""The tables about victims: triggers of other sizes, clean training sets, and the files of the networks."""

from collections.abc import Iterable

import pandas as pd

from undoor.experiments.report.published import CLEAN_ACCURACY
from undoor.experiments.report.results import Results
from undoor.experiments.report.tables import difference, how_many, named, shown, success, table, text
from undoor.experiments.store import Store

NETWORKS_EXPLAINED = """\
The networks of Table 2 and of the clean cell, with the first seed. When the command that made these results is given
again with this folder, it uses these networks and does not train them. `undoor scan` takes any of them as
`--model`."""


def sizes_at_test_time(results: Results) -> str:
    """Return the attack success rate of triggers of other sizes than in training."""
    measured = {
        result["name"]: result["attack_success_by_size"]
        for result in results.victim_results
        if result["attack_success_by_size"]
    }
    sizes = sorted({size for rates in measured.values() for size in rates})
    lines = [[text(name), *(shown(pd.Series([rates.get(size)])) for size in sizes)] for name, rates in measured.items()]
    header = ["trained with", *(f"ASR at {size}" for size in sizes)]
    return table(header, lines, results.victims[results.victims["cell"].isin(measured)])


def clean_sets(results: Results) -> str:
    """Return what every contender flags where nothing is poisoned."""
    cells, lines = results.cells[results.cells["scenario"] == "clean"], []
    for defense in cells["defense"].unique():
        rows = cells[cells["defense"] == defense]
        classes = sorted({name for joined in rows["classes_flagged"] for name in joined.split(", ") if name})
        line = [named(defense, bool(rows["oracle"].any())), how_many((rows["flagged"] > 0).sum(), len(rows))]
        line += [text(", ".join(classes)) or "none", shown(rows["highest_clean_impurity"]), shown(rows["threshold"])]
        line += [shown(rows["fp"], 0), shown(rows["fpr_all_classes"], 4), shown(rows["clean_accuracy"], 4)]
        lines.append([*line, shown(rows["retrained_clean_accuracy"], 4)])
    header = ["defense", "called poisoned", "classes flagged", "highest impurity", "threshold", "false alarms"]
    return table([*header, "FPR, all classes", "accuracy before", "accuracy after"], lines, cells)


def published_accuracy(results: Results) -> str:
    """Return the clean accuracy of the clean victims beside the published one, as a sentence."""
    accuracy = results.victims.loc[results.victims["scenario"] == "clean", "clean_accuracy"]
    return (
        f"Clean accuracy of the networks trained on the clean set: {shown(accuracy, 4)}; published: {CLEAN_ACCURACY}; "
        f"difference: {difference(accuracy, CLEAN_ACCURACY, 4)}."
    )


def kept_networks(results: Results) -> list[str]:
    """Return the keys of the networks that are kept beside the tables: those of Table 2, and the clean one.

    They are those of the first seed whose originals stay.
    """
    victims = results.victims[results.victims["keep_originals"] & (results.victims["scenario"] != "single-source")]
    return sorted(set(victims.loc[victims["seed"] == victims["seed"].min(), "victim"]))


def networks(store: Store, results: Results, keys: Iterable[str]) -> str:
    """Return where the kept networks lie."""
    lines = []
    for key, rows in results.victims[results.victims["victim"].isin(keys)].groupby("victim", sort=False):
        if (store.root / "victims" / f"{key}.safetensors").exists():
            link = f"[{key}](victims/{key}.safetensors)"
            lines.append([text(rows["cell"].iloc[0]), link, success(rows), shown(rows["clean_accuracy"], 4)])
    return table(["cell", "file", "ASR", "clean accuracy"], lines)

"""What helps at which moment: what each contender needs, what it finds, and what it costs."""

import pandas as pd

from undoor.experiments.cells import EXAMINED_SIZES
from undoor.experiments.on_network import REFUSED
from undoor.experiments.report.results import WORKING, Results, attack_works
from undoor.experiments.report.tables import MISSING, how_many, shown, table, text
from undoor.experiments.suites import ALL_CONTENDERS

HEADER = (
    "moment", "defense", "needs", "finds a backdoor", "right target", "calls a clean victim backdoored", "TPR", "FPR",
    "AUROC", "ASR before", "ASR after", "accuracy before", "accuracy after", "seconds",
)  # fmt: skip

EXPLAINED = f"""\
The victims are the clean ones and those on which the attack success rate (ASR) is at least {WORKING}. *Finds a
backdoor*: in how many attacked victims the defense says that there is one. Before training, TPR and FPR are shares of
the poisoned and of all clean training images. In use, they are shares of the triggered test images with which the
attack succeeds, and of the clean ones, of which {REFUSED:.0%} may be refused. ASR and accuracy after are those of the
network that is trained again without what was flagged, or of the repaired network. Seconds do not include the training
of a network. One half of the test images is the defender's; the other half measures."""

INSPECTION_HEADER = ("victim", "ASR", "p, rule A", "p, rule B", "target found", "sources found", "seconds")


def moments(results: Results) -> tuple[list[list[str]], pd.DataFrame]:
    """Return the lines of the table, one a contender, and the rows that they rest on.

    Of the contenders before training, those are shown after which the network is trained again.
    """
    rows = pd.concat([results.cells[results.cells["retrain"]], results.examined])
    rows = rows[rows["keep_originals"] & (rows["scenario"].eq("clean") | rows["size"].isin(EXAMINED_SIZES))]
    rows = rows[rows["scenario"].eq("clean") | attack_works(rows)]
    order = [contender.name for contender in ALL_CONTENDERS]
    names = sorted(rows["defense"].unique(), key=lambda name: order.index(name) if name in order else len(order))
    lines = [_line(rows[rows["defense"] == name]) for name in names]
    return [line for line in lines if line], rows


def _line(rows: pd.DataFrame) -> list[str]:
    attacked, clean = (rows[(rows["scenario"] == "clean") == is_clean] for is_clean in (False, True))
    if attacked.empty:
        return []
    first = attacked.iloc[0]
    detected = attacked[attacked["detected"].fillna(value=False)]
    flagging = attacked if first["moment"] == "before training" else rows
    after = [
        attacked[f"retrained_{name}"].combine_first(attacked[f"repaired_{name}"])
        for name in ("attack_success_rate", "clean_accuracy")
    ]
    changes_network = first["moment"] == "before training" or after[1].notna().any()
    control = " (control)" if pd.notna(first["control_of"]) else ""
    return [
        first["moment"],
        text(first["defense"]) + control + (" **oracle**" if first["oracle"] else ""),
        text(first["needs"]),
        how_many(len(detected), attacked["detected"].notna().sum()),
        how_many((detected["classes_flagged"] == detected["target"]).sum(), len(detected)),
        how_many(clean["detected"].sum(), clean["detected"].notna().sum()),
        shown(attacked["tpr"]),
        shown(flagging["fpr_all_classes"], 4),
        shown(attacked["auroc"]),
        shown(attacked["attack_success_rate"]),
        shown(after[0]),
        shown(attacked["clean_accuracy"]) if changes_network else MISSING,
        shown(after[1]),
        shown(rows["seconds"], 1),
    ]


def moments_table(results: Results) -> str:
    """Return the table of the moments."""
    lines, rows = moments(results)
    return table(HEADER, lines, rows)


def inspections(results: Results) -> list[list[str]]:
    """Return the lines of a table of the victims that reverse engineering inspected."""
    victims = results.victims.drop_duplicates("victim").set_index("victim")["attack_success_rate"]
    lines = []
    for result in results.examined_results:
        if result["contender"] == "reverse engineering":
            p = [f"{result['inspection']['p'][rule]:.3f}" for rule in ("A", "B")]
            names = [
                ", ".join(part) or MISSING for part in (result["classes_flagged"], result["inspection"]["sources"])
            ]
            rate = shown(victims[victims.index == result["victim"]])
            lines.append([result["name"], rate, *p, *names, f"{result['seconds']:.0f}"])
    return lines


def inspections_table(results: Results) -> str:
    """Return the table of the inspected victims."""
    rows = results.examined[results.examined["defense"] == "reverse engineering"]
    lines = [[text(part) for part in line] for line in inspections(results)]
    return table(INSPECTION_HEADER, lines, rows)

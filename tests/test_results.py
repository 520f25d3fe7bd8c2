"""Tables and figures of a store that holds what was planted in it."""

import base64
import json
import re

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from undoor.experiments.cells import Cell, retrained_key, slug
from undoor.experiments.report import published
from undoor.experiments.report.readme import text, write_report
from undoor.experiments.report.tables import COLUMNS, difference, read_results, shown
from undoor.experiments.store import Store, pack
from undoor.safe.images import encode_png

COLUMNS_OF_THE_CONTRACT = [
    "suite", "scenario", "size", "count", "seed", "preset", "data", "hardware", "defense", "oracle",
    "clean_accuracy", "attack_success_rate", "tp", "fp", "fn", "tn", "tpr", "fpr_target_class",
    "fpr_all_classes", "auroc", "retrained_clean_accuracy", "retrained_attack_success_rate", "seconds",
]  # fmt: skip
RECIPE = {
    "name": "fast", "epochs": 6, "batch_size": 128, "optimizer": "sgd", "learning_rate": 0.2, "schedule": "one-cycle",
    "weight_decay": 0.0005, "augment": False, "normalisation": "channel", "precision": "bf16",
}  # fmt: skip
ORACLES = ("perfect removal", "SS, target class", "SS, 1.5 ε of target class", "AC, smaller cluster of target class")
CLEAN, POISONS = 1000, 100


def describe(cell, suite, data):
    clean = cell.scenario == "clean"
    trigger = {"row": 3, "column": 4, "size": cell.size}
    return {
        "cell": {
            "scenario": cell.scenario, "size": cell.size, "seed": cell.seed, "keep_originals": cell.keep_originals,
            "ablations": cell.ablations,
        },
        "name": cell.name, "suite": suite, "data": data, "train_images": CLEAN, "test_images": 200,
        "attack": None if clean else {"count": POISONS, "sources": ["7"], "target": "0", "trigger": trigger},
        "recipe": {**RECIPE, "seed": cell.seed}, "network": "small-cnn", "hardware": "a machine",
        "versions": {"torch": "2.0", "undoor": "0.1"}, "platform": "Linux",
    }  # fmt: skip


def picture(value):
    image = np.full((1, 8, 8), 90, np.uint8)
    image[0, 3, 4] = value
    return base64.b64encode(encode_png(image)).decode()


def add_victim(store, cell, *, suite="paper", data="CIFAR-10", asr=0.95, accuracy=0.9, by_size=None):
    clean = cell.scenario == "clean"
    store.write(
        "victims",
        f"v-{cell.name}",
        {
            **describe(cell, suite, data),
            "clean_accuracy": accuracy,
            "attack_success_rate": None if clean else asr,
            "attack_success_by_size": by_size or {},
            "pictures": [] if clean else [picture(90), picture(200)],
            "seconds": 5.0,
        },
    )


def add_found(store, cell, contender, tp=0, fp=0, *, suite="paper", data="CIFAR-10", after=None, impurity=3.0):
    """Add findings of a set of which the last hundred images are poisoned, a tenth of the rest of their class."""
    poisons = 0 if cell.scenario == "clean" else POISONS
    flagged = np.zeros(CLEAN + poisons, bool)
    flagged[CLEAN : CLEAN + tp] = True
    flagged[:fp] = True
    clusters = [{"class": 0, "class_name": "0", "cluster": 0, "size": 100, "poisoned": 0, "impurity": 0.02}]
    if poisons:
        clusters.append({"class": 0, "class_name": "0", "cluster": 1, "size": 99, "poisoned": 97, "impurity": impurity})
    done = store.write(
        "findings",
        f"v-{cell.name}-{slug(contender)}",
        {
            **describe(cell, suite, data),
            "contender": contender, "oracle": contender in ORACLES, "retrain": True, "victim": f"v-{cell.name}",
            "filter": "average:2", "flagged": int(flagged.sum()), "samples": len(flagged),
            "threshold": 0.5, "classes_flagged": ["0"] if flagged.any() else [], "mask": pack(flagged),
            "clusters": clusters if contender.startswith("CI") else [],
            "roc": [[0.0, 0.0], [0.001, tp / poisons], [0.1, 1.0], [1.0, 1.0]] if poisons else [],
            "seconds": 1.0, "auroc_target_class": 0.98 if poisons else None,
            "missed": {
                "not_learned": 1, "poisoned_clusters": 0, "mixed_clusters": poisons - tp - 1, "clean_clusters": 0,
                "no_cluster": 0,
            },
            "truth": {
                "tp": tp, "fp": fp, "fn": poisons - tp, "tn": CLEAN - fp, "tpr": tp / poisons if poisons else None,
                "fpr_target_class": min(fp, 100) / 100 if poisons else None, "fpr_all_classes": fp / CLEAN,
                "precision": tp / (tp + fp) if tp + fp else None, "auroc": 0.99 if poisons else None,
            },
        },
    )  # fmt: skip
    if after is not None:
        result = {**describe(cell, suite, data), "attack_success_rate": after, "clean_accuracy": 0.91, "seconds": 4.0}
        store.write("retrained", retrained_key(done), result)


def rich_store(root, seeds=(0, 1, 2), sizes=(0.15, 0.25)):
    """Fill a store with a grid of cells; the attack of size 0.15 does not work."""
    store = Store(root)
    for seed in seeds:
        add_victim(store, Cell("clean", seed=seed))
        add_found(store, Cell("clean", seed=seed), "CI")
        for scenario in ("single-source", "multiple-source"):
            for size in sizes:
                cell = Cell(scenario, size, seed)
                add_victim(store, cell, asr=0.5 if size == 0.15 else 0.95, by_size={"0.25": 0.9} if not seed else None)
                add_found(store, cell, "CI", 90 + 4 * seed, seed, after=0.01)
                add_found(store, cell, "CI, poster", 90, 0)
                add_found(store, cell, "SS", 40, 450, after=0.6 + 0.1 * seed)
                add_found(store, cell, "SS, target class", 45, 50, after=0.5)
                add_found(store, cell, "AC, smaller cluster of target class", 70, 10)
                add_found(store, cell, "random removal", 9, 81, after=0.94)
                add_found(store, cell, "perfect removal", 100, 0, after=0.0)
    add_found(store, Cell("multiple-source", 0.25, 0), "CI, not conditioned", 80, 3)
    return store


def section(readme, heading):
    return re.split(rf"^#+ {heading}.*$", readme, flags=re.MULTILINE)[1].split("\n#")[0]


def rows(part):
    return [
        [cell.strip(" *") for cell in line.strip("|").split(" | ")] for line in part.splitlines() if line[:1] == "|"
    ]


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    store = rich_store(tmp_path_factory.mktemp("rich"))
    (store.root / "notes.md").write_text("## Notes\n\nBy *hand*: <b>as it is</b>.\n")
    write_report(store, "paper", ["clean-s0", "single-source-0.40-s0"], dpi=40)
    return store.root


@pytest.fixture(scope="module")
def readme(reported):
    return (reported / "README.md").read_text()


def test_cells_have_the_columns_of_the_contract_and_null_where_nothing_is_known(reported):
    cells = pd.read_parquet(reported / "cells.parquet")
    assert list(cells.columns[: len(COLUMNS)]) == COLUMNS_OF_THE_CONTRACT
    assert len(cells) == 3 * (1 + 2 * 2 * 7) + 1
    one = cells[(cells["defense"] == "CI") & (cells["cell"] == "single-source-0.25-s1")].iloc[0]
    assert (one["tp"], one["fp"], one["fn"], one["tn"], one["seed"]) == (94, 1, 6, 999, 1)
    assert one["attack_success_rate"] == 0.95
    assert one["retrained_attack_success_rate"] == 0.01
    assert one["highest_clean_impurity"] == 0.02
    assert one["lowest_poisoned_impurity"] == 3.0
    assert one["poisons_in_poisoned_clusters"] == 97
    clean = cells[cells["scenario"] == "clean"]
    assert clean["tpr"].isna().all()
    assert clean["attack_success_rate"].isna().all()
    types = pq.read_schema(reported / "cells.parquet")
    assert [str(types.field(name).type) for name in ("size", "count", "oracle", "auroc")] == [
        "double", "int64", "bool", "double",
    ]  # fmt: skip


def test_nothing_flagged_is_retrained_by_not_training(reported):
    cells = pd.read_parquet(reported / "cells.parquet")
    clean = cells[cells["scenario"] == "clean"]
    assert (clean["retrained_clean_accuracy"] == clean["clean_accuracy"]).all()


def test_median_and_range_over_seeds():
    assert shown(pd.Series([0.90, 0.98, 0.94])) == "0.940 (0.900–0.980)"
    assert shown(pd.Series([0.9])) == shown(pd.Series([0.9, 0.9])) == "0.900"
    assert shown(pd.Series([0.9, None]), of=2) == "0.900 [1 of 2 seeds]"
    assert shown(pd.Series([None], dtype="Float64")) == "–"


def test_difference_is_ours_minus_published():
    assert difference(pd.Series([0.90, 0.98, 0.94]), 0.991) == "−0.051"
    assert difference(pd.Series([0.9914]), 0.991) == "+0.000"
    assert difference(pd.Series([0.99]), None) == "–"
    assert difference(pd.Series([], dtype=float), 0.99) == "–"


def test_table_2_compares_like_with_like(readme):
    table = {(row[0], row[2]): row for row in rows(section(readme, "Table 2"))}
    ours = table["0.25", "CI"]
    assert ours[3:] == [
        "0.940 (0.900–0.980)", "0.0100 (0.0000–0.0200)", "0.0010 (0.0000–0.0020)",
        "0.991", "−0.051", "0.001 (all classes)", "+0.000",
    ]  # fmt: skip
    oracle = table["0.25", "SS, target class **oracle"]
    assert oracle[6:] == ["0.496", "−0.046", "0.500 (target class)", "+0.000"]
    assert table["0.25", "SS"][6:] == ["–"] * 4
    assert table["0.40", "CI"][3:] == ["–", "–", "–", "0.984", "–", "0.001 (all classes)", "–"]
    assert {size for size, _ in table if size[:1] == "0"} == {f"{size:.2f}" for size in published.TABLE_2}


def test_cells_whose_attack_does_not_work_are_marked(readme):
    lines = section(readme, "Table 2").splitlines()
    weak = [line for line in lines if line.startswith("| *0.15* |")]
    assert weak
    assert all("*0.500 †*" in line for line in weak)
    assert not any("†" in line for line in lines if line.startswith("| 0.25 |"))


def test_oracle_settings_are_marked_everywhere(readme):
    for line in readme.splitlines():
        if line.startswith("|"):
            for name in ORACLES:
                if re.search(rf"\| \*?{re.escape(name)}", line):
                    assert "**oracle**" in line, line


def test_controls_stand_in_every_cell_and_missing_cells_are_told(readme):
    parts = re.findall(r"^#### .*$", readme, flags=re.MULTILINE)
    assert len(parts) == 4
    assert readme.count("| random removal |") + readme.count("| *random removal* |") == 4
    assert "1 of the suite's 2 cells have a victim. Missing: single-source-0.40-s0." in readme
    assert ["0.40", "–", "CI", "–", "–", "–"] in rows(section(readme, "Table 1"))


def test_ablations_clean_sets_and_margins(readme):
    variants = {row[2]: row[4] for row in rows(section(readme, "Ablations"))[2:]}
    assert variants == {"CI": "0.900", "CI, not conditioned": "0.800", "CI, poster": "0.900"}  # of seed 0 alone
    clean = {row[0]: row for row in rows(section(readme, "Clean training sets"))}
    assert clean["CI"][1:3] == ["0 of 3", "none"]
    margins = {(row[0], row[2]): row for row in rows(section(readme, "How wide the margin"))}
    assert [value.split(" ")[0] for value in margins["multiple-source 0.25", "CI"][3:6]] == ["0.020", "0.500", "3.000"]
    assert ["multiple-source-0.25-s0", "0.900"] in rows(section(readme, "Size of the trigger at test time"))


def test_notes_are_included_as_they_are(readme):
    assert readme.endswith("## Notes\n\nBy *hand*: <b>as it is</b>.\n")


def test_figures_are_there_and_linked(reported, readme):
    names = re.findall(r"\]\((figures/[^)]+)\)", readme)
    assert len(names) == 8
    for name in names:
        assert (reported / name).stat().st_size > 1000
        assert (reported / name).with_suffix(".png").read_bytes()[:4] == b"\x89PNG"


def test_the_same_store_makes_the_same_bytes(reported):
    first = {path.name: path.read_bytes() for path in reported.rglob("*") if path.is_file()}
    write_report(Store(reported), "paper", ["clean-s0", "single-source-0.40-s0"], dpi=40)
    second = {path.name: path.read_bytes() for path in reported.rglob("*") if path.is_file()}
    assert first == second


def test_no_path_of_this_machine_is_written(tmp_path):
    store = Store(tmp_path)
    add_victim(store, Cell("clean"), data="/home/somebody/cifar10 (12345678)")
    add_found(store, Cell("clean"), "CI", data="/home/somebody/cifar10 (12345678)")
    write_report(store, "paper", dpi=40)
    for path in (tmp_path / "README.md", tmp_path / "cells.parquet"):
        content = path.read_bytes()
        assert b"somebody" not in content
        assert str(tmp_path).encode() not in content
    assert "cifar10 (12345678)" in (tmp_path / "README.md").read_text()


def test_names_stay_text(tmp_path):
    store = Store(tmp_path)
    name = "CI, <script>|*x*_y_ `$z$`"
    add_victim(store, Cell("clean"))
    add_found(store, Cell("clean"), name)
    write_report(store, "paper", dpi=40)
    content = (tmp_path / "README.md").read_text()
    assert r"CI, &lt;script&gt;\|\*x\*\_y\_ \`\$z\$\`" in content
    assert "<script>" not in content
    assert text("a\nb") == "a b"


def test_an_empty_and_a_partial_store_are_reported(tmp_path):
    write_report(Store(tmp_path), "paper", ["clean-s0"], dpi=40)
    assert "0 of the suite's 1 cells have a victim" in (tmp_path / "README.md").read_text()
    assert list(pd.read_parquet(tmp_path / "cells.parquet").columns[:5]) == COLUMNS_OF_THE_CONTRACT[:5]
    add_found(Store(tmp_path), Cell("multiple-source", 0.25), "CI", 90)
    write_report(Store(tmp_path), "paper", dpi=40)
    row = pd.read_parquet(tmp_path / "cells.parquet").iloc[0]
    assert row["tpr"] == 0.9
    assert pd.isna(row["attack_success_rate"])
    assert pd.isna(row["retrained_attack_success_rate"])


def test_settings_and_suites_are_not_mixed(tmp_path):
    store = rich_store(tmp_path, seeds=(0,), sizes=(0.25,))
    add_victim(store, Cell("clean", seed=7), data="digits")
    add_victim(store, Cell("clean", seed=8), suite="quick")
    first, second = read_results(store, "paper")
    assert first.setting.startswith("CIFAR-10")
    assert second.setting.startswith("digits")
    assert set(second.victims["seed"]) == {7}
    (quick,) = read_results(store, "quick")
    assert list(quick.victims["seed"]) == [8]


def test_only_the_paper_suite_is_compared_with_the_paper(tmp_path):
    store = Store(tmp_path)
    add_victim(store, Cell("multiple-source", 0.25), suite="quick", data="digits")
    add_found(store, Cell("multiple-source", 0.25), "CI", 90, suite="quick", data="digits")
    write_report(store, "quick", dpi=40)
    content = (tmp_path / "README.md").read_text()
    assert "difference" not in content
    assert json.dumps(published.TABLE_2[0.25]["CI"].tpr) not in content


def test_networks_that_are_there_are_listed(tmp_path):
    store = Store(tmp_path)
    for seed in (0, 1):
        add_victim(store, Cell("clean", seed=seed))
    (store.root / "victims" / "v-clean-s1.safetensors").write_bytes(b"")
    write_report(store, "paper", dpi=20)
    readme = (tmp_path / "README.md").read_text()
    assert "(victims/v-clean-s1.safetensors)" in readme
    assert "(victims/v-clean-s0.safetensors)" not in readme

"""Tables and figures of a store whose results are written by hand."""

import json
import re
import shutil

import pandas as pd
import pyarrow.parquet as pq
import pytest

from helpers.made_results import ORACLES, add_findings, add_victim, rich_store
from undoor.experiments.cells import Cell
from undoor.experiments.report import published
from undoor.experiments.report.readme import write_report
from undoor.experiments.report.results import COLUMNS, read_results
from undoor.experiments.report.tables import difference, shown, text
from undoor.experiments.store import Store

COLUMNS_OF_THE_CONTRACT = [
    "suite", "scenario", "size", "count", "seed", "preset", "data", "hardware", "defense", "oracle",
    "clean_accuracy", "attack_success_rate", "tp", "fp", "fn", "tn", "tpr", "fpr_target_class",
    "fpr_all_classes", "auroc", "retrained_clean_accuracy", "retrained_attack_success_rate", "seconds",
]  # fmt: skip


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


def test_cells_have_the_columns_of_the_contract_and_null_for_missing_values(reported):
    cells = pd.read_parquet(reported / "cells.parquet")
    assert list(cells.columns[: len(COLUMNS)]) == COLUMNS_OF_THE_CONTRACT
    assert len(cells) == 3 * (1 + 2 * 2 * 7) + 1
    row = cells[(cells["defense"] == "CI") & (cells["cell"] == "single-source-0.25-s1")].iloc[0]
    assert (row["tp"], row["fp"], row["fn"], row["tn"], row["seed"]) == (94, 1, 6, 999, 1)
    assert row["attack_success_rate"] == 0.95
    assert row["retrained_attack_success_rate"] == 0.01
    assert row["highest_clean_impurity"] == 0.02
    assert row["lowest_poisoned_impurity"] == 3.0
    assert row["poisons_in_poisoned_clusters"] == 97
    clean = cells[cells["scenario"] == "clean"]
    assert clean["tpr"].isna().all()
    assert clean["attack_success_rate"].isna().all()
    types = pq.read_schema(reported / "cells.parquet")
    assert [str(types.field(name).type) for name in ("size", "count", "oracle", "auroc")] == [
        "double", "int64", "bool", "double",
    ]  # fmt: skip


def test_where_nothing_is_flagged_the_retrained_network_is_the_victim(reported):
    cells = pd.read_parquet(reported / "cells.parquet")
    clean = cells[cells["scenario"] == "clean"]
    assert (clean["retrained_clean_accuracy"] == clean["clean_accuracy"]).all()


def test_median_and_range_over_seeds():
    assert shown(pd.Series([0.90, 0.98, 0.94])) == "0.940 (0.900–0.980)"
    assert shown(pd.Series([0.9])) == shown(pd.Series([0.9, 0.9])) == "0.900"
    assert shown(pd.Series([0.9, None]), seeds=2) == "0.900 [1 of 2 seeds]"
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


def test_controls_are_in_every_cell_and_missing_cells_are_named(readme):
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
    add_findings(store, Cell("clean"), "CI", data="/home/somebody/cifar10 (12345678)")
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
    add_findings(store, Cell("clean"), name)
    write_report(store, "paper", dpi=40)
    content = (tmp_path / "README.md").read_text()
    assert r"CI, &lt;script&gt;\|\*x\*\_y\_ \`\$z\$\`" in content
    assert "<script>" not in content
    assert text("a\nb") == "a b"


def test_an_empty_and_a_partial_store_are_reported(tmp_path):
    write_report(Store(tmp_path), "paper", ["clean-s0"], dpi=40)
    assert "0 of the suite's 1 cells have a victim" in (tmp_path / "README.md").read_text()
    assert list(pd.read_parquet(tmp_path / "cells.parquet").columns[:5]) == COLUMNS_OF_THE_CONTRACT[:5]
    add_findings(Store(tmp_path), Cell("multiple-source", 0.25), "CI", 90)
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
    add_findings(store, Cell("multiple-source", 0.25), "CI", 90, suite="quick", data="digits")
    write_report(store, "quick", dpi=40)
    content = (tmp_path / "README.md").read_text()
    assert "difference" not in content
    assert json.dumps(published.TABLE_2[0.25]["CI"].tpr) not in content


def test_the_networks_of_table_2_and_of_the_clean_cell_are_packed_and_listed(tmp_path):
    store = rich_store(tmp_path, seeds=(0, 1), sizes=(0.25,))
    for key in store.all("victims"):
        store.path("victims", key, ".safetensors").write_bytes(key.encode())
    packed = tmp_path / "victims"
    packed.mkdir()
    (packed / "v-clean-s1.safetensors").write_bytes(b"of an older layout")
    store.path("victims", "v-clean-s1", ".safetensors").unlink()
    (packed / "somebody-elses.safetensors").write_bytes(b"")
    write_report(store, "paper", dpi=20)
    names = ("v-clean-s0", "v-multiple-source-0.25-s0", "somebody-elses")
    assert {path.stem for path in packed.iterdir()} == set(names)
    assert all((packed / f"{name}.safetensors").read_bytes() == name.encode() for name in names[:2])
    assert store.path("victims", "v-clean-s1", ".safetensors").read_bytes() == b"of an older layout"
    listed = {row[0]: row[1] for row in rows(section((tmp_path / "README.md").read_text(), "The networks"))[2:]}
    assert listed == {
        "clean-s0": "[v-clean-s0](victims/v-clean-s0.safetensors)",
        "multiple-source-0.25-s0": "[v-multiple-source-0.25-s0](victims/v-multiple-source-0.25-s0.safetensors)",
    }


def test_a_clone_without_working_files_makes_the_same_report(reported, tmp_path):
    clone = tmp_path / "clone"
    shutil.copytree(reported, clone, ignore=shutil.ignore_patterns("work", "figures", "report.html", "README.md"))
    (clone / "cells.parquet").unlink()
    write_report(Store(clone), "paper", ["clean-s0", "single-source-0.40-s0"], dpi=40)
    for name in ("README.md", "cells.parquet", "findings.parquet", "victims.parquet", "retrained.parquet"):
        assert (clone / name).read_bytes() == (reported / name).read_bytes(), name
    assert not (clone / "work").exists()


def test_captions_say_what_a_table_rests_on(readme):
    caption = re.search(r"<sub>(.*)</sub>", section(readme, "Table 2"))[1]
    for part in (
        "CIFAR-10, 1,000 training", "preset fast: 6 epochs, batch 128, sgd, learning rate 0.2 one-cycle",
        "seeds 0, 1, 2", "100 poisoned images beside 1,000 clean images", "a machine",
        r"method versions: a\_method 1", "torch 2.0",
    ):  # fmt: skip
        assert part in caption

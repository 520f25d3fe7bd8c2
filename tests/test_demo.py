"""The whole way on the embedded data, as a user runs it first."""

import json
from itertools import groupby

import pandas as pd


def test_demo_plants_finds_removes_and_repairs(demonstration):
    result, folder, stages = demonstration
    assert [name for name, _ in groupby(stages)] == ["train", "evidence", "mixtures", "retrain"]
    assert result.before["attack_success_rate"] >= 0.9
    assert result.before["clean_accuracy"] >= 0.97
    assert result.findings.truth["tpr"] >= 0.95
    assert result.findings.truth["fpr_all_classes"] <= 0.005
    assert result.after["attack_success_rate"] <= 0.05
    assert abs(result.after["clean_accuracy"] - result.before["clean_accuracy"]) <= 0.01

    written = json.loads((folder / "demo.json").read_text())
    assert written["before"] == result.before
    assert written["after"] == result.after
    assert json.loads((folder / "findings" / "summary.json").read_text())["verdict"] == "poisoned"
    samples = pd.read_parquet(folder / "findings" / "samples.parquet")
    assert samples["flagged"].sum() == result.findings.flagged.sum()

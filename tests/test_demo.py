"""The whole way on the embedded data, as a user runs it first."""

import json
from itertools import groupby

import pandas as pd

from undoor.experiments.demo import demo


def test_demo_plants_finds_removes_and_repairs(tmp_path):
    stages = []

    def show(stage, *_):
        stages.append(stage)

    result = demo(tmp_path / "demo", seed=1, on_step=show, on_count=show)
    assert [name for name, _ in groupby(stages)] == ["train", "evidence", "mixtures", "retrain"]
    assert result.before["attack_success_rate"] >= 0.9
    assert result.before["clean_accuracy"] >= 0.97
    assert result.findings.truth["tpr"] >= 0.95
    assert result.findings.truth["fpr_all_classes"] <= 0.005
    assert result.after["attack_success_rate"] <= 0.05
    assert abs(result.after["clean_accuracy"] - result.before["clean_accuracy"]) <= 0.01

    written = json.loads((tmp_path / "demo" / "demo.json").read_text())
    assert written["before"] == result.before
    assert written["after"] == result.after
    assert json.loads((tmp_path / "demo" / "findings" / "summary.json").read_text())["verdict"] == "poisoned"
    samples = pd.read_parquet(tmp_path / "demo" / "findings" / "samples.parquet")
    assert samples["flagged"].sum() == result.findings.flagged.sum()

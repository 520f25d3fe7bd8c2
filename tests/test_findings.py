import json
import os

import numpy as np
import pandas as pd
import pytest

import undoor
from conftest import QUICKLY
from undoor.defenses.training_set import ClusterImpurity
from undoor.errors import UndoorError
from undoor.findings.findings import refuse_findings
from undoor.findings.metrics import accuracy, attack_success_rate, detection
from undoor.findings.reading import read_findings, read_ids

FILES = {"samples.parquet", "clusters.parquet", "curves.parquet", "summary.json", "keep.txt", "drop.txt", "report.html"}


@pytest.fixture
def findings(planted):
    return ClusterImpurity(**QUICKLY)(planted.evidence).against(planted.poisoned)


def test_the_files_are_those_of_the_contract(tmp_path, findings):
    out = tmp_path / "new" / "findings"
    findings.write(out, "<p>report</p>")
    assert {path.name for path in out.iterdir()} == FILES
    pd.testing.assert_frame_equal(pd.read_parquet(out / "samples.parquet"), findings.samples)
    assert len(pd.read_parquet(out / "clusters.parquet")) == len(findings.clusters)
    kept, dropped = ((out / f"{name}.txt").read_text().splitlines() for name in ("keep", "drop"))
    assert set(kept) | set(dropped) == set(findings.samples["id"])
    assert set(dropped) == set(findings.samples["id"][findings.flagged])
    assert read_ids(out) == (findings.samples["id"].tolist(), kept)


def test_the_summary_is_that_of_the_contract(findings, planted):
    summary = json.loads(json.dumps(findings.after_stages({"evidence": 1.0}).summary(), allow_nan=False))
    assert set(summary) == {
        "schema_version", "defense", "method_version", "verdict", "classes_flagged", "samples", "flagged", "threshold",
        "settings", "seed", "versions", "seconds", "truth", "image_filter", "class_names", "learned", "doubts",
    }  # fmt: skip
    assert summary["verdict"] == "poisoned"
    assert summary["classes_flagged"] == ["class1"]
    assert summary["samples"] == len(planted.poisoned)
    assert list(summary["seconds"]) == ["evidence", "mixtures", "impurity"]
    assert set(summary["truth"]) == {
        "tp", "fp", "fn", "tn", "tpr", "fpr_target_class", "fpr_all_classes", "precision", "auroc",
    }  # fmt: skip
    assert summary["versions"]["undoor"] == undoor.__version__


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 1}, r"were written by another version of undoor \(schema version 1, not 2\); scan again"),
        ({"schema_version": None}, r"were written by another version of undoor .*; scan again"),
        ({"settings": "fast"}, r"the summary's settings is of the wrong type, str; scan again"),
        ({"seed": True}, r"the summary's seed is of the wrong type, bool; scan again"),
    ],
)
def test_a_summary_of_another_layout_is_refused_in_one_line(tmp_path, findings, change, message):
    findings.write(tmp_path, "")
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UndoorError, match=f"the findings in .* cannot be read: .*{message}$") as raised:
        read_findings(tmp_path)
    assert "\n" not in str(raised.value)


def test_earlier_findings_are_only_replaced_on_request(tmp_path, findings):
    findings.write(tmp_path, "first")
    with pytest.raises(UndoorError, match=r"already holds findings.*--overwrite"):
        findings.write(tmp_path, "second")
    assert (tmp_path / "report.html").read_text() == "first"
    findings.write(tmp_path, "second", overwrite=True)
    assert (tmp_path / "report.html").read_text() == "second"
    with pytest.raises(UndoorError, match="is a file"):
        refuse_findings(tmp_path / "report.html", overwrite=False)


@pytest.mark.parametrize("earlier", [False, True])
def test_a_full_disk_loses_nothing(tmp_path, findings, monkeypatch, earlier):
    out = tmp_path / "findings"
    if earlier:
        findings.write(out, "first")
    before = {path.name: path.read_bytes() for path in out.iterdir()} if earlier else None

    def full(*args, **kwargs):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(UndoorError, match=r"cannot write .*findings: No space left on device; free space"):
        findings.write(out, "second", overwrite=True)
    assert out.exists() == earlier
    if earlier:
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_folder_without_whole_findings_is_refused(tmp_path):
    with pytest.raises(UndoorError, match="holds no whole findings"):
        read_ids(tmp_path)


def test_detection_counts_as_by_hand():
    flagged = np.array([1, 1, 0, 1, 0, 0, 0, 1], dtype=bool)
    poisoned = np.array([1, 1, 1, 0, 0, 0, 0, 0], dtype=bool)
    labels = np.array([1, 1, 1, 1, 1, 0, 0, 0])
    counts = detection(flagged, flagged.astype(float), labels, poisoned)
    assert (counts["tp"], counts["fp"], counts["fn"], counts["tn"]) == (2, 2, 1, 3)
    assert counts["tpr"] == pytest.approx(2 / 3)
    assert counts["fpr_target_class"] == pytest.approx(1 / 2)  # one of the two clean images labelled 1
    assert counts["fpr_all_classes"] == pytest.approx(2 / 5)
    assert counts["precision"] == pytest.approx(2 / 4)
    assert counts["auroc"] == pytest.approx((2 * 3 + 1 * 3 / 2 + 2 * 2 / 2) / 15)


def test_rates_without_a_denominator_are_none():
    nothing = np.zeros(4, dtype=bool)
    counts = detection(nothing, np.zeros(4), np.arange(4), nothing)
    assert counts["tpr"] is None
    assert counts["fpr_target_class"] is None
    assert counts["precision"] is None
    assert counts["auroc"] is None
    assert counts["fpr_all_classes"] == 0


def test_accuracy_and_attack_success_rate_are_shares():
    assert accuracy(np.array([0, 1, 2, 2]), np.array([0, 1, 1, 2])) == 0.75
    assert attack_success_rate(np.array([2, 2, 1, 0, 2]), 2) == 0.6

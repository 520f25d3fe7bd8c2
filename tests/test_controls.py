import io

import numpy as np
import pytest
from rich.console import Console

import undoor
from conftest import make_dataset, permuted
from undoor.cli import terminal
from undoor.defenses.training_set import PerfectRemoval, RandomRemoval, SpectralSignatures
from undoor.errors import UndoorError
from undoor.filters import Average
from undoor.findings.tables import CLUSTER_COLUMNS, SAMPLE_COLUMNS
from undoor.report.findings import render_findings


def test_random_removal_flags_its_count_and_is_no_better_than_chance(planted):
    n = len(planted.evidence.labels)
    rates = []
    for seed in range(20):
        findings = RandomRemoval(60, seed)(planted.evidence)
        assert findings.flagged.sum() == 60
        assert findings.flagged.tolist() == (findings.samples["score"] > findings.threshold).tolist()
        rates.append(findings.against(planted.poisoned).truth["auroc"])
    assert np.mean(rates) == pytest.approx(0.5, abs=0.05)
    assert np.array_equal(
        RandomRemoval(60, 3)(planted.evidence).flagged, RandomRemoval(60, 3)(planted.evidence).flagged
    )
    assert not RandomRemoval(0)(planted.evidence).flagged.any()
    assert RandomRemoval(n)(planted.evidence).flagged.all()
    order = np.random.default_rng(0).permutation(n)
    shuffled = RandomRemoval(60)(permuted(planted.evidence, order))
    assert np.array_equal(RandomRemoval(60)(planted.evidence).flagged[order], shuffled.flagged)
    with pytest.raises(UndoorError, match="count from 0 to"):
        RandomRemoval(n + 1)(planted.evidence)


def test_perfect_removal_flags_the_truth(planted):
    findings = PerfectRemoval(planted.poisoned)(planted.evidence)
    counts = findings.against(planted.poisoned).truth
    assert (counts["tpr"], counts["fpr_all_classes"], counts["auroc"]) == (1, 0, 1)
    assert findings.flagged.tolist() == (findings.samples["score"] > findings.threshold).tolist()
    with pytest.raises(UndoorError, match=r"truth has shape \(3,\)"):
        PerfectRemoval(planted.poisoned[:3])(planted.evidence)


@pytest.mark.parametrize(
    "method",
    [SpectralSignatures(), RandomRemoval(5), lambda e: PerfectRemoval(e.labels == 1)(e)],
    ids=["spectral signatures", "random", "perfect"],
)
def test_findings_without_clusters_are_shown_and_written(tmp_path, planted, monkeypatch, method):
    findings = method(planted.evidence).against(planted.poisoned)
    assert tuple(findings.samples.columns) == SAMPLE_COLUMNS
    assert tuple(findings.clusters.columns) == CLUSTER_COLUMNS
    assert findings.clusters.empty
    shown = io.StringIO()
    monkeypatch.setattr(terminal, "out", Console(file=shown))
    terminal.print_findings(findings)
    assert f"poisoned: {findings.flagged.sum()} of" in shown.getvalue()
    assert "clusters" not in shown.getvalue()
    n = len(planted.poisoned)
    images = np.resize(make_dataset(channels=3).images, (n, 3, 12, 12))
    dataset = undoor.Dataset(images, planted.evidence.labels, planted.evidence.class_names, planted.evidence.ids)
    report = render_findings(findings, dataset, Average())
    assert f"An image is flagged if its score exceeds the threshold of {findings.threshold:.3f}" in report
    assert "All clusters" not in report
    findings.write(tmp_path / "findings", report)
    assert (tmp_path / "findings" / "summary.json").is_file()

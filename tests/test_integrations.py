"""Findings where users already work, each with the real thing."""

import json
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydantic import BaseModel

import undoor
from conftest import QUICKLY, make_dataset, plant
from test_readers import write_folder
from undoor.attacks import Attack, poison
from undoor.defenses.training_set import ActivationClustering, ClusterImpurity, SpectralSignatures, random_filter
from undoor.errors import UndoorError, UndoorNotice
from undoor.findings import Findings
from undoor.integrations import from_dataset, issues, sarif_log, to_dataset
from undoor.integrations.sarif import LOCATIONS, address


@pytest.fixture(scope="module")
def planted():
    return plant()


@pytest.fixture(scope="module")
def findings(planted):
    return ClusterImpurity(**QUICKLY)(planted.evidence)


def renamed(findings, ids):
    """Return the findings with other ids."""
    return Findings(**{**findings.__dict__, "samples": findings.samples.assign(id=ids)})


DEFENSES = {
    "cluster impurity": ClusterImpurity(**QUICKLY),
    "plain": ClusterImpurity(decision="plain", **QUICKLY),
    "activation clustering": ActivationClustering("relative-size"),
    "exre": ActivationClustering("exre", retrain=lambda kept: np.where(kept, 1, 0)),
    "spectral signatures": SpectralSignatures(),
    "random filter": lambda evidence: random_filter(evidence, 20),
}


@pytest.mark.parametrize("defense", DEFENSES.values(), ids=list(DEFENSES))
def test_a_low_backdoor_score_is_a_severe_one(planted, defense):
    findings = defense(planted.evidence)
    frame = issues(findings)
    assert frame["is_backdoor_issue"].dtype == bool
    assert np.array_equal(frame["is_backdoor_issue"], findings.flagged)
    assert frame["backdoor_score"].between(0, 1).all()
    order = np.argsort(findings.samples["score"], kind="stable")
    assert (np.diff(frame["backdoor_score"].to_numpy()[order]) <= 0).all()


def test_the_score_of_cluster_impurity_is_the_share_of_decisions_kept(planted, findings):
    frame = issues(ClusterImpurity(decision="plain", **QUICKLY)(planted.evidence))
    evidence = planted.evidence
    kept = evidence.filtered["planted"].decisions == evidence.labels
    assert frame["backdoor_score"][planted.poisoned].unique() == pytest.approx(kept[planted.poisoned].mean())
    frame = issues(findings)
    assert frame["id"].tolist() == evidence.ids.tolist()
    assert (frame["given_label"] == [evidence.class_names[k] for k in evidence.labels]).all()
    assert (frame["predicted_label"] == [evidence.class_names[k] for k in evidence.plain.decisions]).all()
    assert frame["backdoor_score"][planted.poisoned].max() < frame["backdoor_score"][~planted.poisoned].min()


def datalab(labels):
    from cleanlab import Datalab

    from undoor.integrations import datalab as _  # noqa: F401 - registers the issue

    return Datalab({"label": labels}, label_name="label", verbosity=0)


@pytest.mark.parametrize("names", [False, True])
def test_datalab_finds_and_reports_backdoors(planted, findings, capsys, names):
    labels = planted.evidence.labels
    lab = datalab([f"class{k}" for k in labels] if names else labels)
    lab.find_issues(features=planted.evidence.plain.features, issue_types={"backdoor": {"findings": findings}})
    found = lab.get_issues("backdoor")
    assert np.array_equal(found["is_backdoor_issue"], findings.flagged)
    assert np.array_equal(found["backdoor_score"], issues(findings)["backdoor_score"])
    summary = lab.get_issue_summary("backdoor").iloc[0]
    assert summary["num_issues"] == findings.flagged.sum()
    assert summary["score"] == pytest.approx(issues(findings)["backdoor_score"].mean())
    info = lab.get_info("backdoor")
    assert info["verdict"] == "poisoned"
    assert info["classes_flagged"] == ["class1"]
    capsys.readouterr()
    for verbosity in range(4):
        lab.report(verbosity=verbosity)
        told = capsys.readouterr().out
        assert "backdoor issues" in told
        assert f"Number of examples with this issue: {findings.flagged.sum()}" in told


@pytest.mark.filterwarnings("ignore:The behavior of DataFrame concatenation:FutureWarning")  # cleanlab's, pandas 2
def test_datalab_with_an_image_set_and_other_issues(findings, planted, capsys):
    from cleanlab import Datalab

    from undoor.integrations import datalab as _  # noqa: F401 - registers the issue

    evidence = planted.evidence
    features = datasets.Features({"y": datasets.ClassLabel(names=list(evidence.class_names))})
    lab = Datalab(datasets.Dataset.from_dict({"y": evidence.labels}, features), label_name="y", verbosity=0)
    lab.find_issues(
        features=evidence.plain.features,
        issue_types={"outlier": {}, "class_imbalance": {}, "backdoor": {"findings": findings}},
    )
    assert set(lab.get_issue_summary()["issue_type"]) == {"outlier", "class_imbalance", "backdoor"}


@pytest.mark.parametrize(
    ("labels", "given", "told"),
    [
        (slice(None), False, "a backdoor needs findings"),
        (slice(10), True, "Datalab's data of 10"),
        (slice(None, None, -1), True, "labels of the findings are not Datalab's"),
    ],
)
def test_datalab_is_told_what_does_not_fit(planted, findings, capsys, labels, given, told):
    lab = datalab(planted.evidence.labels[labels])
    lab.find_issues(issue_types={"backdoor": {"findings": findings} if given else {}})
    assert told in capsys.readouterr().out


def extras(model, path="log"):
    """Yield what stands in a SARIF log although the models of SARIF 2.1.0 do not know it."""
    if isinstance(model, BaseModel):
        yield from (f"{path}.{name}" for name in (model.model_extra or {}))
        for name in type(model).model_fields:
            yield from extras(getattr(model, name), f"{path}.{name}")
    elif isinstance(model, list):
        for one in model:
            yield from extras(one, path)


def valid(log):
    """Return the log as the models of SARIF 2.1.0 read it, after asking whether they know all of it."""
    from sarif_pydantic import Sarif

    read = Sarif.model_validate(json.loads(json.dumps(log)))
    assert list(extras(read)) == []
    assert json.loads(read.model_dump_json(by_alias=True, exclude_unset=True)) == log
    return read


def test_sarif_of_findings_on_files(findings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ids = [f"class {label}/ä#%{row:03d}.png" for row, label in enumerate(findings.samples["label"])]
    for name in ids:
        (tmp_path / "my data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "my data" / name).touch()
    found = renamed(findings, ids)
    log = sarif_log(found, "my data")
    run = valid(log).runs[0]
    (result,) = run.results
    assert result.rule_id == run.tool.driver.rules[0].id == "undoor/cluster_impurity"
    assert result.level == "error"
    flagged = [name for name, gone in zip(ids, found.flagged, strict=True) if gone]
    uris = [place.physical_location.artifact_location.uri for place in result.locations]
    assert uris[0].startswith("my%20data/class%201/%C3%A4%23%25")
    from urllib.parse import unquote

    assert [unquote(uri) for uri in uris] == [f"my data/{name}" for name in sorted(flagged)][:LOCATIONS]
    cluster = found.clusters[found.clusters["flagged"]].iloc[0]
    properties = log["runs"][0]["results"][0]["properties"]
    assert properties["impurity"] == cluster["impurity"]
    assert properties["threshold"] == found.threshold
    assert properties["images"] == cluster["size"] == len(flagged)
    assert f"{len(flagged)} of {(found.samples['label'] == 1).sum()} images labelled class1" in result.message.text
    # Scanned once more with another seed, the result is the same one to a code-scanning page.
    again = sarif_log(Findings(**{**found.__dict__, "seed": 3}), "my data")["runs"][0]["results"][0]
    assert again["partialFingerprints"] == log["runs"][0]["results"][0]["partialFingerprints"]


def test_sarif_names_so_many_files_and_says_how_many_there_are(planted, tmp_path):
    found = SpectralSignatures()(planted.evidence)
    log = sarif_log(found, "digits")
    results = valid(log).runs[0].results
    assert len(results) == len(found.classes_flagged) == 4
    assert len({json.dumps(one["partialFingerprints"]) for one in log["runs"][0]["results"]}) == 4
    of_class_1 = log["runs"][0]["results"][1]["properties"]
    assert of_class_1["images"] == (found.flagged & (found.samples["label"] == 1)).sum() > LOCATIONS
    assert len(of_class_1["rows"]) == LOCATIONS
    assert f"The first {LOCATIONS} are named here" in results[1].message.text


def test_sarif_of_a_clean_set_has_no_result(planted):
    found = ClusterImpurity(threshold=50.0, **QUICKLY)(planted.evidence)
    assert valid(sarif_log(found, "digits")).runs[0].results == []


def test_addresses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert address("a b/c.parquet") == "a%20b/c.parquet"
    assert address(str(tmp_path / "x" / "ü.npz")) == "x/%C3%BC.npz"
    assert address("/elsewhere/é") == "file:///elsewhere/%C3%A9"
    assert address("hub:owner/set") == "hub:owner/set"


def test_to_dataset_and_back():
    dataset = make_dataset(channels=3)
    poisoned = poison(dataset, Attack.one_pixel(dataset, target="class1", count=5, size=0.5))
    made = to_dataset(poisoned)
    assert made.features["label"].names == ["class0", "class1", "class2"]
    assert isinstance(made.features["img"], datasets.Image)
    assert made["id"][:] == poisoned.ids.tolist()
    assert np.array_equal(np.asarray(made[3]["img"]).transpose(2, 0, 1), poisoned.images[3])
    back = from_dataset(made)
    assert np.array_equal(back.images, poisoned.images)
    assert np.array_equal(back.labels, poisoned.labels)
    assert back.class_names == poisoned.class_names
    assert np.array_equal(back.truth.poisoned, poisoned.truth.poisoned)
    # A selection of rows keeps what was selected.
    some = from_dataset(made.select([7, 2, 60]))
    assert np.array_equal(some.images, poisoned.images[[7, 2, 60]])


def test_to_dataset_with_findings(planted, findings):
    n = len(planted.evidence.labels)
    data = make_dataset(n_per_class=n // 3)
    matching = renamed(findings, data.ids)
    made = to_dataset(data, matching)
    kept = made.filter(lambda row: not row["is_backdoor_issue"])
    assert len(kept) == n - findings.flagged.sum()
    assert made["backdoor_score"][:] == issues(findings)["backdoor_score"].tolist()
    with pytest.raises(UndoorError, match="of other samples"):
        to_dataset(data.take(np.arange(5)), matching)


def test_from_a_data_set_of_files_with_columns_of_other_names(tmp_path, dataset):
    write_folder(dataset, tmp_path)
    files = sorted(str(file) for file in tmp_path.rglob("*.png"))
    features = datasets.Features({"photo": datasets.Image(), "kind": datasets.ClassLabel(names=["a", "b", "c"])})
    kinds = [int(Path(file).parent.name[-1]) for file in files]
    made = datasets.Dataset.from_dict({"photo": files, "kind": kinds}, features)
    read = from_dataset(made, image_column="photo", label_column="kind")
    assert read.class_names == ("a", "b", "c")
    assert np.array_equal(read.images, undoor.read(tmp_path).images)
    with pytest.raises(UndoorError, match="no label column label or labels"):
        from_dataset(made)
    drawn = datasets.Dataset.from_dict({"photo": [Image.new("L", (8, 9))] * 2, "label": [0, 1]})
    assert from_dataset(drawn).images.shape == (2, 1, 9, 8)
    with pytest.warns(UndoorNotice, match="resized"):
        from_dataset(datasets.Dataset.from_dict({"i": [Image.new("L", (8, n)) for n in (8, 8, 9)], "label": [0, 1, 0]}))
    assert from_dataset(made, image_column="photo", label_column="kind", image_size=5).images.shape[2:] == (5, 5)


@pytest.mark.parametrize("given", [datasets.DatasetDict(), pd.DataFrame(), None])
def test_from_what_is_no_single_data_set(given):
    with pytest.raises(UndoorError, match=r"give a datasets\.Dataset, one split"):
        from_dataset(given)

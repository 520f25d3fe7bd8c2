"""Findings in other tools, each tested with the real tool."""

import json
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import undoor
from conftest import QUICKLY, make_dataset, plant
from helpers.image_folders import write_folder
from helpers.parsed_html import ParsedHTML
from undoor.attacks import Attack, poison
from undoor.defenses.training_set import ActivationClustering, ClusterImpurity, RandomRemoval, SpectralSignatures
from undoor.errors import UndoorError, UndoorNotice
from undoor.integrations import from_dataset, issues, sarif_log, to_dataset
from undoor.integrations.sarif import LOCATIONS, address
from undoor.safe.images import encode_png


@pytest.fixture(scope="module")
def planted():
    return plant()


@pytest.fixture(scope="module")
def findings(planted):
    return ClusterImpurity(**QUICKLY)(planted.evidence)


def renamed(findings, ids):
    """Return the findings with other ids."""
    return replace(findings, samples=findings.samples.assign(id=ids))


DEFENSES = {
    "cluster impurity": ClusterImpurity(**QUICKLY),
    "plain": ClusterImpurity(decision="plain", **QUICKLY),
    "activation clustering": ActivationClustering("relative-size"),
    "exre": ActivationClustering("exre", retrain=lambda kept: np.where(kept, 1, 0)),
    "spectral signatures": SpectralSignatures(),
    "random removal": RandomRemoval(20),
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
        out = capsys.readouterr().out
        assert "backdoor issues" in out
        assert f"Number of examples with this issue: {findings.flagged.sum()}" in out


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
    ("labels", "given", "message"),
    [
        (slice(None), False, "a backdoor needs findings"),
        (slice(10), True, "Datalab's data of 10"),
        (slice(None, None, -1), True, "labels of the findings are not Datalab's"),
    ],
)
def test_datalab_prints_what_does_not_fit(planted, findings, capsys, labels, given, message):
    lab = datalab(planted.evidence.labels[labels])
    lab.find_issues(issue_types={"backdoor": {"findings": findings} if given else {}})
    assert message in capsys.readouterr().out


@pytest.fixture(scope="module")
def valid():
    """Return a function that validates a log by SARIF's own schema and returns its only run."""
    from jsonschema import Draft4Validator

    schema = json.loads((Path(__file__).parent / "data" / "sarif-2.1.0-rtm.5.json").read_text(encoding="utf-8"))
    validator = Draft4Validator(schema, format_checker=Draft4Validator.FORMAT_CHECKER)

    def check(log):
        read = json.loads(json.dumps(log, allow_nan=False))
        assert [f"{error.json_path}: {error.message}" for error in validator.iter_errors(read)] == []
        (run,) = read["runs"]
        return run

    return check


def test_the_schema_refuses_a_wrong_log(valid, findings):
    log = sarif_log(findings, "digits")
    log["runs"][0]["results"][0]["level"] = "grave"
    with pytest.raises(AssertionError, match="'grave' is not one of"):
        valid(log)


def test_sarif_names_the_flagged_files(findings, valid, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ids = [f"class {label}/ä#%{row:03d}.png" for row, label in enumerate(findings.samples["label"])]
    for name in ids:
        (tmp_path / "my data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "my data" / name).touch()
    found = renamed(findings, ids)
    log = sarif_log(found, "my data")
    run = valid(log)
    (result,) = run["results"]
    assert result["ruleId"] == run["tool"]["driver"]["rules"][0]["id"] == "undoor/cluster_impurity"
    assert result["level"] == "error"
    flagged = [name for name, is_flagged in zip(ids, found.flagged, strict=True) if is_flagged]
    uris = [location["physicalLocation"]["artifactLocation"]["uri"] for location in result["locations"]]
    assert uris[0].startswith("my%20data/class%201/%C3%A4%23%25")
    from urllib.parse import unquote

    assert [unquote(uri) for uri in uris] == [f"my data/{name}" for name in sorted(flagged)][:LOCATIONS]
    cluster = found.clusters[found.clusters["flagged"]].iloc[0]
    properties = result["properties"]
    assert properties["impurity"] == cluster["impurity"]
    assert properties["threshold"] == found.threshold
    assert properties["images"] == cluster["size"] == len(flagged)
    assert (
        f"{len(flagged)} of {(found.samples['label'] == 1).sum()} images labelled class1" in result["message"]["text"]
    )
    # Code scanning recognises the result of a scan with another seed as the same.
    again = sarif_log(replace(found, provenance=replace(found.provenance, seed=3)), "my data")["runs"][0]["results"][0]
    assert again["partialFingerprints"] == result["partialFingerprints"]


def test_sarif_names_the_first_files_and_the_number_of_all(planted, valid):
    found = SpectralSignatures()(planted.evidence)
    log = sarif_log(found, "digits")
    results = valid(log)["results"]
    assert len(results) == len(found.classes_flagged) == 4
    assert len({json.dumps(result["partialFingerprints"]) for result in results}) == 4
    of_class_1 = results[1]["properties"]
    assert of_class_1["images"] == (found.flagged & (found.samples["label"] == 1)).sum() > LOCATIONS
    assert len(of_class_1["rows"]) == LOCATIONS
    assert f"The first {LOCATIONS} are named here" in results[1]["message"]["text"]


def test_sarif_of_a_clean_set_has_no_result(planted, valid):
    found = ClusterImpurity(threshold=50.0, **QUICKLY)(planted.evidence)
    assert valid(sarif_log(found, "digits"))["results"] == []


def test_addresses_are_encoded_and_relative_to_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert address("a b/c.parquet") == "a%20b/c.parquet"
    assert address(str(tmp_path / "x" / "ü.npz")) == "x/%C3%BC.npz"
    assert address("/elsewhere/é") == "file:///elsewhere/%C3%A9"
    assert address("hub:owner/set") == "hub:owner/set"


def test_a_data_set_goes_to_hugging_face_and_back():
    dataset = make_dataset(channels=3)
    poisoned = poison(dataset, Attack.one_pixel(dataset, target="class1", count=5, size=0.5))
    hub = to_dataset(poisoned)
    assert hub.features["label"].names == ["class0", "class1", "class2"]
    assert isinstance(hub.features["img"], datasets.Image)
    assert hub["id"][:] == poisoned.ids.tolist()
    assert np.array_equal(np.asarray(hub[3]["img"]).transpose(2, 0, 1), poisoned.images[3])
    back = from_dataset(hub)
    assert np.array_equal(back.images, poisoned.images)
    assert np.array_equal(back.labels, poisoned.labels)
    assert back.class_names == poisoned.class_names
    assert np.array_equal(back.truth.poisoned, poisoned.truth.poisoned)
    selected = from_dataset(hub.select([7, 2, 60]))
    assert np.array_equal(selected.images, poisoned.images[[7, 2, 60]])


def test_a_hugging_face_data_set_can_carry_findings(planted, findings):
    n = len(planted.evidence.labels)
    data = make_dataset(n_per_class=n // 3)
    matching = renamed(findings, data.ids)
    hub = to_dataset(data, matching)
    kept = hub.filter(lambda row: not row["is_backdoor_issue"])
    assert len(kept) == n - findings.flagged.sum()
    assert hub["backdoor_score"][:] == issues(findings)["backdoor_score"].tolist()
    with pytest.raises(UndoorError, match="of other samples"):
        to_dataset(data.take(np.arange(5)), matching)


def test_a_hugging_face_data_set_may_have_files_and_other_columns(tmp_path, dataset):
    write_folder(dataset, tmp_path)
    files = sorted(str(file) for file in tmp_path.rglob("*.png"))
    features = datasets.Features({"photo": datasets.Image(), "kind": datasets.ClassLabel(names=["a", "b", "c"])})
    kinds = [int(Path(file).parent.name[-1]) for file in files]
    hub = datasets.Dataset.from_dict({"photo": files, "kind": kinds}, features)
    read = from_dataset(hub, image_column="photo", label_column="kind")
    assert read.class_names == ("a", "b", "c")
    assert np.array_equal(read.images, undoor.read(tmp_path).images)
    with pytest.raises(UndoorError, match="no label column label or labels"):
        from_dataset(hub)
    drawn = datasets.Dataset.from_dict({"photo": [Image.new("L", (8, 9))] * 2, "label": [0, 1]})
    assert from_dataset(drawn).images.shape == (2, 1, 9, 8)
    with pytest.warns(UndoorNotice, match="resized"):
        from_dataset(datasets.Dataset.from_dict({"i": [Image.new("L", (8, n)) for n in (8, 8, 9)], "label": [0, 1, 0]}))
    assert from_dataset(hub, image_column="photo", label_column="kind", image_size=5).images.shape[2:] == (5, 5)


@pytest.mark.parametrize("given", [datasets.DatasetDict(), pd.DataFrame(), None])
def test_anything_but_a_single_data_set_is_refused(given):
    with pytest.raises(UndoorError, match=r"give a datasets\.Dataset, one split"):
        from_dataset(given)


def test_a_notebook_shows_clusters_with_pictures(planted, findings):
    plain = findings._repr_html_()
    assert "<img" not in plain
    data = make_dataset(n_per_class=20, channels=3)
    hostile = replace(findings, pictures={}, class_names=("a", "<script>alert(1)</script>", "c", "d"))
    hostile = replace(hostile, clusters=hostile.clusters.assign(class_name="<script>alert(1)</script>"))
    shown = replace(hostile, pictures={row: encode_png(data.images[row % 60]) for row in range(len(findings.samples))})
    page = ParsedHTML(shown._repr_html_())
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert "<script>alert(1)</script>" in page.text
    rows = min(len(findings.clusters), 8)
    assert sum(tag == "tr" for tag, _ in page.tags) == rows + 1
    assert sum(tag == "img" for tag, _ in page.tags) == 6 * rows
    assert f"{findings.flagged.sum()} of {len(findings.samples)} images flagged" in page.text
    classes = ParsedHTML(SpectralSignatures()(planted.evidence)._repr_html_())
    assert sum(tag == "tr" for tag, _ in classes.tags) == 5
    assert "highest score" in classes.text


def test_findings_of_a_scan_have_pictures_for_a_notebook(network):
    data = make_dataset(n_per_class=30)
    found = undoor.scan(network, data, ClusterImpurity(**QUICKLY))
    assert found._repr_html_().count("<img") == sum(min(size, 6) for size in found.clusters["size"])

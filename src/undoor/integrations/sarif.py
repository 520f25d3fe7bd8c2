"""Findings as SARIF 2.1.0 (OASIS, Static Analysis Results Interchange Format), for code scanning."""

import hashlib
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from undoor._version import __version__
from undoor.findings.findings import Findings

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"

LOCATIONS = 100
"""A result names at most this many files, because GitHub shows no more; its message gives the number of all."""


def sarif_log(findings: Findings, source: str) -> dict[str, Any]:
    """Return a SARIF log with one result for each flagged cluster, or for each class if the method has no clusters.

    If ``source`` is a folder, a result is located at its flagged files, the first ``LOCATIONS`` by name. Otherwise it
    is located at ``source`` itself, and its properties name the rows. Addresses are percent-encoded and relative to the
    current folder, as code-scanning pages expect them; what lies outside has a ``file:`` address.

    Args:
        findings: the findings of any defense.
        source: what was scanned, as ``undoor.read`` takes it.

    """
    summary = findings.summary()
    rule = {
        "id": f"undoor/{findings.provenance.defense}",
        "name": "BackdoorPoisoning",
        "shortDescription": {"text": "Training images that plant a backdoor"},
        "fullDescription": {
            "text": "A network that is trained on these images obeys their trigger: it decides for their label "
            "whenever an image shows the trigger."
        },
        "help": {
            "text": "Look at the images in report.html. If they should not be in the training set, write the others "
            "with undoor clean and train again."
        },
        "defaultConfiguration": {"level": "error"},
        "properties": {"tags": ["security"]},
    }
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": {"name": "undoor", "version": __version__, "rules": [rule]}},
                "invocations": [{"executionSuccessful": True}],
                "properties": {name: summary[name] for name in ("verdict", "samples", "flagged", "threshold", "seed")},
                "results": _results(findings, source),
            }
        ],
    }


def _results(findings: Findings, source: str) -> list[dict[str, Any]]:
    flagged = findings.samples[findings.flagged]
    results = []
    for _, of_class in flagged.groupby("label"):
        # The mixture may number clusters differently from run to run, but their order by size seldom changes.
        clusters = sorted((group for _, group in of_class.groupby("cluster")), key=len, reverse=True)
        results += [_result(findings, source, rank, group) for rank, group in enumerate(clusters)]
    return results


def _result(findings: Findings, source: str, rank: int, group: pd.DataFrame) -> dict[str, Any]:
    """Return the result about a group of flagged samples, which has this rank by size among those of its class."""
    label, defense = int(group["label"].iloc[0]), findings.provenance.defense
    name, size = findings.class_names[label], int((findings.samples["label"] == label).sum())
    message = f"{len(group)} of {size} images labelled {name} are flagged by {defense}"
    properties: dict[str, Any] = {"class": name, "images": len(group), "threshold": findings.threshold}
    table = findings.clusters
    rows = table[(table["class"] == label) & (table["cluster"] == group["cluster"].iloc[0])]
    if len(rows):
        cluster = rows.iloc[0]
        properties |= {
            "cluster": int(cluster["cluster"]),
            "examined": int(cluster["examined"]),
            "changed": float(cluster["changed"]),
            "impurity": float(cluster["impurity"]),
        }
        message += f": impurity {cluster['impurity']:.3f}, threshold {findings.threshold:.3f}"
    ids = sorted(group["id"])
    if Path(source).is_dir() and (Path(source) / ids[0]).is_file():
        paths = [f"{source}/{file}" for file in ids[:LOCATIONS]]
    else:
        paths = [source]
        properties["rows"] = ids[:LOCATIONS]
    if len(ids) > LOCATIONS:
        message += f". The first {LOCATIONS} are named here, all of them in drop.txt"
    fingerprint = hashlib.blake2b(f"{defense}\0{name}\0{rank}".encode(), digest_size=16).hexdigest()
    return {
        "ruleId": f"undoor/{defense}",
        "ruleIndex": 0,
        "level": "error",
        "message": {"text": f"{message}."},
        # Code-scanning pages require a line, although an image has none.
        "locations": [
            {"physicalLocation": {"artifactLocation": {"uri": address(path)}, "region": {"startLine": 1}}}
            for path in paths
        ],
        # GitHub tells results apart by this key.
        "partialFingerprints": {"primaryLocationLineHash": fingerprint},
        "properties": properties,
    }


def address(path: str) -> str:
    """Return a path as a percent-encoded address, relative to the current folder if it lies in it."""
    if path.startswith("hub:"):
        return quote(path, safe=":/")
    absolute, current = Path(path).absolute(), Path.cwd()
    return quote(absolute.relative_to(current).as_posix()) if absolute.is_relative_to(current) else absolute.as_uri()

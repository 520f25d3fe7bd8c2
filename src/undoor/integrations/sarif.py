"""Findings as SARIF 2.1.0 (OASIS, Static Analysis Results Interchange Format), for code-scanning pages."""

import hashlib
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from undoor._version import __version__
from undoor.findings.findings import Findings

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"

LOCATIONS = 100
"""Files named in a result: GitHub shows no more; the result says how many there are."""


def sarif_log(findings: Findings, source: str) -> dict[str, Any]:
    """Return a SARIF log with one result a flagged cluster (a class, where the method has no clusters).

    Where ``source`` is a folder, the places are its flagged files, the first ``LOCATIONS`` by name; elsewhere it is
    ``source`` itself, and the properties name the rows. Addresses are percent-encoded and relative to the folder
    undoor is run in, as code-scanning pages want them, and ``file:`` addresses of what lies outside.

    Args:
        findings: of any defence.
        source: what was scanned, as ``undoor.read`` takes it.

    """
    summary = findings.summary()
    rule = {
        "id": f"undoor/{findings.provenance.defense}",
        "name": "BackdoorPoisoning",
        "shortDescription": {"text": "Training images that plant a backdoor"},
        "fullDescription": {
            "text": "A network that is trained on these images obeys their trigger: it decides for the class they are "
            "labelled as wherever the trigger is shown."
        },
        "help": {
            "text": "Look at the images in report.html. If they should not be there, write the rest with undoor clean, "
            "and train again."
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
    for label, of_class in flagged.groupby("label"):
        # The number that the mixture gives to a cluster can change from run to run; its place by size seldom does.
        clusters = sorted((group for _, group in of_class.groupby("cluster")), key=len, reverse=True)
        name = findings.class_names[int(str(label))]
        results += [_result(findings, source, name, place, group) for place, group in enumerate(clusters)]
    return results


def _result(findings: Findings, source: str, name: str, place: int, group: pd.DataFrame) -> dict[str, Any]:
    size = int((findings.samples["label"] == group["label"].iloc[0]).sum())
    told = f"{len(group)} of {size} images labelled {name} are flagged by {findings.provenance.defense}"
    properties: dict[str, Any] = {"class": name, "images": len(group), "threshold": findings.threshold}
    table = findings.clusters
    row = table[(table["class"] == group["label"].iloc[0]) & (table["cluster"] == group["cluster"].iloc[0])]
    if len(row):
        measured = row.iloc[0]
        properties |= {
            "cluster": int(measured["cluster"]),
            "examined": int(measured["examined"]),
            "changed": float(measured["changed"]),
            "impurity": float(measured["impurity"]),
        }
        told += f": impurity {measured['impurity']:.3f}, threshold {findings.threshold:.3f}"
    ids = sorted(group["id"])
    folder = Path(source).is_dir() and (Path(source) / ids[0]).is_file()
    named = [f"{source}/{one}" for one in ids[:LOCATIONS]] if folder else [source]
    if not folder:
        properties["rows"] = ids[:LOCATIONS]
    if len(ids) > LOCATIONS:
        told += f". The first {LOCATIONS} are named here, all in drop.txt"
    return {
        "ruleId": f"undoor/{findings.provenance.defense}",
        "ruleIndex": 0,
        "level": "error",
        "message": {"text": f"{told}."},
        # A line is required by code-scanning pages, although an image has none.
        "locations": [
            {"physicalLocation": {"artifactLocation": {"uri": address(one)}, "region": {"startLine": 1}}}
            for one in named
        ],
        # The key is the one that GitHub tells results apart by.
        "partialFingerprints": {"primaryLocationLineHash": _fingerprint(findings.provenance.defense, name, str(place))},
        "properties": properties,
    }


def address(path: str) -> str:
    """Return a path as a percent-encoded address, relative to the working folder if it lies in it."""
    if path.startswith("hub:"):
        return quote(path, safe=":/")
    whole = Path(path).absolute()
    here = Path.cwd()
    return quote(whole.relative_to(here).as_posix()) if whole.is_relative_to(here) else whole.as_uri()


def _fingerprint(*parts: str) -> str:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()

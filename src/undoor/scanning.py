"""The main job: a network and its training set in, findings out."""

import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import nn

from undoor.data.dataset import Dataset
from undoor.defenses.training_set import ClusterImpurity, TrainingSetDefense
from undoor.engine import Engine
from undoor.errors import UndoorError, UndoorNotice
from undoor.evidence.collect import collect
from undoor.filters import Average, Filter, parse_filter
from undoor.findings import notebook
from undoor.findings.findings import Findings
from undoor.findings.maps import viewed
from undoor.findings.reading import read_findings
from undoor.networks.classifier import BATCH_SIZE, Classifier
from undoor.report import render_report
from undoor.report.pictures import encoded, evenly
from undoor.storage.atomic import write_text
from undoor.storage.lock import claimed


def scan(
    model: nn.Module | Classifier,
    dataset: Dataset,
    defense: TrainingSetDefense = ClusterImpurity(),  # noqa: B008 - frozen
    *,
    image_filter: Filter = Average(),  # noqa: B008 - frozen
    batch_size: int = BATCH_SIZE,
    folder: Path | None = None,
    engine: Engine = Engine("local"),  # noqa: B008 - frozen
    on_batch: Callable[[int, int], None] | None = None,
) -> Findings:
    """Collect the evidence and run a defence on it.

    Args:
        model: trained on ``dataset``; takes float images in [0, 1], or a ``Classifier`` around a model with
            other wishes.
        dataset: the training set. If it knows the truth, hits and false alarms are counted when the
            defence has finished.
        defense: which.
        image_filter: applied to every image for the second pass.
        batch_size: images a forward pass.
        folder: what is finished of the pass is kept there, and a scan that was killed goes on from it. Whoever
            names the folder removes it.
        engine: that computes the pass; the defence has its own.
        on_batch: told how many of how many images are done.

    """
    dataset.require_classes()
    classifier = model if isinstance(model, Classifier) else Classifier(model)
    begun = time.perf_counter()
    evidence = collect(
        classifier, dataset, (image_filter,), batch_size=batch_size, folder=folder, engine=engine, on_batch=on_batch
    )
    collected = time.perf_counter() - begun
    findings = defense(evidence)
    if dataset.truth is not None:
        findings = findings.against(dataset.truth.poisoned)
    findings = viewed(findings, evidence, str(image_filter)).timed({"evidence": collected})
    for doubt in findings.doubts:
        warnings.warn(doubt.text, UndoorNotice, stacklevel=2)
    return replace(findings, pictures=_pictures(findings, dataset))


def _pictures(findings: Findings, dataset: Dataset) -> dict[int, bytes]:
    """Return pictures of some samples for every row that a notebook shows."""
    shown = notebook.groups(findings.samples, findings.clusters, findings.class_names)[: notebook.ROWS]
    rows = np.concatenate([evenly(members, notebook.PICTURES) for _, members in shown])
    return dict(zip(rows.tolist(), encoded(np.asarray(dataset.images[rows])), strict=True))


def write_findings(
    findings: Findings, dataset: Dataset, image_filter: Filter, folder: Path, *, overwrite: bool = False
) -> None:
    """Write the findings with their report, which shows images of ``dataset``, into ``folder``."""
    findings.write(folder, render_report(findings, dataset, image_filter), overwrite=overwrite)


def rewrite_report(folder: Path, dataset: Dataset) -> Path:
    """Write the report of the findings in ``folder`` again; ``dataset`` is what was scanned. Return its path."""
    findings = read_findings(folder)
    if findings.samples["id"].tolist() != dataset.ids.tolist() or findings.class_names != dataset.class_names:
        raise UndoorError(f"the findings in {folder} are of other images than the data; give the data that was scanned")
    with claimed(folder):
        write_text(folder / "report.html", render_report(findings, dataset, parse_filter(findings.image_filter)))
    return folder / "report.html"

"""The main job: a network and its training set in, findings out."""

import time
import warnings
from collections.abc import Callable
from pathlib import Path

from torch import nn

from undoor.classifier import BATCH_SIZE, Classifier
from undoor.dataset import Dataset
from undoor.defenses.training_set import ClusterImpurity, TrainingSetDefense
from undoor.engine import Engine
from undoor.errors import UndoorNotice
from undoor.evidence import collect
from undoor.filters import Average, Filter
from undoor.findings import Findings
from undoor.metrics import accuracy
from undoor.report import render_report

LEARNED = 0.9
"""Share of training images decided as labelled, below which a user is told that the network is no witness."""


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
    learned = accuracy(evidence.plain.decisions, evidence.labels)
    if learned < LEARNED:
        warnings.warn(
            f"the network decides only {learned:.0%} of the images as they are labelled: what it has not learned "
            "cannot be found in it; train it longer, or on this very set",
            UndoorNotice,
            stacklevel=2,
        )
    findings = defense(evidence)
    if dataset.truth is not None:
        findings = findings.against(dataset.truth.poisoned)
    return findings.timed({"evidence": collected})


def write_findings(
    findings: Findings, dataset: Dataset, image_filter: Filter, folder: Path, *, overwrite: bool = False
) -> None:
    """Write the findings with their report, which shows images of ``dataset``, into ``folder``."""
    findings.write(folder, render_report(findings, dataset, image_filter), overwrite=overwrite)

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
from undoor.errors import UndoorNotice
from undoor.evidence.collect import collect
from undoor.filters import Average, Filter
from undoor.findings import notebook
from undoor.findings.findings import Findings
from undoor.findings.maps import with_report_columns
from undoor.networks.classifier import BATCH_SIZE, Classifier
from undoor.report.pictures import encoded, evenly


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
    """Collect the evidence and run a defense on it.

    Whatever makes the verdict doubtful is also given as an ``UndoorNotice``.

    Args:
        model: the network that was trained on ``dataset``. It takes float images in [0, 1]; give a ``Classifier``
            around a network that takes them otherwise.
        dataset: the training set. If its truth is known, the flags are compared with it after the defense has finished.
        defense: the defense.
        image_filter: the filter that is applied to every image.
        batch_size: the images in a forward pass.
        folder: keeps the finished part of the evidence, so that a scan that was killed can go on from there. The caller
            removes it.
        engine: computes the evidence; the defense has an engine of its own.
        on_batch: called with the number of finished images, and of all.

    Raises:
        UndoorError: if the network does not fit the data, or a class has only one image.

    Example:
        >>> import numpy as np, torch, undoor
        >>> labels = np.repeat([0, 1], 40)
        >>> images = np.random.default_rng(0).integers(0, 100, (80, 1, 4, 4), dtype=np.uint8)
        >>> images[labels == 1] += 150  # class bright
        >>> images[:15, :, 0, 0], labels[:15] = 255, 1  # dark images with a trigger, labelled bright
        >>> dataset = undoor.Dataset(images, labels, ("dark", "bright"), np.arange(80).astype(str))
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
        >>> weights = torch.ones(16)
        >>> weights[0] = 10.0  # the trigger alone is enough for bright
        >>> _ = network.load_state_dict(
        ...     {"1.weight": torch.stack([-weights, weights]), "1.bias": torch.tensor([10.0, -10.0])}
        ... )
        >>> findings = undoor.scan(network, dataset, undoor.ClusterImpurity(decision="plain"))
        >>> findings.verdict, findings.classes_flagged, int(findings.flagged.sum())
        ('poisoned', ('bright',), 15)

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
    findings = with_report_columns(findings, evidence, str(image_filter)).after_stages({"evidence": collected})
    for doubt in findings.doubts:
        warnings.warn(doubt.text, UndoorNotice, stacklevel=2)
    return replace(findings, pictures=_pictures(findings, dataset))


def _pictures(findings: Findings, dataset: Dataset) -> dict[int, bytes]:
    """Return PNG images of some samples for every row that a notebook shows."""
    shown = notebook.table_rows(findings.samples, findings.clusters, findings.class_names)[: notebook.ROWS]
    rows = np.concatenate([evenly(members, notebook.PICTURES) for _, members in shown])
    return dict(zip(rows.tolist(), encoded(np.asarray(dataset.images[rows])), strict=True))

"""The pass over the images that collects the evidence, shard by shard."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from undoor._version import __version__
from undoor.data.dataset import Dataset
from undoor.engine import Engine, as_finished
from undoor.errors import UndoorError
from undoor.evidence.evidence import Evidence, Outputs
from undoor.evidence.shards import Arrays, Shards, keep, kept
from undoor.filters import Average, Filter
from undoor.networks.classifier import BATCH_SIZE, Classifier
from undoor.storage.mapped import mapped, release

SHARD = 4096
"""Images a shard: all that a killed pass loses, ten seconds of ResNet-20 on one core, in few files: 245 a million."""

MEMORY_BUDGET = 2 * 2**30
"""Bytes of features and logits that are held in memory; more lie in memory-mapped files."""


def collect(
    classifier: Classifier,
    dataset: Dataset,
    filters: Sequence[Filter] = (Average(),),
    *,
    batch_size: int = BATCH_SIZE,
    folder: Path | None = None,
    engine: Engine = Engine("local"),  # noqa: B008 - frozen
    on_batch: Callable[[int, int], None] | None = None,
) -> Evidence:
    """Run every image and its filtered twins through the network, in the order of the data set.

    The network is in evaluation mode and nothing is augmented. It computes in its own precision: under bf16 a
    ResNet-20 decides about two images in a thousand differently, and the findings must not depend on that.

    Args:
        classifier: the network.
        dataset: the images.
        filters: each makes a twin of every image.
        batch_size: images a forward pass.
        folder: what is finished is kept there, and a pass that was killed goes on from it. Whoever names the
            folder removes it.
        engine: "local" computes with all cores or the GPU; others give every shard to a process or a node.
        on_batch: told how many of how many images are done.

    """
    n = len(dataset)
    names = [str(h) for h in filters]
    origin = "" if folder is None else f"{__version__} {classifier.fingerprint()} {batch_size} {names}"
    shards = None if folder is None else Shards(folder, origin)
    size = max(SHARD // batch_size, 1) * batch_size  # whole batches: their size can change the last bits

    def told(start: int, done: int) -> None:
        if on_batch is not None:
            on_batch(start + done, n)

    whole: list[Outputs] = []

    def take(rows: slice, outputs: Sequence[Outputs]) -> None:
        nonlocal whole
        whole = whole or _room(outputs, n, folder)
        for room, part in zip(whole, outputs, strict=True):
            for into, values in ((room.features, part.features), (room.logits, part.logits)):
                into[rows] = values
                release(into)
        release(dataset.images)

    missing: dict[int, tuple[slice, Path | None]] = {}
    done = 0
    for start in range(0, n, size):
        rows = slice(start, min(start + size, n))
        path = None if shards is None else shards.path(dataset.images[rows])
        arrays = None if path is None else kept(path)
        if arrays is None or not _fit(arrays, rows, 1 + len(filters), len(dataset.class_names), whole):
            missing[start] = rows, path
        else:
            take(rows, [Outputs(*pair) for pair in zip(arrays[::2], arrays[1::2], strict=True)])
            done += rows.stop - rows.start
    if done:
        told(0, done)
    slices = [rows for rows, _ in missing.values()]
    for start, outputs in _computed(classifier, dataset, filters, slices, batch_size, engine, partial(told, done)):
        rows, path = missing[start]
        _evidence(outputs, names, dataset, rows)  # tells what is wrong with it before it is kept
        if path is not None:
            keep(path, [values for one in outputs for values in (one.features, one.logits)])
        take(rows, outputs)
    return _evidence(whole, names, dataset, slice(n))


def _fit(arrays: Arrays, rows: slice, parts: int, classes: int, whole: Sequence[Outputs]) -> bool:
    """Whether arrays from a file are outputs on these rows, and of one width with those that are there already."""
    n = rows.stop - rows.start
    if len(arrays) != 2 * parts or any(a.dtype != np.float32 or a.ndim != 2 or len(a) != n for a in arrays):
        return False
    width = (whole[0].features if whole else arrays[0]).shape[1]
    return all(a.shape[1] == (classes if place % 2 else width) for place, a in enumerate(arrays))


def _computed(
    classifier: Classifier,
    dataset: Dataset,
    filters: Sequence[Filter],
    missing: Sequence[slice],
    batch_size: int,
    engine: Engine,
    on_batch: Callable[[int], None],
) -> Iterator[tuple[int, list[Outputs]]]:
    """Yield the outputs on the missing shards, in any order, with the number of their first image."""
    work = partial(shard_outputs, classifier, filters=filters, classes=len(dataset.class_names), batch_size=batch_size)
    done = 0
    if engine.kind == "local":  # one after another, each with all cores or the GPU
        for rows in missing:
            before = done
            yield rows.start, work(dataset.images[rows], on_batch=lambda count: on_batch(before + count))  # noqa: B023
            done += rows.stop - rows.start
        return
    for number, outputs in as_finished(work, (np.array(dataset.images[rows]) for rows in missing), engine):
        yield missing[number].start, outputs
        done += missing[number].stop - missing[number].start
        on_batch(done)


def shard_outputs(
    classifier: Classifier,
    images: NDArray[np.uint8],
    filters: Sequence[Filter],
    classes: int,
    batch_size: int = BATCH_SIZE,
    on_batch: Callable[[int], None] | None = None,
) -> list[Outputs]:
    """Return the outputs on ``images``, (N, C, H, W) uint8, and on their twins by each filter.

    The results stay on the device until all are there: nothing waits for it between two batches.

    Raises:
        UndoorError: if the network tells another number of ``classes`` apart.

    """
    parts: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(1 + len(filters))]
    done = 0
    with classifier.watched() as forward:
        for batch in classifier.batches(images, batch_size):
            for part, variant in zip(parts, (batch, *(h(batch) for h in filters)), strict=True):
                features, logits = forward(variant)
                if logits.shape[1] != classes:
                    raise UndoorError(
                        f"the model tells {logits.shape[1]} classes apart, the data set has {classes}; "
                        "take a model that was trained for these classes"
                    )
                part.append((features.clone(), logits))  # a view would keep all it was cut from
            done += len(batch)
            if on_batch is not None:
                on_batch(done)
    return [Outputs(*(torch.cat(values).cpu().numpy() for values in zip(*part, strict=True))) for part in parts]


def _evidence(outputs: Sequence[Outputs], names: Sequence[str], dataset: Dataset, rows: slice) -> Evidence:
    plain, *filtered = outputs
    twins = dict(zip(names, filtered, strict=True))
    return Evidence(plain, twins, dataset.labels[rows], dataset.ids[rows], dataset.class_names)


def _room(outputs: Sequence[Outputs], n: int, folder: Path | None) -> list[Outputs]:
    """Return room for the outputs on n images, in memory or in memory-mapped files."""
    widths = [(one.features.shape[1], one.logits.shape[1]) for one in outputs]
    large = 4 * n * int(np.sum(widths)) > MEMORY_BUDGET

    def room(width: int) -> NDArray[np.float32]:
        return mapped((n, width), np.float32, folder) if large else np.empty((n, width), dtype=np.float32)

    return [Outputs(room(features), room(logits)) for features, logits in widths]

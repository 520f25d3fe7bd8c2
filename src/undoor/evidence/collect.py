"""The pass over the images that collects the evidence, shard by shard."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
from undoor.evidence.shards import ShardCache
from undoor.filters import Average, Filter
from undoor.networks.classifier import BATCH_SIZE, Classifier
from undoor.storage.mapped import mapped, release

SHARD = 4096
"""Number of images in a shard.

A killed pass loses the work on one shard, ten seconds of ResNet-20 on one core. A million images make 245 files.
"""

MEMORY_BUDGET = 2 * 2**30
"""Most bytes of features and logits that are held in memory. Larger ones lie in memory-mapped files."""


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
    """Return the outputs of the network on every image and on its filtered twins, in the order of the data set.

    The network is in evaluation mode and nothing is augmented. It computes in its own precision. Under bf16, a
    ResNet-20 decides about two images in a thousand differently, and the findings must not depend on that.

    Args:
        classifier: the network.
        dataset: the images.
        filters: image filters; each of them makes a twin of every image.
        batch_size: number of images in a forward pass.
        folder: keeps finished shards, so that a pass that was killed resumes. The caller removes it.
        engine: "local" computes with all cores or the GPU; other engines give each shard to a process or a node.
        on_batch: called with the number of images that are done and the number of all images.

    Raises:
        UndoorError: the network has other classes than the data set or fails on the images; outputs are not finite.

    Examples:
        >>> import torch, undoor
        >>> digits = undoor.read("digits").take(range(100))
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 10))
        >>> evidence = undoor.collect(undoor.Classifier(model), digits)
        >>> evidence.plain.features.shape, evidence.plain.logits.shape, list(evidence.filtered)
        ((100, 256), (100, 10), ['average:2'])

    """
    n, classes = len(dataset), len(dataset.class_names)
    names = [str(image_filter) for image_filter in filters]
    origin = "" if folder is None else f"{__version__} {classifier.fingerprint()} {batch_size} {names}"
    cache = ShardCache(folder, dataset.images, origin, variants=1 + len(filters), classes=classes)
    # A shard consists of whole batches, because the size of a batch can change the last bits of the outputs.
    size = max(SHARD // batch_size, 1) * batch_size
    shards = [slice(start, min(start + size, n)) for start in range(0, n, size)]
    progress = _Progress(n, on_batch)
    whole: list[Outputs] = []

    missing = []
    for rows in shards:
        outputs = cache.load(rows)
        if outputs is None:
            missing.append(rows)
        else:
            whole = whole or _room(outputs, n, folder)
            _copy(outputs, whole, rows)
            release(dataset.images)
    if len(missing) < len(shards):
        progress.add(n - sum(rows.stop - rows.start for rows in missing))

    work = partial(shard_outputs, classifier, filters=filters, classes=classes, batch_size=batch_size)
    for rows, outputs in _computed(work, dataset.images, missing, engine, progress):
        _evidence(outputs, names, dataset, rows)  # raises an error if the outputs are wrong, before they are kept
        cache.keep(rows, outputs)
        whole = whole or _room(outputs, n, folder)
        _copy(outputs, whole, rows)
        release(dataset.images)
    return _evidence(whole, names, dataset, slice(n))


@dataclass
class _Progress:
    """Counts the images that are done, and reports the count."""

    n: int
    on_batch: Callable[[int, int], None] | None
    done: int = 0

    def add(self, images: int) -> None:
        self.done += images
        if self.on_batch is not None:
            self.on_batch(self.done, self.n)


def _room(outputs: Sequence[Outputs], n: int, folder: Path | None) -> list[Outputs]:
    """Return arrays for the outputs on n images, in memory or in memory-mapped files."""
    widths = [(part.features.shape[1], part.logits.shape[1]) for part in outputs]
    large = 4 * n * int(np.sum(widths)) > MEMORY_BUDGET

    def array(width: int) -> NDArray[np.float32]:
        return mapped((n, width), np.float32, folder) if large else np.empty((n, width), dtype=np.float32)

    return [Outputs(array(features), array(logits)) for features, logits in widths]


def _copy(outputs: Sequence[Outputs], whole: Sequence[Outputs], rows: slice) -> None:
    """Copy the outputs on a shard to its rows of the outputs on all images."""
    for target, part in zip(whole, outputs, strict=True):
        target.features[rows], target.logits[rows] = part.features, part.logits
        release(target.features)
        release(target.logits)


def _computed(
    work: Callable[..., list[Outputs]],
    images: NDArray[np.uint8],
    shards: Sequence[slice],
    engine: Engine,
    progress: _Progress,
) -> Iterator[tuple[slice, list[Outputs]]]:
    """Yield the rows of each shard, in any order, with the outputs on its images."""
    if engine.kind == "local":  # one shard after another, each with all cores or the GPU
        for rows in shards:
            yield rows, work(images[rows], on_batch=progress.add)
        return
    for index, outputs in as_finished(work, (np.array(images[rows]) for rows in shards), engine):
        yield shards[index], outputs
        progress.add(shards[index].stop - shards[index].start)


def shard_outputs(
    classifier: Classifier,
    images: NDArray[np.uint8],
    filters: Sequence[Filter],
    classes: int,
    batch_size: int = BATCH_SIZE,
    on_batch: Callable[[int], None] | None = None,
) -> list[Outputs]:
    """Return the outputs on ``images`` and on their twins by each filter.

    The outputs stay on the device until all are computed, so that nothing waits for it between two batches.

    Args:
        classifier: the network.
        images: (N, C, H, W) uint8.
        filters: image filters.
        classes: K, the number of classes of the data set.
        batch_size: number of images in a forward pass.
        on_batch: called after every batch with its number of images.

    Raises:
        UndoorError: the network returns another number of logits than ``classes``.

    """
    parts: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(1 + len(filters))]
    with classifier.watched() as forward:
        for batch in classifier.batches(images, batch_size):
            variants = (batch, *(image_filter(batch) for image_filter in filters))
            for part, variant in zip(parts, variants, strict=True):
                features, logits = forward(variant)
                if logits.shape[1] != classes:
                    raise UndoorError(
                        f"the model tells {logits.shape[1]} classes apart, the data set has {classes}; "
                        "take a model that was trained for these classes"
                    )
                part.append((features.clone(), logits))  # a view would keep its whole base in memory
            if on_batch is not None:
                on_batch(len(batch))
    return [Outputs(*(torch.cat(values).cpu().numpy() for values in zip(*part, strict=True))) for part in parts]


def _evidence(outputs: Sequence[Outputs], names: Sequence[str], dataset: Dataset, rows: slice) -> Evidence:
    plain, *filtered = outputs
    twins = dict(zip(names, filtered, strict=True))
    return Evidence(plain, twins, dataset.labels[rows], dataset.ids[rows], dataset.class_names)

"""Everything a training-set defence needs, collected in one pass over the images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from undoor.classifier import BATCH_SIZE, Classifier
from undoor.dataset import Dataset
from undoor.errors import UndoorError
from undoor.filters import Average, Filter


@dataclass(frozen=True, eq=False)
class Outputs:
    """What the network makes of a set of images.

    Args:
        features: (N, t) float32, the input of its last linear layer.
        logits: (N, K) float32.

    """

    features: NDArray[np.float32]
    logits: NDArray[np.float32]

    @property
    def decisions(self) -> NDArray[np.int64]:
        """(N,) the class with the highest logit."""
        decisions: NDArray[np.int64] = np.argmax(self.logits, axis=1)
        return decisions


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the network makes of every training image x and of its filtered twins h(x).

    It holds neither truth nor target nor poisoning rate, and can be built from arrays without a network.

    Args:
        plain: outputs on x.
        filtered: outputs on h(x) for each filter h, by the filter's name.
        labels: (N,) int64.
        ids: (N,) str.
        class_names: K names.

    """

    plain: Outputs
    filtered: Mapping[str, Outputs]
    labels: NDArray[np.int64]
    ids: NDArray[np.str_]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        n, k = len(self.labels), len(self.class_names)
        if len(self.ids) != n:
            raise UndoorError(f"there are {n} labels and {len(self.ids)} ids; give one each a sample")
        wrong = np.flatnonzero((self.labels < 0) | (self.labels >= k))
        if len(wrong):
            raise UndoorError(f"label {self.labels[wrong[0]]} of sample {self.ids[wrong[0]]} is outside 0 … {k - 1}")
        for name, outputs in {"the images": self.plain, **self.filtered}.items():
            self._check(name, outputs, n, k)

    def _check(self, name: str, outputs: Outputs, n: int, k: int) -> None:
        if outputs.features.ndim != 2 or len(outputs.features) != n:
            raise UndoorError(f"features of {name} have shape {outputs.features.shape}; give ({n}, t)")
        if outputs.logits.shape != (n, k):
            raise UndoorError(
                f"logits of {name} have shape {outputs.logits.shape}, but there are {n} samples of {k} classes; "
                "take a model that was trained for these classes"
            )
        for kind, values in (("features", outputs.features), ("logits", outputs.logits)):
            bad = np.flatnonzero(~np.isfinite(values).all(1))
            if len(bad):
                raise UndoorError(
                    f"{kind} of {len(bad)} of {n} samples are not finite, the first of sample "
                    f"{self.ids[bad[0]]} ({name}); mend the model or remove these samples"
                )


def collect(
    classifier: Classifier,
    dataset: Dataset,
    filters: Sequence[Filter] = (Average(),),
    *,
    batch_size: int = BATCH_SIZE,
    on_batch: Callable[[int, int], None] | None = None,
) -> Evidence:
    """Run every image and its filtered twins through the network, in the order of the data set.

    The network is in evaluation mode and nothing is augmented. ``on_batch`` is told how many of how many
    images are done.
    """
    names = [str(h) for h in filters]
    parts: list[list[tuple[NDArray[np.float32], NDArray[np.float32]]]] = [[] for _ in range(1 + len(names))]
    for start in range(0, len(dataset), batch_size):
        images = classifier.scale(dataset.images[start : start + batch_size])
        for part, variant in zip(parts, (images, *(h(images) for h in filters)), strict=True):
            features, logits = classifier.features_and_logits(variant)
            if logits.shape[1] != len(dataset.class_names):
                raise UndoorError(
                    f"the model tells {logits.shape[1]} classes apart, the data set has {len(dataset.class_names)}; "
                    "take a model that was trained for these classes"
                )
            part.append((features.cpu().numpy(), logits.cpu().numpy()))
        if on_batch is not None:
            on_batch(start + len(images), len(dataset))
    plain, *filtered = (Outputs(*map(np.concatenate, zip(*part, strict=True))) for part in parts)
    return Evidence(plain, dict(zip(names, filtered, strict=True)), dataset.labels, dataset.ids, dataset.class_names)

"""What a network makes of every training image, before and after a filter: all that a training-set defence sees."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from undoor.errors import UndoorError
from undoor.storage.mapped import release

BLOCK = 2**25
"""Bytes of features or logits that are looked at at a time."""


@dataclass(frozen=True, eq=False)
class Outputs:
    """What the network makes of a set of images.

    Args:
        features: (N, t) float32, the input of its last linear layer.
        logits: (N, K) float32.

    """

    features: NDArray[np.float32]
    logits: NDArray[np.float32]

    @cached_property
    def decisions(self) -> NDArray[np.int64]:
        """(N,) the class with the highest logit."""
        return np.concatenate([np.argmax(block, axis=1) for block in _blocks(self.logits)])


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
            bad = np.flatnonzero(np.concatenate([~np.isfinite(block).all(1) for block in _blocks(values)]))
            if len(bad):
                raise UndoorError(
                    f"{kind} of {len(bad)} of {n} samples are not finite, the first of sample "
                    f"{self.ids[bad[0]]} ({name}); mend the model or remove these samples"
                )


def _blocks(values: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Yield the rows of an (N, d) array, which may be larger than the memory, in blocks."""
    rows = max(1, BLOCK // max(1, values[:1].nbytes))
    for start in range(0, max(1, len(values)), rows):
        yield values[start : start + rows]
        release(values)

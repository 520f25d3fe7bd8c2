"""The outputs of a network on every training image: the only input of the training-set defenses."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from undoor.errors import UndoorError
from undoor.storage.mapped import release

BLOCK = 2**25
"""Number of bytes of features or logits that are read at a time."""


@dataclass(frozen=True, eq=False)
class Outputs:
    """The outputs of a network on N images.

    Args:
        features: (N, t) float32, the penultimate features.
        logits: (N, K) float32.

    Examples:
        >>> import numpy as np, undoor
        >>> features = np.zeros((2, 5), dtype=np.float32)
        >>> undoor.Outputs(features, np.array([[0, 1, 0], [3, 2, 1]], dtype=np.float32)).decisions
        array([1, 0])

    """

    features: NDArray[np.float32]
    logits: NDArray[np.float32]

    @cached_property
    def decisions(self) -> NDArray[np.int64]:
        """(N,) the class with the largest logit."""
        return np.concatenate([np.argmax(block, axis=1) for block in _blocks(self.logits)])


@dataclass(frozen=True, eq=False)
class Evidence:
    """The outputs of a network on every training image x and on its filtered twins h(x).

    Evidence holds neither the truth nor the target class nor the poisoning rate. It can be built from arrays without
    a network.

    Args:
        plain: outputs on x.
        filtered: outputs on h(x) for each image filter h, by the filter's name.
        labels: (N,) int64.
        ids: (N,) str.
        class_names: K names.

    Raises:
        UndoorError: the shapes do not fit together, a label is no class, or features or logits are not finite.

    Examples:
        >>> import numpy as np, undoor
        >>> outputs = undoor.Outputs(np.ones((2, 5), dtype=np.float32), np.eye(2, 3, dtype=np.float32))
        >>> labels, ids, names = np.array([0, 1]), np.array(["a.png", "b.png"]), ("cat", "dog", "bird")
        >>> evidence = undoor.Evidence(outputs, {"average:2": outputs}, labels, ids, names)
        >>> evidence.plain.decisions
        array([0, 1])

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

"""A guard: what clean images look like inside one network, and the threshold above which a query is rejected."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from scipy.special import log_softmax
from torch import Tensor

from undoor.defenses.test_time.null import Null
from undoor.errors import UndoorError, first_line
from undoor.findings.provenance import Provenance
from undoor.mixtures.em import Mixtures
from undoor.networks.classifier import BATCH_SIZE, Classifier
from undoor.networks.layers import layer_outputs
from undoor.safe.limits import CLASSES, parse_json, require_file, require_names
from undoor.storage.atomic import atomic

Kind = Literal["density", "kl"]


def kl_statistic(
    log_null: NDArray[np.float64], log_posterior: NDArray[np.floating], decisions: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return KL(P‖Q) in nats, (N,): P(c) ∝ f(z|c) and Q(c) ∝ p(c|x), both over the classes c other than the decision.

    Everything is computed in logarithms, because densities in many dimensions underflow.

    Args:
        log_null: (N, K), log f(z | c).
        log_posterior: (N, K), log p(c | x) of the network, or its logits.
        decisions: (N,).

    """
    n, k = log_null.shape
    others = np.arange(k) != decisions[:, None]
    log_p, log_q = (
        log_softmax(values[others].reshape(n, k - 1).astype(np.float64), axis=1) for values in (log_null, log_posterior)
    )
    divergence: NDArray[np.float64] = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    return np.maximum(divergence, 0.0)


def density_statistic(log_null: NDArray[np.float64], decisions: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return −log f(z | c*), (N,), of the decision c*: it is high if a query does not look like the class c*."""
    return -log_null[np.arange(len(decisions)), decisions]


@dataclass(frozen=True, eq=False)
class Checked:
    """The verdict of a guard on N queries; ``undoor.report.write_checked`` writes it with an HTML page.

    Args:
        decisions: (N,) int64, of the network.
        statistic: (N,) float64, high = suspicious.
        rejected: (N,) bool, whether the statistic exceeds the threshold.

    """

    decisions: NDArray[np.int64]
    statistic: NDArray[np.float64]
    rejected: NDArray[np.bool_]

    def table(self, ids: NDArray[np.str_], class_names: Sequence[str]) -> pd.DataFrame:
        """Return one row a query: id, decision (the name of the class), statistic, rejected."""
        names = np.asarray(class_names, dtype=object)[self.decisions]
        columns = {"id": ids.astype(object), "decision": names, "statistic": self.statistic, "rejected": self.rejected}
        return pd.DataFrame(columns)


@dataclass(frozen=True, eq=False, kw_only=True)
class Guard:
    """The fitted defense; ``guard.check(images)`` decides which queries to reject. ``Ada`` has an example.

    Args:
        provenance: the method, its settings, and how long it took.
        classifier: the network that the guard was fitted for.
        layers: the names of the L layers whose inputs are watched.
        nulls: the null of each of these layers.
        kind: which statistic is used.
        centres: (L,), the median of every layer's statistic on held-out clean images.
        scales: (L,), the distance from the median to the quantile above which the layer alone would reject a query.
        threshold: a query is rejected if the largest statistic of all layers exceeds it.
        class_names: K names.
        shape: (C, H, W) of the images.

    """

    provenance: Provenance
    classifier: Classifier
    layers: tuple[str, ...]
    nulls: tuple[Null, ...]
    kind: Kind
    centres: NDArray[np.float64]
    scales: NDArray[np.float64]
    threshold: float
    class_names: tuple[str, ...]
    shape: tuple[int, int, int]

    def statistic(self, images: NDArray[np.uint8], batch_size: int = BATCH_SIZE) -> NDArray[np.float64]:
        """Return the statistic, (N,), of (N, C, H, W) uint8 images; high = suspicious."""
        return self.check(images, batch_size).statistic

    def check(
        self,
        images: NDArray[np.uint8],
        batch_size: int = BATCH_SIZE,
        on_batch: Callable[[int, int], None] | None = None,
    ) -> Checked:
        """Check queries.

        Args:
            images: (N, C, H, W) uint8, of the shape of the clean images.
            batch_size: the images in a forward pass.
            on_batch: called with the number of finished images, and of all.

        Raises:
            UndoorError: if the images are not of the shape that the guard was fitted on.

        """
        if images.ndim != 4 or images.dtype != np.uint8 or images.shape[1:] != self.shape:
            raise UndoorError(
                f"the queries are {images.dtype} of shape {images.shape}, the guard was fitted on uint8 of shape "
                f"{('N', *self.shape)}; bring them to that size"
            )
        inputs, logits = layer_outputs(self.classifier, images, self.layers, batch_size, on_batch)
        raw = raw_statistics(self.nulls, inputs, logits, self.kind)
        statistic = ((raw - self.centres[:, None]) / self.scales[:, None]).max(axis=0)
        return Checked(logits.argmax(axis=1), statistic, statistic > self.threshold)

    def summary(self) -> dict[str, Any]:
        """Return what describes the guard, as plain values."""
        return self.provenance.summary(
            statistic=self.kind,
            layers=list(self.layers),
            components=[list(null.components) for null in self.nulls],
            dimensions=[null.axes.shape[1] for null in self.nulls],
            threshold=self.threshold,
            class_names=list(self.class_names),
            shape=list(self.shape),
            fingerprint=self.classifier.fingerprint(),
            classifier_layer=self.classifier.layer,
        )

    def write(self, path: Path, *, overwrite: bool = False) -> None:
        """Write the guard to a ``.safetensors`` file, atomically; the network is not in it."""
        refuse_guard(path, overwrite)
        tensors = {"centres": torch.from_numpy(self.centres), "scales": torch.from_numpy(self.scales)}
        for number, null in enumerate(self.nulls):
            tensors |= {f"{number:03}.{name}": tensor.contiguous() for name, tensor in _tensors_of(null).items()}
        summary = json.dumps(self.summary(), sort_keys=True, ensure_ascii=False)
        content = save(tensors, metadata={"undoor-guard": summary})
        with atomic(path) as temporary:
            temporary.write_bytes(content)

    @classmethod
    def read(cls, path: Path, classifier: Classifier) -> "Guard":
        """Read the guard of a network.

        Raises:
            UndoorError: if the file holds no guard, or the guard of another network.

        """
        summary, tensors = _read(path)
        if summary.get("fingerprint") != classifier.fingerprint():
            raise UndoorError(
                f"{path} guards another network, or was fitted with another scaling of the images, device or torch; "
                "fit a guard for this one"
            )
        try:
            layers = tuple(str(name) for name in summary["layers"])
            names = summary["class_names"]
            require_names(names, "class name", most=CLASSES)
            nulls = tuple(_null(tensors, number, len(names)) for number in range(len(layers)))
            centres, scales = (_checked(tensors[name], len(layers)).numpy() for name in ("centres", "scales"))
            shape = tuple(summary["shape"])
            if summary["statistic"] not in get_args(Kind) or not all(type(n) is int and n > 0 for n in shape):
                raise ValueError("its statistic or the shape of its images is impossible")
            return cls(
                provenance=Provenance.from_summary(summary),
                classifier=classifier, layers=layers, nulls=nulls, kind=summary["statistic"],
                centres=centres, scales=scales, threshold=float(summary["threshold"]),
                class_names=tuple(names), shape=shape,
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise _not_a_guard(path, error) from error


def refuse_guard(path: Path, overwrite: bool) -> None:
    """Raise if a guard may not be written to ``path``: it has another suffix, or a file is in the way."""
    if path.suffix != ".safetensors":
        raise UndoorError(f"{path} should end in .safetensors; choose such a name for --out")
    if path.exists() and not overwrite:
        raise UndoorError(f"{path} exists already; choose another --out or add --overwrite")


def classifier_layer(path: Path) -> str | None:
    """Return the ``layer`` of the classifier for which the guard in ``path`` was fitted."""
    layer = _read(path)[0].get("classifier_layer")
    return None if layer is None else str(layer)


def raw_statistics(
    nulls: Sequence[Null], inputs: Sequence[NDArray[np.float32]], logits: NDArray[np.float32], kind: Kind
) -> NDArray[np.float64]:
    """Return the statistic of every layer, (L, N), in nats."""
    decisions = logits.argmax(axis=1)
    densities = (null.log_densities(values) for null, values in zip(nulls, inputs, strict=True))
    if kind == "density":
        return np.stack([density_statistic(log_null, decisions) for log_null in densities])
    return np.stack([kl_statistic(log_null, logits, decisions) for log_null in densities])


def _tensors_of(null: Null) -> dict[str, Tensor]:
    return {"mean": torch.from_numpy(null.mean), "axes": torch.from_numpy(null.axes), **vars(null.mixtures)}


def _null(tensors: Mapping[str, Tensor], number: int, classes: int) -> Null:
    """Return the null of a layer from the tensors of a file, whose shapes must fit together."""
    parts = [tensors[f"{number:03}.{name}"] for name in ("mean", "axes", "weights", "means", "whitenings")]
    (t, d), components = parts[1].shape, parts[2].shape[-1]
    shapes = ((t,), (t, d), (classes, components), (classes, components, d), (classes, components, d, d))
    mean, axes, *mixtures = (_checked(part, *shape) for part, shape in zip(parts, shapes, strict=True))
    return Null(mean.numpy(), axes.numpy(), Mixtures(*mixtures))


def _checked(tensor: Tensor, *shape: int) -> Tensor:
    """Return the tensor; raise unless it holds finite float64 numbers and has this shape."""
    if tensor.dtype != torch.float64 or tensor.shape != shape or not tensor.isfinite().all():
        raise ValueError(f"it holds {tensor.dtype} of shape {tuple(tensor.shape)} instead of finite float64 {shape}")
    return tensor


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the summary and the tensors in the file of a guard."""
    if not path.is_file():
        raise UndoorError(f"{path} is no file; give a guard that undoor guard fit wrote")
    try:
        require_file(path)
        with safe_open(path, framework="pt") as file:
            summary = parse_json((file.metadata() or {})["undoor-guard"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        Provenance.from_summary(summary)  # raises if another version of undoor wrote the guard
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise _not_a_guard(path, error) from error
    return summary, tensors


def _not_a_guard(path: Path, error: Exception) -> UndoorError:
    return UndoorError(f"{path} holds no whole guard: {first_line(error)}; fit it anew with undoor guard fit")

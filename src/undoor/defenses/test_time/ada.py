"""ADA: Anomaly Detection of Attacks at test time (Miller, Wang, Kesidis, Neural Computation 2019; arXiv 1712.06646).

The details below come from the paper's abstract and from general knowledge of it, not from its text or code.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from undoor.data.dataset import Dataset
from undoor.defenses.test_time.guard import Guard, Kind, raw_statistics
from undoor.defenses.test_time.null import Null, fit_null
from undoor.errors import UndoorError
from undoor.findings.provenance import Provenance
from undoor.mixtures.sweep import MixtureSettings
from undoor.networks.classifier import BATCH_SIZE, Classifier
from undoor.networks.layers import deep_layers, layer_outputs

DEEP = 3
"""Layers that are watched by default: in a ResNet, the last linear one and both convolutions of the last block."""


@dataclass(frozen=True)
class Ada:
    """The defence; ``Ada().fit(classifier, clean)`` returns a guard.

    1. For every watched layer and class, a mixture of Gaussians is fitted to what goes into the layer on clean images
       that the network decides rightly, its order chosen by BIC: the null.
    2. The statistic of a query x, decided as c*, at one layer: ``"kl"`` is the paper's, KL(P‖Q) over the classes other
       than c*, with P(c) ∝ f(z | c) and Q(c) ∝ p(c | x). It asks whether layer and network agree on the source class,
       and under a backdoor they may. ``"density"``, −log f(z | c*), which is not the paper's, asks whether x looks
       like what it is taken for.
    3. Layers are made comparable by clean images held out of the fit, rightly decided or not: at every layer their
       median becomes 0, and what a false-positive rate of α would refuse there begins at 1. The largest value of all
       layers counts.
    4. The threshold is the quantile of the held-out images that refuses a new clean image with a probability of at
       most α (Vovk, Gammerman, Shafer 2005).

    Args:
        layers: whose inputs are watched; by default those of the last ``DEEP`` layers with weights, without the first
            that runs, whose input is the image. The last of them sees the penultimate features.
        statistic: "density" or "kl".
        false_positive_rate: α, the share of clean queries that may be refused.
        held_out: share of the clean images for the steps 3 and 4.
        mixture: how mixtures are fitted, in coordinates with variance 1 within the classes.
        seed: which images are held out, and the starts of the mixtures.

    """

    method_version: ClassVar[int] = 1

    layers: tuple[str, ...] | None = None
    statistic: Kind = "density"
    false_positive_rate: float = 0.05
    held_out: float = 0.3
    mixture: MixtureSettings = MixtureSettings(regularisation=0.1, dimensions=None)  # noqa: RUF009 - frozen
    seed: int = 0

    def __post_init__(self) -> None:
        if self.statistic not in ("density", "kl"):
            raise UndoorError(f"no statistic is called {self.statistic!r}; take density or kl")
        for name in ("false_positive_rate", "held_out"):
            if not 0 < getattr(self, name) < 1:
                raise UndoorError(f"{name} is {getattr(self, name)}; give a number between 0 and 1")
        if self.layers is not None and (not self.layers or len(set(self.layers)) < len(self.layers)):
            raise UndoorError("no layer is named, or one twice; name each once")
        if self.mixture.dimensions is not None:
            raise UndoorError("classes are compared in the same coordinates; leave dimensions of the mixture at None")

    def fit(
        self,
        classifier: Classifier,
        clean: Dataset,
        *,
        batch_size: int = BATCH_SIZE,
        on_batch: Callable[[int, int], None] | None = None,
        on_layer: Callable[[int, int], None] | None = None,
    ) -> Guard:
        """Fit the nulls and the threshold on clean images, which the network should not have been trained on.

        Args:
            classifier: the network.
            clean: images of every class.
            batch_size: images a forward pass.
            on_batch: told how many of how many images have gone through the network.
            on_layer: told then how many of how many layers are fitted.

        Raises:
            UndoorError: a class without clean images or without any that is decided rightly, fewer than two classes,
                too few images for the false-positive rate, a network for other classes, an unknown layer.

        """
        self._require(clean)
        begun = time.perf_counter()
        layers = self.layers or _default_layers(classifier, clean)
        inputs, logits = layer_outputs(classifier, clean.images, layers, batch_size, on_batch)
        if logits.shape[1] != len(clean.class_names):
            raise UndoorError(
                f"the model tells {logits.shape[1]} classes apart, the data set has {len(clean.class_names)}; "
                "take a model that was trained for these classes"
            )
        seen = time.perf_counter()
        fitted, held = self._split(clean, logits.argmax(axis=1))
        nulls: list[Null] = []
        for layer, values in zip(layers, inputs, strict=True):
            if on_layer is not None:
                on_layer(len(nulls), len(layers))
            nulls.append(self._null(layer, values[fitted], clean.labels[fitted], len(clean.class_names)))
        raw = raw_statistics(nulls, [values[held] for values in inputs], logits[held], self.statistic)
        centres = np.median(raw, axis=1)
        reach = np.array([conformal_quantile(values, self.false_positive_rate) for values in raw]) - centres
        scales = np.where(reach > 0, reach, 1.0)
        largest = ((raw - centres[:, None]) / scales[:, None]).max(axis=0)
        threshold = conformal_quantile(largest, self.false_positive_rate)
        counts = {"clean_images": len(clean), "held_out_images": len(held)}
        return Guard(
            classifier=classifier,
            layers=tuple(layers),
            nulls=tuple(nulls),
            kind=self.statistic,
            centres=centres,
            scales=scales,
            threshold=threshold,
            class_names=clean.class_names,
            shape=clean.images.shape[1:],
            provenance=Provenance(
                defense="ada",
                method_version=self.method_version,
                settings={**asdict(self), "layers": list(layers), **counts},
                seed=self.seed,
                seconds={"features": seen - begun, "nulls": time.perf_counter() - seen},
            ),
        )

    def _require(self, clean: Dataset) -> None:
        classes = len(clean.class_names)
        if classes < 2 + (self.statistic == "kl"):
            least = "three classes, of which two are left beside the decision" if self.statistic == "kl" else "two"
            raise UndoorError(f"the clean images are of {classes} class; the statistic needs {least} or more")
        sizes = np.bincount(clean.labels, minlength=classes)
        for name, size in zip(clean.class_names, sizes, strict=True):
            if size < 2:
                raise UndoorError(f"class {name} has {size} clean images; give two or more of every class")

    def _split(self, clean: Dataset, decisions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows that nulls are fitted on, decided rightly, and those held out, of every class a share."""
        generator = np.random.default_rng(self.seed)
        fitted, held = [], []
        for label, name in enumerate(clean.class_names):
            rows = generator.permutation(np.flatnonzero(clean.labels == label))
            count = min(max(round(self.held_out * len(rows)), 1), len(rows) - 1)
            right = rows[count:][decisions[rows[count:]] == label]
            if not len(right):
                raise UndoorError(
                    f"of {len(rows) - count} clean images of class {name} the model decides none as {name}; "
                    "give more images, or the classes in the order of the model's"
                )
            fitted.append(right)
            held.append(rows[:count])
        return np.sort(np.concatenate(fitted)), np.sort(np.concatenate(held))

    def _null(self, layer: str, values: NDArray[np.float32], labels: NDArray[np.int64], classes: int) -> Null:
        try:
            return fit_null(values, labels, classes, self.mixture, self.seed)
        except UndoorError as error:
            raise UndoorError(f"layer {layer!r}: {error}") from error


def conformal_quantile(values: NDArray[np.float64], false_positive_rate: float) -> float:
    """Return the value that one more draw exceeds with a probability of at most ``false_positive_rate``.

    Of n exchangeable values that is the ⌈(n + 1)(1 − α)⌉-th smallest.
    """
    n = len(values)
    place = int(np.ceil((n + 1) * (1 - false_positive_rate) - 1e-9))
    if place > n:
        needed = int(np.ceil(1 / false_positive_rate - 1 - 1e-9))
        raise UndoorError(
            f"{n} clean images are held out, a false-positive rate of {false_positive_rate} needs {needed}; "
            "give more clean images or a higher rate"
        )
    return float(np.partition(values, place - 1)[place - 1])


def _default_layers(classifier: Classifier, clean: Dataset) -> tuple[str, ...]:
    with classifier.watched() as forward:
        return deep_layers(classifier.model, lambda: forward(classifier.scale(clean.images[:2])), DEEP)

"""ADA: Anomaly Detection of Attacks at test time (Miller, Wang, Kesidis, Neural Computation 2019; arXiv 1712.06646).

The details below are written from the paper's abstract and from general knowledge of it, not from its text or code.
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

WATCHED_LAYERS = 3
"""The number of layers that are watched by default. In a ResNet they are the last linear layer and both convolutions of
the last block."""


@dataclass(frozen=True)
class Ada:
    """The defense; ``Ada().fit(classifier, clean)`` returns a ``Guard``.

    1. For every watched layer and every class, a mixture of Gaussians is fitted to the input of the layer on clean
       images that the network decides correctly. BIC chooses its number of components. This is the null.
    2. Every layer has a statistic of a query x, whose decision is c*. ``"kl"`` is the paper's, KL(P‖Q) over the classes
       other than c*, with P(c) ∝ f(z | c) and Q(c) ∝ p(c | x). It measures whether the layer and the network agree on
       the source class; under a backdoor they may. ``"density"``, −log f(z | c*), is not the paper's. It measures
       whether x looks like an image of c*.
    3. The layers are made comparable with clean images held out of the fit, whether decided correctly or not: at every
       layer their median becomes 0, and the value above which a false-positive rate of α would reject becomes 1. The
       statistic of a query is the largest value of all layers.
    4. The threshold is the quantile of the held-out images at which a new clean image is rejected with a probability of
       at most α (Vovk, Gammerman, Shafer 2005).

    Args:
        layers: the layers whose inputs are watched. By default they are the last three with weights, but not the first
            that runs, whose input is the image. The input of the last of them is the penultimate features.
        statistic: "density" or "kl".
        false_positive_rate: α, the share of clean queries that may be rejected.
        held_out: the share of the clean images that steps 3 and 4 use.
        mixture: how the mixtures are fitted, in coordinates with variance 1 within the classes.
        seed: for choosing the images held out, and for the starts of the mixtures.

    Example:
        >>> import numpy as np, torch, undoor
        >>> labels = np.arange(90) % 3
        >>> images = np.random.default_rng(0).integers(0, 99, (90, 1, 1, 3), dtype=np.uint8)
        >>> images[np.arange(90), 0, 0, labels] += 150  # the brightest pixel shows the class
        >>> clean = undoor.Dataset(images, labels, ("a", "b", "c"), np.arange(90).astype(str))
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 3, bias=False))
        >>> _ = torch.nn.init.eye_(network[1].weight)
        >>> ada = undoor.Ada(layers=("1",), false_positive_rate=0.1)
        >>> guard = ada.fit(undoor.Classifier(network, device="cpu"), clean)
        >>> guard.check(np.full((1, 1, 1, 3), 255, dtype=np.uint8)).rejected
        array([ True])

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
            raise UndoorError(f"no statistic is called {self.statistic!r}; choose density or kl")
        for name in ("false_positive_rate", "held_out"):
            if not 0 < getattr(self, name) < 1:
                raise UndoorError(f"{name} is {getattr(self, name)}; give a number between 0 and 1")
        if self.layers is not None and (not self.layers or len(set(self.layers)) < len(self.layers)):
            raise UndoorError("layers names no layer, or a layer twice; name one or more, each once")
        if self.mixture.dimensions is not None:
            raise UndoorError(
                "all classes are compared in the same coordinates; leave the dimensions of the mixture at None"
            )

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
            batch_size: the images in a forward pass.
            on_batch: called with the number of images that have gone through the network, and of all.
            on_layer: called after that with the number of layers that are fitted, and of all.

        Raises:
            UndoorError: if there are fewer than two classes, a class without clean images or without any that is
                decided correctly, too few images for the false-positive rate, a network for other classes, or an
                unknown layer.

        """
        self._require(clean)
        begun = time.perf_counter()
        layers = self.layers or _last_layers(classifier, clean)
        inputs, logits = layer_outputs(classifier, clean.images, layers, batch_size, on_batch)
        if logits.shape[1] != len(clean.class_names):
            raise UndoorError(
                f"the model tells {logits.shape[1]} classes apart, the data set has {len(clean.class_names)}; "
                "take a model that was trained for these classes"
            )
        passed = time.perf_counter()
        fitted, held = self._split(clean, logits.argmax(axis=1))
        nulls: list[Null] = []
        for layer, values in zip(layers, inputs, strict=True):
            if on_layer is not None:
                on_layer(len(nulls), len(layers))
            nulls.append(self._null(layer, values[fitted], clean.labels[fitted], len(clean.class_names)))
        raw = raw_statistics(nulls, [values[held] for values in inputs], logits[held], self.statistic)
        centres = np.median(raw, axis=1)
        quantiles = np.array([conformal_quantile(values, self.false_positive_rate) for values in raw])
        scales = np.where(quantiles > centres, quantiles - centres, 1.0)
        largest = ((raw - centres[:, None]) / scales[:, None]).max(axis=0)
        settings = {name: value for name, value in asdict(self).items() if name != "seed"}
        counts = {"clean_images": len(clean), "held_out_images": len(held)}
        return Guard(
            provenance=Provenance(
                defense="ada",
                method_version=self.method_version,
                settings={**settings, "layers": list(layers), **counts},
                seed=self.seed,
                seconds={"features": passed - begun, "nulls": time.perf_counter() - passed},
            ),
            classifier=classifier, layers=tuple(layers), nulls=tuple(nulls), kind=self.statistic,
            centres=centres, scales=scales, threshold=conformal_quantile(largest, self.false_positive_rate),
            class_names=clean.class_names, shape=clean.images.shape[1:],
        )  # fmt: skip

    def _require(self, clean: Dataset) -> None:
        classes = len(clean.class_names)
        if classes < 2 + (self.statistic == "kl"):
            least = "three classes, so that two are left beside the decision" if self.statistic == "kl" else "two"
            raise UndoorError(f"the clean images are of {classes} class; the statistic needs {least} or more")
        sizes = np.bincount(clean.labels, minlength=classes)
        for name, size in zip(clean.class_names, sizes, strict=True):
            if size < 2:
                raise UndoorError(f"class {name} has {size} clean images; give two or more of every class")

    def _split(self, clean: Dataset, decisions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows that the nulls are fitted on, all decided correctly, and the rows held out of every class."""
        generator = np.random.default_rng(self.seed)
        fitted, held = [], []
        for label, name in enumerate(clean.class_names):
            rows = generator.permutation(np.flatnonzero(clean.labels == label))
            count = min(max(round(self.held_out * len(rows)), 1), len(rows) - 1)
            correct = rows[count:][decisions[rows[count:]] == label]
            if not len(correct):
                raise UndoorError(
                    f"of {len(rows) - count} clean images of class {name} the model decides none as {name}; "
                    "give more images, or give the classes in the order of the model"
                )
            fitted.append(correct)
            held.append(rows[:count])
        return np.sort(np.concatenate(fitted)), np.sort(np.concatenate(held))

    def _null(self, layer: str, values: NDArray[np.float32], labels: NDArray[np.int64], classes: int) -> Null:
        try:
            return fit_null(values, labels, classes, self.mixture, self.seed)
        except UndoorError as error:
            raise UndoorError(f"layer {layer!r}: {error}") from error


def conformal_quantile(values: NDArray[np.float64], false_positive_rate: float) -> float:
    """Return the value that another draw exceeds with a probability of at most α, the ``false_positive_rate``.

    If the n values and the draw are exchangeable, that is the ⌈(n + 1)(1 − α)⌉-th smallest value.
    """
    n = len(values)
    rank = int(np.ceil((n + 1) * (1 - false_positive_rate) - 1e-9))
    if rank > n:
        needed = int(np.ceil(1 / false_positive_rate - 1 - 1e-9))
        raise UndoorError(
            f"{n} clean images are held out, a false-positive rate of {false_positive_rate} needs {needed}; "
            "give more clean images or a higher rate"
        )
    return float(np.partition(values, rank - 1)[rank - 1])


def _last_layers(classifier: Classifier, clean: Dataset) -> tuple[str, ...]:
    with classifier.watched() as forward:
        return deep_layers(classifier.model, lambda: forward(classifier.scale(clean.images[:2])), WATCHED_LAYERS)

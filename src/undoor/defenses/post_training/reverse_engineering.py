"""Post-training detection by reverse engineering (Xiang, Miller, Kesidis, arXiv 1908.10498; TNNLS).

Given a trained network and a few clean images a class, without its training set: for every ordered pair of classes the
smallest perturbation is sought that sends the one to the other. One that is much smaller than the others is taken for
the trigger of a backdoor.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import permutations
from typing import ClassVar, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from undoor.data.dataset import Dataset
from undoor.defenses.post_training.gamma_null import Inference, Rule, infer
from undoor.defenses.post_training.inspection import PAIR_COLUMNS, Inspection
from undoor.defenses.post_training.perturbations import Descent, Forward, Images, OnPair, Pair, Perturbations
from undoor.errors import UndoorError
from undoor.findings.provenance import Provenance
from undoor.networks.classifier import BATCH_SIZE, Classifier

CANDIDATES = 4
"""Images a class that are looked at for every one that is wanted."""


class Search(Protocol):
    """How the perturbations are sought: ``Descent``, or ``RandomDirection`` as its control."""

    def __call__(
        self,
        forward: Forward,
        images: Images,
        pairs: Sequence[Pair],
        share: float,
        batch_size: int,
        seed: int,
        *,
        on_pair: OnPair | None = None,
    ) -> Perturbations:
        """Return the perturbations of the pairs; tell ``on_pair`` about how many of how many are found."""
        ...


@dataclass(frozen=True)
class ReverseEngineering:
    """The method; ``ReverseEngineering()(classifier, dataset)`` returns its inspection.

    Both inferences are made, and ``rule`` says which of them decides. B compares each target with all other targets
    and sees a backdoor of many sources as well as of one; A compares the closest pair with all pairs.

    Args:
        images: clean images a class, at most, drawn by the seed from those that the network decides as labelled.
        share: π, of these images that a perturbation must send to the target.
        rule: "A" or "B".
        level: a backdoor is detected at p ≤ ``level``.
        search: how the perturbations are sought.
        seed: of the images, and of the directions of the control.
        batch_size: images a forward pass.

    """

    method_version: ClassVar[int] = 1

    images: int = 50
    share: float = 0.9
    rule: Rule = "B"
    level: float = 0.05
    search: Search = field(default_factory=Descent)
    seed: int = 0
    batch_size: int = BATCH_SIZE

    def __post_init__(self) -> None:
        if self.rule not in ("A", "B"):
            raise UndoorError(f"there is no rule {self.rule!r}; choose A or B")
        if self.images < 1:
            raise UndoorError(f"{self.images} images a class are too few; give 1 or more, best 10 to 100")
        for name, value in (("share", self.share), ("level", self.level)):
            if not 0 < value <= 1:
                raise UndoorError(f"the {name} is {value}; give a number above 0, up to 1")

    def __call__(self, classifier: Classifier, dataset: Dataset, /, *, on_pair: OnPair | None = None) -> Inspection:
        """Inspect the network with clean images; the network stays as it is.

        ``on_pair`` is told about how many of how many class pairs are done.

        Raises:
            UndoorError: if there are fewer than three classes, a class without an image that is decided as labelled,
                or gradients that vanish or are not finite.

        """
        begun = time.perf_counter()
        drawn = {label: self._draw(classifier, dataset, label) for label in range(len(dataset.class_names))}
        seconds = {"images": time.perf_counter() - begun}
        return self.inspect(classifier, drawn, dataset.class_names, seconds, on_pair)

    def inspect(
        self,
        classifier: Classifier,
        images: Mapping[int, NDArray[np.uint8]],
        class_names: Sequence[str],
        seconds: Mapping[str, float],
        on_pair: OnPair | None = None,
    ) -> Inspection:
        """Inspect the network with the given images, (n, C, H, W) by label, all of which it decides as labelled.

        Labels without images are left out of the inspection. ``seconds``: of earlier stages.
        """
        begun = time.perf_counter()
        if len(images) < 3:
            raise UndoorError(
                f"with {len(images)} classes there are too few pairs to tell an unusual one; give 3 or more"
            )
        names = tuple(class_names[label] for label in images)
        pairs = list(permutations(images, 2))
        with classifier.frozen() as forward:
            scaled = {label: classifier.scale(some) for label, some in images.items()}
            _require_logits(forward, scaled, len(class_names))
            found = self.search(forward, scaled, pairs, self.share, self.batch_size, self.seed, on_pair=on_pair)
        sought = time.perf_counter()
        places = list(permutations(range(len(names)), 2))
        r = np.full((len(names), len(names)), np.nan)
        r[tuple(np.transpose(places))] = 1 / found.norms
        inferences: dict[Rule, Inference] = {rule: infer(r, rule) for rule in ("A", "B")}
        settings = {name: value for name, value in asdict(self).items() if name not in ("seed", "batch_size")}
        settings["search"] = {"method": type(self.search).__name__, **settings["search"]}
        return Inspection(
            pairs=_table(places, found, inferences[self.rule], self.rule, self.level, names),
            perturbations=found.patterns,
            examples=np.stack([some[0] for some in images.values()]),
            inferences=inferences,
            rule=self.rule,
            level=self.level,
            class_names=names,
            images={name: len(some) for name, some in zip(names, images.values(), strict=True)},
            provenance=Provenance(
                defense="reverse_engineering",
                method_version=self.method_version,
                settings=settings,
                seed=self.seed,
                seconds={**seconds, "perturbations": sought - begun, "inference": time.perf_counter() - sought},
            ),
        )

    def _draw(self, classifier: Classifier, dataset: Dataset, label: int) -> NDArray[np.uint8]:
        """Return images of a class that the network decides as labelled."""
        name = dataset.class_names[label]
        rows = np.flatnonzero(dataset.labels == label)
        if not len(rows):
            raise UndoorError(f"there is no clean image of class {name}; add some, best 10 to 100")
        rows = np.random.default_rng((self.seed, label)).permutation(rows)[: CANDIDATES * self.images]
        images = dataset.images[rows]
        right = classifier.decide(images, self.batch_size) == label
        if not right.any():
            raise UndoorError(
                f"none of {len(rows)} images of class {name} is decided as such; check the labels, the order of the "
                "classes, and whether the model needs --mean and --std"
            )
        chosen: NDArray[np.uint8] = images[right][: self.images]
        return chosen


def _require_logits(forward: Forward, images: Images, classes: int) -> None:
    told = forward(next(iter(images.values()))[:1]).shape[1]
    if told != classes:
        raise UndoorError(
            f"the model tells {told} classes apart, the data set has {classes}; "
            "take a model that was trained for these classes"
        )


def _table(
    pairs: Sequence[Pair], found: Perturbations, inference: Inference, rule: Rule, level: float, names: Sequence[str]
) -> pd.DataFrame:
    """Return one row a pair; detected are the closest one and others that are as unusual, under B of its target."""
    p = inference.by_pair[tuple(np.transpose(pairs))]
    alike = np.array([pair == inference.pair or rule == "A" or pair[1] == inference.pair[1] for pair in pairs])
    most = np.array([pair == inference.pair for pair in pairs])
    columns = (
        [names[s] for s, _ in pairs],
        [names[t] for _, t in pairs],
        found.norms,
        found.shares,
        1 / found.norms,
        found.reached,
        found.steps,
        p,
        (most | (alike & (p <= level))) & (inference.p <= level),
    )
    return pd.DataFrame(dict(zip(PAIR_COLUMNS, columns, strict=True)))

"""Post-training detection by reverse engineering (Xiang, Miller, Kesidis, arXiv 1908.10498; TNNLS).

It needs a trained network and a few clean images of each class, but not the training set. For every ordered pair of
classes it seeks the smallest perturbation that sends the images of the one to the other. A perturbation that is much
smaller than the others is taken for the trigger of a backdoor.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import permutations
from typing import ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from undoor.data.dataset import Dataset
from undoor.defenses.post_training.gamma_null import Inference, Rule, infer
from undoor.defenses.post_training.inspection import PAIR_COLUMNS, Inspection
from undoor.defenses.post_training.perturbations import Descent, OnPair, Pair, Perturbations, RandomDirection
from undoor.errors import UndoorError
from undoor.findings.provenance import Provenance
from undoor.networks.classifier import BATCH_SIZE, Classifier

CANDIDATES = 4
"""For each image that is wanted, this many are drawn, so that enough of them are decided as labelled."""


Search = Descent | RandomDirection
"""How the perturbations are sought. ``RandomDirection`` is a control."""


@dataclass(frozen=True)
class ReverseEngineering:
    """The method; ``ReverseEngineering()(classifier, dataset)`` returns an ``Inspection``.

    Both rules infer a p-value, and ``rule`` names the one that decides. B compares each target with all other targets,
    and finds a backdoor of many source classes as well as of one. A compares the closest pair with all pairs.

    Args:
        images: at most this many clean images of each class are used, drawn from those that are decided as labelled.
        share: π, the share of these images that a perturbation must send to the target.
        rule: "A" or "B".
        level: a backdoor is detected if p ≤ ``level``.
        search: how the perturbations are sought.
        seed: for drawing the images, and the directions of the control.
        batch_size: the images in a forward pass.

    Example:
        >>> import numpy as np, torch, undoor
        >>> labels = np.arange(90) % 3
        >>> images = np.random.default_rng(0).integers(0, 99, (90, 1, 1, 3), dtype=np.uint8)
        >>> images[np.arange(90), 0, 0, labels] += 150  # the brightest pixel shows the class
        >>> clean = undoor.Dataset(images, labels, ("a", "b", "c"), np.arange(90).astype(str))
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 3, bias=False))
        >>> _ = torch.nn.init.eye_(network[1].weight)
        >>> inspection = undoor.ReverseEngineering(images=5)(undoor.Classifier(network), clean)
        >>> inspection.verdict
        'clean'
        >>> inspection.perturbation("a", "b").shape
        (1, 1, 3)

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

        Args:
            classifier: the network.
            dataset: clean images of every class.
            on_pair: called with about how many class pairs are done, and how many there are.

        Raises:
            UndoorError: if there are fewer than three classes, a class without an image that is decided as labelled,
                or gradients that vanish or are not finite.

        """
        begun = time.perf_counter()
        drawn = {label: self._draw(classifier, dataset, label) for label in range(len(dataset.class_names))}
        seconds = {"images": time.perf_counter() - begun}
        inspection = self.inspect(classifier, drawn, dataset.class_names, on_pair=on_pair)
        return replace(inspection, provenance=inspection.provenance.after_stages(seconds))

    def inspect(
        self,
        classifier: Classifier,
        images: Mapping[int, NDArray[np.uint8]],
        class_names: Sequence[str],
        *,
        on_pair: OnPair | None = None,
    ) -> Inspection:
        """Inspect the network with the given images, (n, C, H, W) by label, all of which it decides as labelled.

        Labels without images are left out of the inspection. ``class_names`` are the names of all labels.
        """
        begun = time.perf_counter()
        if len(images) < 3:
            raise UndoorError(
                f"with {len(images)} classes there are too few pairs to tell an unusual one; give 3 or more"
            )
        names = tuple(class_names[label] for label in images)
        with classifier.frozen() as forward:
            scaled = {label: classifier.scale(images_of_class) for label, images_of_class in images.items()}
            logits = forward(next(iter(scaled.values()))[:1])
            if logits.shape[1] != len(class_names):
                raise UndoorError(
                    f"the model tells {logits.shape[1]} classes apart, the data set has {len(class_names)}; "
                    "take a model that was trained for these classes"
                )
            perturbations = self.search(
                forward, scaled, list(permutations(images, 2)),
                share=self.share, batch_size=self.batch_size, seed=self.seed, on_pair=on_pair,
            )  # fmt: skip
        sought = time.perf_counter()
        pairs = list(permutations(range(len(names)), 2))  # the same pairs, as rows and columns of r
        r = np.full((len(names), len(names)), np.nan)
        r[tuple(np.transpose(pairs))] = 1 / perturbations.norms
        inferences: dict[Rule, Inference] = {rule: infer(r, rule) for rule in ("A", "B")}
        settings = {name: value for name, value in asdict(self).items() if name not in ("seed", "batch_size")}
        settings["search"] = {"method": type(self.search).__name__, **settings["search"]}
        return Inspection(
            provenance=Provenance(
                defense="reverse_engineering",
                method_version=self.method_version,
                settings=settings,
                seed=self.seed,
                seconds={"perturbations": sought - begun, "inference": time.perf_counter() - sought},
            ),
            pairs=self._table(pairs, perturbations, inferences[self.rule], names),
            perturbations=perturbations.patterns,
            examples=np.stack([images_of_class[0] for images_of_class in images.values()]),
            inferences=inferences, rule=self.rule, level=self.level, class_names=names,
            images=dict(zip(names, map(len, images.values()), strict=True)),
        )  # fmt: skip

    def _draw(self, classifier: Classifier, dataset: Dataset, label: int) -> NDArray[np.uint8]:
        """Return images of a class that the network decides as labelled."""
        name = dataset.class_names[label]
        rows = np.flatnonzero(dataset.labels == label)
        if not len(rows):
            raise UndoorError(f"there is no clean image of class {name}; add some, best 10 to 100")
        rows = np.random.default_rng((self.seed, label)).permutation(rows)[: CANDIDATES * self.images]
        images = dataset.images[rows]
        as_labelled = classifier.decide(images, self.batch_size) == label
        if not as_labelled.any():
            raise UndoorError(
                f"none of {len(rows)} images of class {name} is decided as such; check the labels, the order of the "
                "classes, and whether the model needs --mean and --std"
            )
        chosen: NDArray[np.uint8] = images[as_labelled][: self.images]
        return chosen

    def _table(
        self, pairs: Sequence[Pair], perturbations: Perturbations, inference: Inference, names: Sequence[str]
    ) -> pd.DataFrame:
        """Return one row a pair.

        If a backdoor is detected, the closest pair is, and so is every other pair (by rule B, of its target) whose own
        p is at most the level.
        """
        p = inference.by_pair[tuple(np.transpose(pairs))]
        closest = np.array([pair == inference.pair for pair in pairs])
        candidates = np.array([self.rule == "A" or target == inference.pair[1] for _, target in pairs])
        columns = (
            [names[source] for source, _ in pairs],
            [names[target] for _, target in pairs],
            perturbations.norms,
            perturbations.shares,
            1 / perturbations.norms,
            perturbations.reached,
            perturbations.steps,
            p,
            (closest | (candidates & (p <= self.level))) & (inference.p <= self.level),
        )
        return pd.DataFrame(dict(zip(PAIR_COLUMNS, columns, strict=True)))

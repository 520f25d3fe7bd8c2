"""Training-set cleansing by reverse engineering (Xiang, Miller, Kesidis, arXiv 2010.07489).

The network was trained on the set, which may be poisoned. A trigger sends clean images to the target class when it is
added, and sends poisoned images away from it when it is subtracted. The pattern that does both is estimated. Images
that the target class loses when the pattern is subtracted are poisoned.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from undoor.defenses.post_training.inspection import Inspection
from undoor.defenses.post_training.perturbations import Descent, OnPair
from undoor.defenses.post_training.reverse_engineering import ReverseEngineering
from undoor.defenses.training_set.per_class import sample_table
from undoor.errors import UndoorError
from undoor.evidence import Evidence
from undoor.findings.findings import Findings
from undoor.findings.provenance import Provenance
from undoor.networks.classifier import Classifier

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class PatternCleansing:
    """Estimate the trigger of a backdoor and flag the images of the target class that rest on it.

    1. The smallest perturbations of all class pairs show whether there is a backdoor, and of which pair (s, t), as
       after training; they are sought on training images that are decided as labelled. The paper infers it from one
       pattern for each target. We do not: K values are too few for a null distribution, and a backdoor with one source
       class does not move the images of all other classes.
    2. For that pair the pattern v is estimated with the paper's objective,

           mean over images of s of −log p_t(x + v)  +  mean over images labelled t of −log(1 − p_t(x − v)),

       as the shortest v that sends the share π of class s to t.
    3. The score of an image labelled t is p_t(x) − p_t(x − v), the probability that it owes to v. It is flagged above
       the threshold. Images of other classes score 0. If no backdoor is inferred, nothing is flagged.

    Args:
        classifier: the network that was trained on the images, or a function that loads it.
        images: (N, C, H, W) uint8, in the order of the evidence.
        inspection: how a backdoor is inferred. The estimate uses its number of images per class, its seed and, if that
            descends the gradient, its search.
        labelled: the largest number of images labelled t from which the pattern is estimated.
        threshold: of the score, between 0 and 1.
        on_pair: called with the numbers of class pairs that are done and of all class pairs.

    Raises:
        UndoorError: a setting is out of range, the images are not those of the evidence, there are fewer than three
            classes, or the network has no useful gradients.

    >>> import numpy as np
    >>> import torch
    >>> import undoor
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(5, 4))
    >>> model[1].weight.data = torch.tensor(np.eye(4, 5, dtype="f") * 20)
    >>> model[1].weight.data[3, 4] = 60  # the trigger is the last pixel, the target class the last class
    >>> labels = np.repeat([0, 1, 2, 3], 10)
    >>> images = np.zeros((40, 1, 1, 5), np.uint8)
    >>> images[np.arange(40), 0, 0, labels] = 200
    >>> images[36:] = [200, 0, 0, 0, 120]
    >>> dataset = undoor.Dataset(images, labels, tuple("abcd"), np.arange(40).astype(str))
    >>> evidence = undoor.collect(undoor.Classifier(model), dataset, ())
    >>> undoor.PatternCleansing(undoor.Classifier(model), images)(evidence).flagged.nonzero()[0]
    array([36, 37, 38, 39])

    """

    method_version: ClassVar[int] = 1

    classifier: Classifier | Callable[[], Classifier] = field(repr=False, compare=False, metadata={"data": True})
    images: Images = field(repr=False, compare=False, metadata={"data": True})
    inspection: ReverseEngineering = field(default_factory=ReverseEngineering)
    labelled: int = 200
    threshold: float = 0.5
    on_pair: OnPair | None = field(default=None, repr=False, compare=False, metadata={"data": True})

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise UndoorError(f"the threshold is {self.threshold}; give a number between 0 and 1")
        if self.labelled < 1:
            raise UndoorError(f"a pattern cannot be estimated from {self.labelled} images; give 1 or more")

    @cached_property
    def _network(self) -> Classifier:
        return self.classifier if isinstance(self.classifier, Classifier) else self.classifier()

    def __call__(self, evidence: Evidence, /) -> Findings:
        """Infer whether there is a backdoor, estimate its pattern, and flag the images that rest on it."""
        started = time.perf_counter()
        n, names = len(evidence.labels), evidence.class_names
        if len(self.images) != n:
            raise UndoorError(
                f"there are {len(self.images)} images and evidence of {n}; give the images it was made of"
            )
        inspection = self._inspect(evidence)
        inspected = time.perf_counter()
        score = np.zeros(n)
        if inspection.target is not None:
            pair = inspection.inferences[inspection.rule].pair
            s, t = (names.index(inspection.class_names[index]) for index in pair)
            pattern = self._estimate(evidence, s, t)
            if pattern is None:
                pattern = inspection.perturbation(names[s], names[t])
            rows = np.flatnonzero(evidence.labels == t)
            score[rows] = self._owed(rows, t, pattern)
        settings = {"inspection": asdict(self.inspection), "labelled": self.labelled, "p": inspection.p}
        return Findings(
            provenance=Provenance(
                defense="pattern_cleansing",
                method_version=self.method_version,
                settings=settings | {"target": inspection.target, "sources": list(inspection.sources)},
                seed=self.inspection.seed,
                seconds={"inspection": inspected - started, "cleansing": time.perf_counter() - inspected},
            ),
            samples=sample_table(evidence, score, score > self.threshold),
            class_names=names,
            threshold=self.threshold,
        )

    def _inspect(self, evidence: Evidence) -> Inspection:
        images = {label: self._draw(evidence, label, self.inspection.images) for label in np.unique(evidence.labels)}
        usable = {int(label): drawn for label, drawn in images.items() if len(drawn)}
        return self.inspection.inspect(self._network, usable, evidence.class_names, on_pair=self.on_pair)

    def _draw(self, evidence: Evidence, label: int, count: int) -> Images:
        """Return images with this label and decision. They are drawn by their ids: their order does not matter."""
        rows = np.flatnonzero((evidence.labels == label) & (evidence.plain.decisions == label))
        rows = rows[np.argsort(evidence.ids[rows], kind="stable")]
        drawn: Images = self.images[np.random.default_rng((self.inspection.seed, label)).permutation(rows)[:count]]
        return drawn

    def _estimate(self, evidence: Evidence, s: int, t: int) -> NDArray[np.float32] | None:
        """Return the pattern of the pair (s, t), or None if the objective does not reach the share π."""
        settings, search = self.inspection, self.inspection.search
        sources = {s: self._network.scale(self._draw(evidence, s, settings.images))}
        leaving = {t: self._network.scale(self._draw(evidence, t, self.labelled))}
        descent = search if isinstance(search, Descent) else Descent()
        with self._network.frozen() as forward:
            estimate = descent(
                forward, sources, [(s, t)], share=settings.share, batch_size=settings.batch_size, seed=settings.seed,
                leaving=leaving, on_pair=self.on_pair,
            )  # fmt: skip
        return estimate.patterns[0] if estimate.reached[0] else None

    def _owed(self, rows: NDArray[np.int64], t: int, pattern: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return p_t(x) − p_t(x − v) for the images at ``rows``."""
        v = torch.tensor(pattern, device=self._network.device)
        parts = []
        with self._network.frozen() as forward, torch.no_grad():
            for batch in self._network.batches(self.images[rows], self.inspection.batch_size):
                with_v, without = (forward(x).softmax(1)[:, t] for x in (batch, (batch - v).clamp(0, 1)))
                parts.append((with_v - without).double())
        return torch.cat(parts).cpu().numpy()

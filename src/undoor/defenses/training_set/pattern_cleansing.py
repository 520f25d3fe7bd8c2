"""Training-set cleansing by reverse engineering (Xiang, Miller, Kesidis, arXiv 2010.07489).

The network was trained on the possibly poisoned set. A trigger sends clean images to the target class when it is added,
and poisoned images away from it when it is subtracted. The pattern that does both is estimated; images that their class
lets go without it are poisoned.
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
    """The defence; ``PatternCleansing(classifier, images)(evidence)`` returns its findings.

    1. Whether there is a backdoor, and its pair (s, t), is inferred from the smallest perturbations of all class pairs,
       as after training, on training images that are decided as labelled. The paper infers it from one pattern a
       target; K values are a thin null, and a backdoor of one source does not move the images of all others.
    2. For that pair the pattern v is estimated with the paper's objective,

           mean over images of s of −log p_t(x + v)  +  mean over images labelled t of −log(1 − p_t(x − v)),

       again the shortest v that sends the share π of class s to t.
    3. The score of an image labelled t is p_t(x) − p_t(x − v), what v holds it by; above the threshold it is flagged.
       Images of other classes score 0. Where no backdoor is inferred nothing is flagged.

    Args:
        classifier: the network that was trained on the images, or a function that loads it.
        images: (N, C, H, W) uint8, in the order of the evidence.
        inspection: how a backdoor is inferred; its images a class, seed and search serve the estimate too.
        labelled: images labelled t, at most, from which the pattern is estimated.
        threshold: of the score.
        on_pair: told about how many of how many class pairs are done.

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
        """Infer whether there is a backdoor, estimate its pattern, flag the images of the target that rest on it."""
        begun = time.perf_counter()
        n = len(evidence.labels)
        if len(self.images) != n:
            raise UndoorError(
                f"there are {len(self.images)} images and evidence of {n}; give the images it was made of"
            )
        found = self._inspect(evidence)
        inspected = time.perf_counter()
        score = np.zeros(n)
        if found.target is not None:
            s, t = (found.class_names[place] for place in found.inferences[found.rule].pair)
            pattern = self._estimate(evidence, evidence.class_names.index(s), evidence.class_names.index(t), found)
            rows = np.flatnonzero(evidence.labels == evidence.class_names.index(t))
            score[rows] = self._held(rows, evidence.class_names.index(t), pattern)
        settings = {"inspection": asdict(self.inspection), "labelled": self.labelled}
        return Findings(
            provenance=Provenance(
                defense="pattern_cleansing",
                method_version=self.method_version,
                settings=settings | {"p": found.p, "target": found.target, "sources": list(found.sources)},
                seed=self.inspection.seed,
                seconds={"inspection": inspected - begun, "cleansing": time.perf_counter() - inspected},
            ),
            samples=sample_table(evidence, score, score > self.threshold),
            class_names=evidence.class_names,
            threshold=self.threshold,
        )

    def _inspect(self, evidence: Evidence) -> Inspection:
        drawn = {
            label: self._drawn(evidence, label, self.inspection.images) for label in range(len(evidence.class_names))
        }
        usable = {label: self.images[rows] for label, rows in drawn.items() if len(rows)}
        return self.inspection.inspect(self._network, usable, evidence.class_names, on_pair=self.on_pair)

    def _drawn(self, evidence: Evidence, label: int, count: int) -> NDArray[np.int64]:
        """Return rows with this label and decision, drawn by their ids: the order of the samples does not matter."""
        rows = np.flatnonzero((evidence.labels == label) & (evidence.plain.decisions == label))
        rows = rows[np.argsort(evidence.ids[rows], kind="stable")]
        drawn: NDArray[np.int64] = np.random.default_rng((self.inspection.seed, label)).permutation(rows)[:count]
        return drawn

    def _estimate(self, evidence: Evidence, s: int, t: int, found: Inspection) -> NDArray[np.float32]:
        """Return the pattern of the pair (s, t); that of the inspection where the objective does not reach π."""
        search, asked = self.inspection.search, self.inspection
        images, leaving = (
            {label: self._network.scale(self.images[self._drawn(evidence, label, count)])}
            for label, count in ((s, asked.images), (t, self.labelled))
        )
        descent = search if isinstance(search, Descent) else Descent()
        with self._network.frozen() as forward:
            estimate = descent(
                forward, images, [(s, t)], share=asked.share, batch_size=asked.batch_size, seed=asked.seed,
                leaving=leaving, on_pair=self.on_pair,
            )  # fmt: skip
        if not estimate.reached[0]:
            return found.perturbation(evidence.class_names[s], evidence.class_names[t])
        pattern: NDArray[np.float32] = estimate.patterns[0]
        return pattern

    def _held(self, rows: NDArray[np.int64], t: int, pattern: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return p_t(x) − p_t(x − v) of the images at ``rows``."""
        v = torch.tensor(pattern, device=self._network.device)
        held = []
        with self._network.frozen() as forward, torch.no_grad():
            for batch in self._network.batches(self.images[rows], self.inspection.batch_size):
                with_v, without = (forward(x).softmax(1)[:, t] for x in (batch, (batch - v).clamp(0, 1)))
                held.append((with_v - without).double())
        return torch.cat(held).cpu().numpy()

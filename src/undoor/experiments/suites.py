"""What the suites try: cells, and the defences with their settings."""

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from undoor.data.dataset import Dataset
from undoor.data.readers import read
from undoor.defenses.post_training import ReverseEngineering
from undoor.defenses.training_set.activation_clustering import AUTHORS_2020, ActivationClustering
from undoor.defenses.training_set.cluster_impurity import ClusterImpurity
from undoor.defenses.training_set.controls import PerfectRemoval, RandomRemoval
from undoor.defenses.training_set.pattern_cleansing import PatternCleansing
from undoor.defenses.training_set.spectral_signatures import (
    PERCENTILE_85_SHARE,
    SpectralSignatures,
    authors_share,
)
from undoor.errors import UndoorError
from undoor.experiments.cells import Cell, Setting, slug
from undoor.experiments.contenders import Contender
from undoor.experiments.examinations import EXAMINATIONS, Examination
from undoor.filters import Average, Filter, Median, Noise, Quantise
from undoor.networks.recipes import recipe

SINGLE_SIZES = (0.05, 0.10, 0.15, 0.20, 0.25, 0.30, 0.35, 0.40)
MULTIPLE_SIZES = (0.15, 0.20, 0.25, 0.30, 0.35, 0.40)
"""The sizes of Table 2."""

CI, RANDOM = "CI", "random removal"
FILTERS: dict[str, Filter] = {
    "2×2 average, zero padding": Average(2, "zero"),
    "3×3 average": Average(3),
    "3×3 median": Median(3),
    "noise": Noise(),
    "quantisation": Quantise(),
}


CONTENDERS: tuple[Contender, ...] = (
    Contender(CI, lambda known: ClusterImpurity(seed=known.seed), retrain=True),
    Contender("CI, one look", lambda known: ClusterImpurity(second_look=False, seed=known.seed)),
    Contender("CI, poster", lambda known: ClusterImpurity.poster(seed=known.seed)),
    Contender("CI, authors' code", lambda known: ClusterImpurity.authors_code(seed=known.seed)),
    Contender("SS", lambda _: SpectralSignatures(), retrain=True),
    Contender("SS, 85th percentile", lambda _: SpectralSignatures(PERCENTILE_85_SHARE)),
    Contender("AC", lambda known: ActivationClustering("relative-size", seed=known.seed), retrain=True),
    Contender("AC, smaller cluster", lambda known: ActivationClustering("smaller", seed=known.seed)),
    Contender("AC, silhouette", lambda known: ActivationClustering("silhouette", seed=known.seed)),
    Contender("AC, PCA", lambda known: ActivationClustering("relative-size", whiten=False, seed=known.seed)),
    Contender("AC, 2020 variant", lambda known: replace(AUTHORS_2020, seed=known.seed)),
    Contender(
        RANDOM,
        lambda known: RandomRemoval(known.flagged.get(CI, 0), known.seed),
        retrain=True,
    ),
    Contender("perfect removal", lambda known: PerfectRemoval(known.poisoned), oracle=True, retrain=True),
    Contender("SS, target class", lambda known: SpectralSignatures(classes=known.classes), oracle=True),
    Contender(
        "SS, 1.5 ε of target class",
        lambda known: SpectralSignatures(authors_share(known.poisoned_share), known.classes),
        oracle=True,
    ),
    Contender(
        "AC, smaller cluster of target class",
        lambda known: ActivationClustering("smaller", classes=known.classes, seed=known.seed),
        oracle=True,
    ),
)
"""Every defence decides blindly, but for the oracle settings: the published figures of SS and AC rest on those."""

ABLATIONS: tuple[Contender, ...] = (
    Contender("CI, K = 1 skipped", lambda known: ClusterImpurity(skip_single=True, seed=known.seed)),
    Contender("CI, not conditioned", lambda known: ClusterImpurity(conditioned=False, seed=known.seed)),
    *(
        Contender(f"CI, {name}", lambda known: ClusterImpurity(seed=known.seed), image_filter=h)
        for name, h in FILTERS.items()
    ),
)
"""Variants of CI that METHODS leave open; tried in the cells that say so."""

RE = Contender(
    "RE",
    lambda known: PatternCleansing(
        known.network, known.images, ReverseEngineering(seed=known.seed), on_pair=known.check
    ),
    retrain=True,
)
"""The training-set form of reverse engineering, which asks for minutes: tried where the other moments are too."""

EXRE = Contender(
    "AC, ExRe", lambda known: ActivationClustering(rule="exre", retrain=known.retrain, seed=known.seed), retrain=False
)
"""Activation Clustering that trains once more for every class: only where a training takes seconds."""


@dataclass(frozen=True)
class Suite:
    """A grid of cells in one setting.

    Args:
        setting: what the cells share.
        cells: in the order in which they are worked on: what says most comes first.
        contenders: tried in every cell.
        ablations: tried in the cells with ablations as well.
        examined: tried in the cells that are examined as well.
        examinations: defences of other moments, tried in these cells too.
        grid: names of all cells of the suite, also of those that are not worked on.

    """

    setting: Setting
    cells: tuple[Cell, ...]
    contenders: tuple[Contender, ...] = CONTENDERS
    ablations: tuple[Contender, ...] = ABLATIONS
    examined: tuple[Contender, ...] = (RE,)
    examinations: tuple[Examination, ...] = EXAMINATIONS
    grid: tuple[str, ...] = ()

    def examinations_of(self, cell: Cell) -> tuple[Examination, ...]:
        """Return the examinations of a cell."""
        return self.examinations if cell.examined else ()

    def of(self, cell: Cell) -> tuple[Contender, ...]:
        """Return the contenders of a cell; where nothing is planted there is nothing for an oracle to know."""
        tried = self.contenders + (self.ablations if cell.ablations else ())
        tried += self.examined if cell.examined else ()
        return tuple(one for one in tried if not (one.oracle and cell.scenario == "clean"))


def suite(
    name: str,
    *,
    data: str | None = None,
    preset: str | None = None,
    epochs: int | None = None,
    seeds: Sequence[int] = (0,),
    cells: str = "*",
    contenders: Sequence[str] = ("*",),
) -> Suite:
    """Return the suite ``quick`` (embedded digits) or ``paper`` (the CIFAR-10 grid of MLSP 2019).

    Args:
        name: of the suite.
        data: for ``paper``, CIFAR-10 with its training and test split, as ``undoor.read`` takes it.
        preset: of the trainings; by default ``paper`` for ``paper`` and ten epochs of ``fast`` for ``quick``.
        epochs: instead of the preset's.
        seeds: every cell is repeated with each.
        cells: patterns with commas, such as ``multiple-source-*,clean-s0``; only cells whose name fits one of them are
            worked on.
        contenders: patterns such as ``ci`` or ``ss*``, of names as they stand in the files of the findings; only
            contenders whose name fits one of them compete.

    """
    if name == "quick":
        digits = read("digits"), read("digits", split="test")
        setting = Setting(
            "quick", "digits", *digits, "7", "0", 300, recipe(preset or "fast", epochs=epochs or 10),
            test_sizes=SINGLE_SIZES,
        )  # fmt: skip
        ablations = (*ABLATIONS, EXRE)
    elif name == "paper":
        if data is None:
            raise UndoorError("the suite paper needs CIFAR-10; give --data, a folder with its train and test split")
        cifar = read(data), read(data, split="test")
        setting = Setting(
            "paper", _data_name(cifar[0], data), *cifar, "airplane", "bird", 1000,
            recipe(preset or "paper", epochs=epochs), test_sizes=SINGLE_SIZES,
        )  # fmt: skip
        ablations = ABLATIONS
    else:
        raise UndoorError(f"there is no suite {name!r}; choose quick or paper")
    grid = [cell for seed in seeds for cell in _grid(seed)]
    chosen = tuple(cell for cell in grid if any(fnmatch.fnmatch(cell.name, pattern) for pattern in cells.split(",")))
    if not chosen:
        raise UndoorError(f"no cell is called {cells!r}; the first are {', '.join(cell.name for cell in grid[:4])}")
    competing, variants, slow = (_competing(contenders, of) for of in (CONTENDERS, ablations, (RE,)))
    names = [slug(contender.name) for contender in competing + variants + slow]
    if not names:
        known = ", ".join(slug(contender.name) for contender in (*CONTENDERS, *ablations, RE))
        raise UndoorError(f"no contender is called {' or '.join(contenders)}; there are {known}")
    if slug(RANDOM) in names and slug(CI) not in names:
        raise UndoorError(f"{slug(RANDOM)} removes as many images as {slug(CI)} flags; name {slug(CI)} too")
    return Suite(setting, chosen, competing, variants, slow, grid=tuple(cell.name for cell in grid))


def _competing(patterns: Sequence[str], contenders: Sequence[Contender]) -> tuple[Contender, ...]:
    """Return the contenders whose name, as part of a file's name, fits one of the patterns."""
    return tuple(one for one in contenders if any(fnmatch.fnmatch(slug(one.name), pattern) for pattern in patterns))


def _grid(seed: int) -> list[Cell]:
    """Return the cells of the paper; those with ablations first, then by size, the large ones first."""
    first = seed == 0
    cells = [
        Cell("multiple-source", 0.25, seed, ablations=first),
        Cell("clean", seed=seed, ablations=first),
        Cell("single-source", 0.25, seed, ablations=first),
        Cell("multiple-source", 0.25, seed, keep_originals=False),
    ]
    others = [Cell("multiple-source", size, seed) for size in reversed(MULTIPLE_SIZES)]
    others += [Cell("single-source", size, seed) for size in reversed(SINGLE_SIZES)]
    return cells + [cell for cell in others if cell.size != 0.25]


JPEG_COPY = "cca02df3cfeba1edddc9e03355c491a1"
"""Fingerprint of the training set of the copy of CIFAR-10 that was encoded as JPEG at quality 75."""


def _data_name(train: Dataset, source: str) -> str:
    if train.fingerprint() == JPEG_COPY:
        return "CIFAR-10 (JPEG q75)"
    return f"{Path(source).name} ({train.fingerprint()[:8]})"

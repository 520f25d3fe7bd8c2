"""The suites: which cells they have, and which contenders are run in them."""

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from undoor.data.dataset import Dataset
from undoor.data.readers import read
from undoor.errors import UndoorError
from undoor.experiments.before_training import ABLATIONS, CI, CONTENDERS, EXRE, RANDOM, RE
from undoor.experiments.cells import Cell, Setting
from undoor.experiments.contenders import Contender, slug
from undoor.experiments.on_network import ON_NETWORK
from undoor.networks.recipes import recipe

SINGLE_SIZES = (0.05, 0.10, 0.15, 0.20, 0.25, 0.30, 0.35, 0.40)
"""Sizes of the trigger in the single-source scenario."""

MULTIPLE_SIZES = (0.15, 0.20, 0.25, 0.30, 0.35, 0.40)
"""Sizes of the trigger in the multiple-source scenario: those of Table 2."""

EXAMINED: tuple[Contender, ...] = (RE, *ON_NETWORK)
"""The slow contenders, which are run in the cells that are examined."""

ALL_CONTENDERS: tuple[Contender, ...] = (*CONTENDERS, *ABLATIONS, EXRE, *EXAMINED)

JPEG_COPY = "cca02df3cfeba1edddc9e03355c491a1"
"""Fingerprint of the training set of a copy of CIFAR-10 that was encoded as JPEG with quality 75."""


@dataclass(frozen=True)
class Suite:
    """A grid of cells in one setting.

    Args:
        setting: what the cells share.
        cells: the cells, in the order in which they are worked on: those that say most come first.
        contenders: the contenders of all cells.
        ablations: further contenders of the cells with ablations.
        examined: further contenders of the cells that are examined.
        grid: the names of all cells of the suite, of which ``cells`` may be a part.

    """

    setting: Setting
    cells: tuple[Cell, ...]
    contenders: tuple[Contender, ...] = CONTENDERS
    ablations: tuple[Contender, ...] = ABLATIONS
    examined: tuple[Contender, ...] = EXAMINED
    grid: tuple[str, ...] = ()

    def contenders_of(self, cell: Cell) -> tuple[Contender, ...]:
        """Return the contenders of a cell. In a clean cell there is nothing that an oracle could know."""
        contenders = self.contenders + (self.ablations if cell.ablations else ())
        contenders += self.examined if cell.examined else ()
        return tuple(c for c in contenders if not (c.oracle and cell.scenario == "clean"))


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
        name: name of the suite.
        data: for ``paper``: CIFAR-10 with its training and test split, as ``undoor.read`` takes it.
        preset: preset of the trainings; by default ``paper`` for ``paper``, and ``fast`` with ten epochs for ``quick``.
        epochs: number of epochs instead of the preset's.
        seeds: every cell is repeated with each of these seeds.
        cells: patterns with commas, such as ``multiple-source-*,clean-s0``. Only cells whose name fits a pattern are
            worked on.
        contenders: patterns such as ``ci`` or ``ss*`` of names as they stand in the files of results. Only contenders
            whose name fits a pattern are run.

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
    grid = grid_of(seeds)
    chosen = tuple(cell for cell in grid if any(fnmatch.fnmatch(cell.name, pattern) for pattern in cells.split(",")))
    if not chosen:
        raise UndoorError(f"no cell is called {cells!r}; the first are {', '.join(cell.name for cell in grid[:4])}")
    competing, variants, slow = (_matching(contenders, part) for part in (CONTENDERS, ablations, EXAMINED))
    names = [contender.slug for contender in (*competing, *variants, *slow)]
    if not names:
        existing = ", ".join(contender.slug for contender in (*CONTENDERS, *ablations, *EXAMINED))
        raise UndoorError(f"no contender is called {' or '.join(contenders)}; there are {existing}")
    if slug(RANDOM) in names and slug(CI) not in names:
        raise UndoorError(f"{slug(RANDOM)} removes as many images as {slug(CI)} flags; name {slug(CI)} too")
    return Suite(setting, chosen, competing, variants, slow, tuple(cell.name for cell in grid))


def grid_of(seeds: Sequence[int]) -> list[Cell]:
    """Return the cells of the paper for these seeds: cells with ablations first, then large triggers before small."""
    return [cell for seed in seeds for cell in _grid(seed)]


def _matching(patterns: Sequence[str], contenders: Sequence[Contender]) -> tuple[Contender, ...]:
    """Return the contenders whose name, as part of a file's name, fits one of the patterns."""
    return tuple(c for c in contenders if any(fnmatch.fnmatch(c.slug, pattern) for pattern in patterns))


def _grid(seed: int) -> list[Cell]:
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


def _data_name(train: Dataset, source: str) -> str:
    if train.fingerprint() == JPEG_COPY:
        return "CIFAR-10 (JPEG q75)"
    return f"{Path(source).name} ({train.fingerprint()[:8]})"

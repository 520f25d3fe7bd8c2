"""Work on the cells of a suite: what is done, what is left, and when to stop."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from undoor.classifier import default_device
from undoor.engine import Engine, as_finished
from undoor.experiments.cells import Cell, Experiment
from undoor.experiments.store import Store
from undoor.experiments.suites import Suite
from undoor.training import Step
from undoor.victims import Wanted, fit_victims

Item = TypeVar("Item")

TOGETHER = 16
"""Networks that are trained at once on a GPU."""


class OutOfTime(Exception):  # noqa: N818 - nothing went wrong
    """The time budget is spent; what is done is in the store."""


@dataclass
class Progress:
    """How far one cell is."""

    victim: bool = False
    found: int = 0
    contenders: int = 0
    retrained: int = 0
    retrainings: int = 0

    @property
    def trainings_left(self) -> int:
        """How many networks are still to be trained, as far as is known."""
        return (not self.victim) + self.retrainings - self.retrained

    @property
    def unfinished(self) -> bool:
        """Whether anything is left."""
        return self.found < self.contenders or self.trainings_left > 0


@dataclass
class Board:
    """What is done, running and left, cell by cell."""

    cells: dict[str, Progress]
    running: str = ""
    seconds_a_training: float | None = None

    @property
    def seconds_left(self) -> float | None:
        """An estimate from the latest training; None before there was one."""
        if self.seconds_a_training is None:
            return None
        return self.seconds_a_training * sum(cell.trainings_left for cell in self.cells.values())

    @property
    def done(self) -> int:
        """How many cells have nothing left."""
        return sum(not cell.unfinished for cell in self.cells.values())

    @property
    def finished(self) -> bool:
        """Whether nothing is left."""
        return not any(cell.unfinished for cell in self.cells.values())


@dataclass
class Bench:
    """A run of a suite in a folder.

    Args:
        suite: what to work on.
        store: where results are kept.
        retraining: whether networks are trained again without what was flagged.
        budget: seconds after which the run stops at the next whole epoch; None has no end.
        together: how many networks are trained at once; on a GPU several share it.
        engine: "local" works on one cell after another, here; the others give every cell to a process, and tell
            when it has come back. On a cluster the store lies in a folder that all nodes share.
        on_change: told whenever something begins or ends, and after every training step.

    """

    suite: Suite
    store: Store
    retraining: bool = True
    budget: float | None = None
    together: int = field(default_factory=lambda: TOGETHER if default_device() == "cuda" else 1)
    engine: Engine = Engine("local")  # noqa: RUF009 - frozen
    on_change: Callable[[Board, Step | None], None] = lambda *_: None

    def run(self) -> Board:
        """Work on every cell until all is done or the time is spent; return what is done and what is left."""
        self._deadline = None if self.budget is None else time.monotonic() + self.budget
        self._board = board = Board({cell.name: self._progress(cell) for cell in self.suite.cells})
        try:
            if self.engine.kind == "local":
                self._work_here()
            else:
                self._give_away()
        except OutOfTime:
            pass
        board.running = ""
        return board

    def _work_here(self) -> None:
        for group in batched(self.suite.cells, self.together):
            self._detect([self._experiment(cell) for cell in group])
        for group in batched(self.suite.cells, self.together) if self.retraining else ():
            self._retrain([self._experiment(cell) for cell in group])

    def _give_away(self) -> None:
        """Give every cell to the engine: first for victim and findings, then for the retraining.

        When the second round begins, the victims of clean cells are there for others that want the same network.
        """
        cells, board = self.suite.cells, self._board
        store = Store(self.store.root.resolve())
        end = None if self.budget is None else time.time() + self.budget
        for retraining in (False, True) if self.retraining else (False,):
            work = partial(_work_on, suite=replace(self.suite, cells=()), store=store, retraining=retraining, end=end)
            self._begin(f"{len(cells)} cells on {self.engine.kind}")
            for number, done in as_finished(work, cells, self.engine):
                name = cells[number].name
                board.cells[name] = replace(done, retrainings=board.cells[name].retrainings)
                self.on_change(board, None)

    def _progress(self, cell: Cell) -> Progress:
        contenders = self.suite.of(cell)
        again = sum(contender.retrain for contender in contenders) if self.retraining else 0
        return Progress(contenders=len(contenders) + len(self.suite.examinations_of(cell)), retrainings=again)

    def _experiment(self, cell: Cell) -> Experiment:
        filters = tuple(dict.fromkeys(contender.image_filter for contender in self.suite.of(cell)))
        return Experiment(cell, self.suite.setting, self.store, filters)

    def _detect(self, group: list[Experiment]) -> None:
        """Train the victims and run every defence on what they make of their training sets."""
        self._begin(f"{_named(group)}: victim")
        seconds = self._train([one.wanted_victim() for one in group if not one.has_victim()])
        for experiment in group:
            progress = self._board.cells[experiment.cell.name]
            experiment.victim(seconds)
            progress.victim = True
            known = experiment.known()
            for contender in self.suite.of(experiment.cell):
                self._begin(f"{experiment.cell.name}: {contender.name}")
                experiment.findings(contender, known)
                progress.found += 1
            for examination in self.suite.examinations_of(experiment.cell):
                self._begin(f"{experiment.cell.name}: {examination.name}")
                experiment.examined(examination)
                progress.found += 1

    def _retrain(self, group: list[Experiment]) -> None:
        """Train again without what each defence flagged."""
        work = []
        for experiment in group:
            known = experiment.known()
            for contender in self.suite.of(experiment.cell):
                found = experiment.findings(contender, known)
                if contender.retrain:
                    work.append((experiment, contender, found))
        for part in batched(work, self.together):
            self._begin(", ".join(f"{one.cell.name}: without what {by.name} flagged" for one, by, _ in part))
            wanted = [one.wanted_retraining(found) for one, _, found in part]
            seconds = self._train([one for one in wanted if one is not None])
            for experiment, _, found in part:
                experiment.retraining(found, seconds)
                self._board.cells[experiment.cell.name].retrained += 1

    def _train(self, wanted: list[Wanted]) -> float | None:
        """Train what is missing, each once; return the seconds a network took, None if there was none."""
        missing = {one.path: one for one in wanted if not one.path.exists()}
        if not missing:
            return None
        begun = time.monotonic()
        fit_victims(list(missing.values()), on_step=self._on_step)
        self._board.seconds_a_training = seconds = (time.monotonic() - begun) / len(missing)
        return round(seconds, 1)

    def _begin(self, what: str) -> None:
        self._board.running = what
        self._check()
        self.on_change(self._board, None)

    def _on_step(self, _: int, step: Step) -> None:
        self.on_change(self._board, step)
        # At the end of an epoch everything is in the checkpoints; after the last one the network itself is kept.
        if step.step == step.steps and step.epoch < step.epochs:
            self._check()

    def _check(self) -> None:
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise OutOfTime


def _work_on(cell: Cell, suite: Suite, store: Store, retraining: bool, end: float | None) -> Progress:
    """Work on one cell, where the engine does so, until ``end`` of the clock; return how far it is."""
    budget = None if end is None else end - time.time()
    return Bench(replace(suite, cells=(cell,)), store, retraining, budget).run().cells[cell.name]


def batched(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Return the items in parts of ``size``; the last may be smaller."""
    return (items[start : start + size] for start in range(0, len(items), size))


def _named(group: list[Experiment]) -> str:
    names = [one.cell.name for one in group]
    return names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"

"""Work on the cells of a suite: what is done, what is left, and when to stop."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from undoor.experiments.cells import Cell, Experiment
from undoor.experiments.store import Store
from undoor.experiments.suites import Suite
from undoor.training import Step


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
        on_change: told whenever something begins or ends, and after every training step.

    """

    suite: Suite
    store: Store
    retraining: bool = True
    budget: float | None = None
    on_change: Callable[[Board, Step | None], None] = lambda *_: None

    def run(self) -> Board:
        """Work on every cell until all is done or the time is spent; return what is done and what is left."""
        self._deadline = None if self.budget is None else time.monotonic() + self.budget
        self._board = board = Board({cell.name: self._progress(cell) for cell in self.suite.cells})
        # An experiment holds its training set; it is made anew for the second round, so that one is held at a time.
        try:
            for cell in self.suite.cells:
                self._detection(self._experiment(cell), board.cells[cell.name])
            for cell in self.suite.cells if self.retraining else ():
                self._retraining(self._experiment(cell), board.cells[cell.name])
        except OutOfTime:
            pass
        board.running = ""
        return board

    def _progress(self, cell: Cell) -> Progress:
        contenders = self.suite.of(cell)
        again = sum(contender.retrain for contender in contenders) if self.retraining else 0
        return Progress(contenders=len(contenders), retrainings=again)

    def _experiment(self, cell: Cell) -> Experiment:
        filters = tuple(dict.fromkeys(contender.image_filter for contender in self.suite.of(cell)))
        return Experiment(cell, self.suite.setting, self.store, filters, self._on_step)

    def _detection(self, experiment: Experiment, progress: Progress) -> None:
        """Train the victim and run every defence on what it makes of its training set."""
        self._begin(f"{experiment.cell.name}: victim")
        with self._timed(trained=not experiment.has_victim()):
            experiment.victim()
        progress.victim = True
        known = experiment.known()
        for contender in self.suite.of(experiment.cell):
            self._begin(f"{experiment.cell.name}: {contender.name}")
            experiment.findings(contender, known)
            progress.found += 1

    def _retraining(self, experiment: Experiment, progress: Progress) -> None:
        """Train again without what each defence flagged."""
        known = experiment.known()
        for contender in self.suite.of(experiment.cell):
            found = experiment.findings(contender, known)
            if contender.retrain:
                self._begin(f"{experiment.cell.name}: retraining without what {contender.name} flagged")
                with self._timed(trained=not experiment.is_retrained(found)):
                    experiment.retraining(found)
                progress.retrained += 1

    def _begin(self, what: str) -> None:
        self._board.running = what
        self._check()
        self.on_change(self._board, None)

    @contextmanager
    def _timed(self, *, trained: bool) -> Iterator[None]:
        begun = time.monotonic()
        yield
        if trained:
            self._board.seconds_a_training = time.monotonic() - begun

    def _on_step(self, step: Step) -> None:
        # Only at the start of an epoch is everything before it in the checkpoint.
        if step.step == 1:
            self._check()
        self.on_change(self._board, step)

    def _check(self) -> None:
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise OutOfTime

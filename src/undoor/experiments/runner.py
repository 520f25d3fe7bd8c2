"""Work on the cells of a suite: what is done, what is left, and when to stop."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, TypeVar, get_args

from undoor.engine import Engine, as_finished
from undoor.errors import UndoorError
from undoor.experiments.cells import Cell, Experiment
from undoor.experiments.store import Store
from undoor.experiments.suites import Suite
from undoor.mixtures.memory import remembered_clusterings
from undoor.networks.classifier import default_device
from undoor.networks.training import DivergedError, Step
from undoor.networks.victims import Wanted, fit_victims

Item = TypeVar("Item")

TOGETHER = 16
"""How many networks are trained at once on a GPU."""

Stage = Literal["victims", "findings", "retraining", "examinations"]
STAGES: tuple[Stage, ...] = get_args(Stage)
"""In this order: each stage works on all cells before the next one begins."""


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
    diverged: bool = False

    @property
    def trainings_left(self) -> int:
        """How many networks are still to be trained, as far as is known."""
        return 0 if self.diverged else (not self.victim) + self.retrainings - self.retrained

    @property
    def unfinished(self) -> bool:
        """Whether anything is left; nothing is where the training of the victim diverged."""
        return not self.diverged and (self.found < self.contenders or self.trainings_left > 0)


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
        stages: those of ``STAGES`` that are worked on. Where an earlier stage is left out, what it has not made
            before is missing in the later ones too.
        budget: seconds after which the run stops, in whatever stage it is, as soon as what is running tells how far
            it is. A training goes on from its last whole epoch when it is taken up again. None has no end.
        together: how many networks are trained at once; on a GPU several share it.
        capture: whether steps on a GPU are captured; see ``undoor.networks.training.train_many``.
        engine: "local" works on one cell after another, here; the others give every cell to a process, and tell
            when it has come back. On a cluster the store lies in a folder that all nodes share.
        on_change: told whenever something begins or ends, and after every training step.

    """

    suite: Suite
    store: Store
    stages: tuple[Stage, ...] = STAGES
    budget: float | None = None
    together: int = field(default_factory=lambda: TOGETHER if default_device() == "cuda" else 1)
    capture: bool = True
    engine: Engine = Engine("local")  # noqa: RUF009 - frozen
    on_change: Callable[[Board, Step | None], None] = lambda *_: None

    def __post_init__(self) -> None:
        for stage in self.stages:
            if stage not in STAGES:
                raise UndoorError(f"there is no stage {stage!r}; choose among {', '.join(STAGES)}")

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
        work = {
            "victims": self._train_victims,
            "findings": self._find,
            "retraining": self._retrain,
            "examinations": self._examine,
        }
        for stage in STAGES:
            if stage in self.stages:
                for group in batched(self.suite.cells, self.together):
                    work[stage]([self._experiment(cell) for cell in group])

    def _give_away(self) -> None:
        """Give every cell to the engine: first for victim and findings, then for the rest.

        When the second round begins, the victims of clean cells are there for others that want the same network.
        """
        cells, board = self.suite.cells, self._board
        store = Store(self.store.root.resolve())
        end = None if self.budget is None else time.time() + self.budget
        for part in (STAGES[:2], STAGES[2:]):
            stages = tuple(stage for stage in part if stage in self.stages)
            if not stages:
                continue
            work = partial(_work_on, suite=replace(self.suite, cells=()), store=store, stages=stages, end=end)
            self._begin(f"{len(cells)} cells on {self.engine.kind}")
            for number, done in as_finished(work, cells, self.engine):
                progress = board.cells[cells[number].name]
                progress.victim, progress.diverged = done.victim, done.diverged
                progress.found += done.found
                progress.retrained += done.retrained
                self.on_change(board, None)

    def _progress(self, cell: Cell) -> Progress:
        contenders = self.suite.of(cell)
        to_find = len(contenders) if "findings" in self.stages else 0
        to_find += len(self.suite.examinations_of(cell)) if "examinations" in self.stages else 0
        retrainings = sum(contender.retrain for contender in contenders) if "retraining" in self.stages else 0
        return Progress(victim=self._experiment(cell).has_victim(), contenders=to_find, retrainings=retrainings)

    def _experiment(self, cell: Cell) -> Experiment:
        filters = tuple(dict.fromkeys(contender.image_filter for contender in self.suite.of(cell)))
        return Experiment(cell, self.suite.setting, self.store, filters, self._check)

    def _train_victims(self, group: list[Experiment]) -> None:
        self._begin(f"{_named(group)}: victim")
        seconds = self._train([(one, one.wanted_victim()) for one in group if not one.has_victim()])
        for experiment in group:
            progress = self._board.cells[experiment.cell.name]
            if experiment.has_diverged(experiment.wanted_victim()):
                progress.diverged = True
            else:
                experiment.victim(seconds)
                progress.victim = True

    def _find(self, group: list[Experiment]) -> None:
        """Run every defence on what the victims make of their training sets."""
        for experiment in group:
            if not experiment.has_victim():
                continue
            known = experiment.known()
            with remembered_clusterings():  # for the variants of Cluster Impurity
                for contender in self.suite.of(experiment.cell):
                    self._begin(f"{experiment.cell.name}: {contender.name}")
                    experiment.findings(contender, known)
                    self._board.cells[experiment.cell.name].found += 1

    def _examine(self, group: list[Experiment]) -> None:
        """Try the defences of other moments on the victims."""
        for experiment in group:
            if not experiment.has_victim():
                continue
            for examination in self.suite.examinations_of(experiment.cell):
                self._begin(f"{experiment.cell.name}: {examination.name}")
                experiment.examined(examination)
                self._board.cells[experiment.cell.name].found += 1

    def _retrain(self, group: list[Experiment]) -> None:
        """Train again without what each defence flagged."""
        work = []
        for experiment in group:
            if not experiment.has_victim():
                continue
            known = experiment.known()
            for contender in self.suite.of(experiment.cell):
                found = experiment.kept_findings(contender, known)
                if contender.retrain and found is not None:
                    work.append((experiment, contender, found))
        for part in batched(work, self.together):
            self._begin(", ".join(f"{one.cell.name}: without what {by.name} flagged" for one, by, _ in part))
            wanted = [(one, one.wanted_retraining(found)) for one, _, found in part]
            seconds = self._train([(one, network) for one, network in wanted if network is not None])
            for (experiment, _, found), (_, network) in zip(part, wanted, strict=True):
                if network is None or not experiment.has_diverged(network):
                    experiment.retraining(found, seconds)
                self._board.cells[experiment.cell.name].retrained += 1

    def _train(self, wanted: list[tuple[Experiment, Wanted]]) -> float | None:
        """Train what is missing, each once; return the seconds a network took, None if there was none."""
        missing = {one.path: (experiment, one) for experiment, one in wanted if not experiment.has_network(one)}
        if not missing:
            return None
        begun = time.monotonic()
        left = None if self._deadline is None else self._deadline - begun
        networks = fit_victims(
            [one for _, one in missing.values()], capture=self.capture, seconds=left, on_step=self._on_step
        )
        for (experiment, one), network in zip(missing.values(), networks, strict=True):
            if isinstance(network, DivergedError):
                experiment.keep_divergence(one, network)
        self._board.seconds_a_training = seconds = (time.monotonic() - begun) / len(missing)
        return round(seconds, 1)

    def _begin(self, what: str) -> None:
        self._board.running = what
        self._check()
        self.on_change(self._board, None)

    def _on_step(self, _: int, step: Step) -> None:
        self.on_change(self._board, step)
        # After the last step nothing is left but to keep the network.
        if (step.epoch, step.step) != (step.epochs, step.steps):
            self._check()

    def _check(self, *_: object) -> None:
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise OutOfTime


def _work_on(cell: Cell, suite: Suite, store: Store, stages: tuple[Stage, ...], end: float | None) -> Progress:
    """Work on one cell, where the engine does so, until ``end`` of the clock; return how far it is."""
    budget = None if end is None else end - time.time()
    return Bench(replace(suite, cells=(cell,)), store, stages, budget).run().cells[cell.name]


def batched(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Return the items in parts of ``size``; the last may be smaller."""
    return (items[start : start + size] for start in range(0, len(items), size))


def _named(group: list[Experiment]) -> str:
    names = [one.cell.name for one in group]
    return names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"

"""Run a suite: every cell through every stage, until all is done or the time budget is spent."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, TypeVar, get_args

from undoor.engine import Engine, as_finished
from undoor.errors import UndoorError
from undoor.experiments.cell_results import (
    contender_result,
    has_diverged,
    keep_divergence,
    measured_retraining,
    measured_victim,
    stored_result,
    stored_victim,
    wanted_retraining,
)
from undoor.experiments.cells import Cell
from undoor.experiments.contenders import Kind
from undoor.experiments.experiment import Experiment
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
"""The stages in their order. Each goes through all cells before the next one begins."""


class OutOfTime(Exception):  # noqa: N818 - nothing went wrong
    """The time budget is spent. What was finished is in the store."""


@dataclass
class Progress:
    """How far one cell is.

    ``found`` of ``contenders`` contenders have been run, and ``retrained`` of ``retrainings`` retrainings are done.
    """

    victim: bool = False
    found: int = 0
    contenders: int = 0
    retrained: int = 0
    retrainings: int = 0
    diverged: bool = False

    @property
    def trainings_left(self) -> int:
        """How many networks still have to be trained."""
        return 0 if self.diverged else (not self.victim) + self.retrainings - self.retrained

    @property
    def unfinished(self) -> bool:
        """Whether work remains. Without a victim, because its training diverged, none does."""
        return not self.diverged and (self.found < self.contenders or self.trainings_left > 0)


@dataclass
class Board:
    """How far a run is: the progress of every cell by the cell's name, and what is running."""

    cells: dict[str, Progress]
    running: str = ""
    seconds_a_training: float | None = None

    @property
    def seconds_left(self) -> float | None:
        """An estimate from the time that the latest training took; None before the first training."""
        if self.seconds_a_training is None:
            return None
        return self.seconds_a_training * sum(cell.trainings_left for cell in self.cells.values())

    @property
    def done(self) -> int:
        """How many cells are finished."""
        return sum(not cell.unfinished for cell in self.cells.values())

    @property
    def finished(self) -> bool:
        """Whether all cells are finished."""
        return not any(cell.unfinished for cell in self.cells.values())


@dataclass
class Bench:
    """A run of a suite in a folder of results.

    Args:
        suite: the suite.
        store: the folder of results.
        stages: the stages of ``STAGES`` that are run. What a stage needs and an earlier stage, left out, has not made
            in another run, is missing in that stage too.
        budget: seconds after which the run ends, in whatever stage it is; None for no limit. A training that is cut
            short goes on from its last whole epoch in the next run.
        together: how many networks are trained at once. On a GPU several share it.
        capture: whether training steps on a GPU are captured; see ``undoor.networks.training.train_many``.
        engine: "local" works here, on one cell after another. The other engines give every cell to a process, and
            progress is reported when the process ends; on a cluster the store lies in a folder that all nodes share.
        on_change: is called whenever something begins or ends, and after every training step.

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
        """Run the stages until all is done or the budget is spent; return how far the run is."""
        self._deadline = None if self.budget is None else time.monotonic() + self.budget
        self._board = board = Board({cell.name: self._progress(cell) for cell in self.suite.cells})
        self.store.begin()
        try:
            if self.engine.kind == "local":
                self._work_here()
            else:
                self._work_elsewhere()
        except OutOfTime:
            pass
        board.running = ""
        return board

    def _work_here(self) -> None:
        work: dict[Stage, Callable[[list[Experiment]], None]] = {
            "victims": self._train_victims,
            "findings": partial(self._run_contenders, kind="findings"),
            "retraining": self._retrain,
            "examinations": partial(self._run_contenders, kind="examinations"),
        }
        for stage in STAGES:
            if stage in self.stages:
                for group in batched(self.suite.cells, self.together):
                    work[stage]([self._experiment(cell) for cell in group])

    def _work_elsewhere(self) -> None:
        """Give every cell to the engine twice: for the first two stages, then for the other two.

        When the second round begins, the clean victims exist for all cells whose retraining wants the same network.
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
            for number, returned in as_finished(work, cells, self.engine):
                progress = board.cells[cells[number].name]
                progress.victim, progress.diverged = returned.victim, returned.diverged
                progress.found += returned.found
                progress.retrained += returned.retrained
                self.on_change(board, None)

    def _progress(self, cell: Cell) -> Progress:
        contenders = self.suite.contenders_of(cell)
        return Progress(
            victim=stored_victim(self._experiment(cell)) is not None,
            contenders=sum(contender.kind in self.stages for contender in contenders),
            retrainings=sum(contender.retrain for contender in contenders) if "retraining" in self.stages else 0,
        )

    def _experiment(self, cell: Cell) -> Experiment:
        filters = [contender.image_filter for contender in self.suite.contenders_of(cell)]
        distinct = tuple(dict.fromkeys(image_filter for image_filter in filters if image_filter is not None))
        return Experiment(cell, self.suite.setting, self.store, distinct, self._check)

    def _train_victims(self, group: list[Experiment]) -> None:
        self._begin(f"{_names(group)}: victim")
        seconds = self._train([(e, e.wanted_victim()) for e in group if stored_victim(e) is None])
        for experiment in group:
            progress = self._board.cells[experiment.cell.name]
            if has_diverged(experiment, experiment.wanted_victim()):
                progress.diverged = True
            else:
                measured_victim(experiment, seconds)
                progress.victim = True

    def _run_contenders(self, group: list[Experiment], kind: Kind) -> None:
        """Run every contender of a cell on the cell's victim."""
        for experiment in group:
            if stored_victim(experiment) is None:
                continue
            case = experiment.case()
            with remembered_clusterings():  # The variants of Cluster Impurity use the same ones.
                for contender in self.suite.contenders_of(experiment.cell):
                    if contender.kind == kind:
                        self._begin(f"{experiment.cell.name}: {contender.name}")
                        contender_result(experiment, contender, case)
                        self._board.cells[experiment.cell.name].found += 1

    def _retrain(self, group: list[Experiment]) -> None:
        """Train the network again without what each contender flagged."""
        work = []
        for experiment in group:
            if stored_victim(experiment) is None:
                continue
            case = experiment.case()
            for contender in self.suite.contenders_of(experiment.cell):
                result = stored_result(experiment, contender, case)
                if contender.retrain and result is not None:
                    work.append((experiment, contender, result))
        for part in batched(work, self.together):
            self._begin(", ".join(f"{e.cell.name}: without what {contender.name} flagged" for e, contender, _ in part))
            wanted = [(experiment, wanted_retraining(experiment, result)) for experiment, _, result in part]
            seconds = self._train([(experiment, network) for experiment, network in wanted if network is not None])
            for (experiment, _, result), (_, network) in zip(part, wanted, strict=True):
                if network is None or not has_diverged(experiment, network):
                    measured_retraining(experiment, result, seconds)
                self._board.cells[experiment.cell.name].retrained += 1

    def _train(self, wanted: list[tuple[Experiment, Wanted]]) -> float | None:
        """Train the networks that are missing, equal ones once; return the seconds for one, None if none is missing."""
        missing = {
            network.path: (experiment, network)
            for experiment, network in wanted
            if not network.path.exists() and not has_diverged(experiment, network)
        }
        if not missing:
            return None
        begun = time.monotonic()
        trained = fit_victims(
            [network for _, network in missing.values()],
            capture=self.capture,
            seconds=None if self._deadline is None else self._deadline - begun,
            on_step=self._on_step,
        )
        for (experiment, network), result in zip(missing.values(), trained, strict=True):
            if isinstance(result, DivergedError):
                keep_divergence(experiment, network, result)
        self._board.seconds_a_training = seconds = (time.monotonic() - begun) / len(missing)
        return round(seconds, 1)

    def _begin(self, what: str) -> None:
        self._board.running = what
        self._check()
        self.on_change(self._board, None)

    def _on_step(self, _: int, step: Step) -> None:
        self.on_change(self._board, step)
        # After the last step only the network has to be written, which the budget must not prevent.
        if (step.epoch, step.step) != (step.epochs, step.steps):
            self._check()

    def _check(self, *_: object) -> None:
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise OutOfTime


def _work_on(cell: Cell, suite: Suite, store: Store, stages: tuple[Stage, ...], end: float | None) -> Progress:
    """Run the stages of one cell in the engine's process, until the clock says ``end``; return how far it is."""
    budget = None if end is None else end - time.time()
    return Bench(replace(suite, cells=(cell,)), store, stages, budget).run().cells[cell.name]


def batched(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Return the items in parts of ``size``; the last part may be smaller."""
    return (items[start : start + size] for start in range(0, len(items), size))


def _names(group: list[Experiment]) -> str:
    first, last = group[0].cell.name, group[-1].cell.name
    return first if len(group) == 1 else f"{first} … {last}"

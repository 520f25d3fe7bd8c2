"""Several trainings on one device: which of them take their steps together."""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

MEASURED_STEPS = 50
"""Number of steps of every training that are timed to estimate the time of the remaining steps."""


class _Run(Protocol):
    """A training that is advanced step by step; ``turn`` launches a step without waiting for the device."""

    @property
    def ended(self) -> bool: ...

    @property
    def steps_left(self) -> int: ...

    def turn(self) -> None: ...


def take_turns(
    runs: Sequence[_Run],
    *,
    seconds: float | None = None,
    wait: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Advance all trainings to their end.

    Trainings that share a device slow each other down, but all together advance faster than one after another. With a
    limit of time, the last of the ``runs`` wait until the others have ended: as many of them as necessary for the
    others to end in time. If even the first training alone would not end in time, none waits.

    Args:
        runs: the trainings, the most important first.
        seconds: the limit of time; None if there is none.
        wait: waits until the device has finished everything that was launched.
        clock: returns the time in seconds.

    """
    deadline = None if seconds is None else clock() + seconds
    waiting = list(runs)
    while waiting:
        count = len(waiting) if deadline is None else _count_in_time(waiting, deadline, wait, clock)
        together, waiting = waiting[:count], waiting[count:]
        while not all(run.ended for run in together):
            _turn_each(together)


def _count_in_time(runs: Sequence[_Run], deadline: float, wait: Callable[[], None], clock: Callable[[], float]) -> int:
    """Return how many of the first trainings can advance together and end before the deadline.

    The steps that are timed are steps of the trainings, so that no time is lost.
    """
    count = len(runs)
    while count:
        together = runs[:count]
        wait()
        start = clock()
        for _ in range(MEASURED_STEPS):
            _turn_each(together)
        wait()
        end = clock()
        steps = max(run.steps_left for run in together)
        if end + steps * (end - start) / MEASURED_STEPS <= deadline:
            return count
        count = count * 3 // 4
    return len(runs)


def _turn_each(runs: Sequence[_Run]) -> None:
    for run in runs:
        if not run.ended:
            run.turn()

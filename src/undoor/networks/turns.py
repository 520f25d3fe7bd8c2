"""Several trainings on one device: which of them take their steps together."""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

MEASURED_STEPS = 50
"""Steps of every training from which the time of the rest is estimated."""


class TakesTurns(Protocol):
    """A training that is advanced step by step."""

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do; further turns do nothing."""
        ...

    @property
    def steps_left(self) -> int:
        """How many steps are left."""
        ...

    def turn(self) -> None:
        """Launch the next step, without waiting for the device."""
        ...


def take_turns(
    runs: Sequence[TakesTurns],
    *,
    seconds: float | None = None,
    wait: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Advance all trainings to their end.

    Trainings that share a device slow each other down, although all of them together advance faster than one after
    another. If there is a limit of time, those at the end of ``runs`` therefore wait until the others have ended,
    as many of them as is needed for the others to end in time. If not even the first one alone would end in time,
    none waits.

    Args:
        runs: the most important first.
        seconds: the limit; None if there is none.
        wait: waits until the device has done all that was launched.
        clock: returns the time in seconds.

    """
    deadline = None if seconds is None else clock() + seconds
    waiting = list(runs)
    while waiting:
        count = len(waiting) if deadline is None else _how_many(waiting, deadline, wait, clock)
        together, waiting = waiting[:count], waiting[count:]
        while not all(run.ended for run in together):
            _turn_each(together)


def _how_many(runs: Sequence[TakesTurns], deadline: float, wait: Callable[[], None], clock: Callable[[], float]) -> int:
    """Return how many of the first trainings can go on together and end before the deadline.

    The steps that are measured are steps of the trainings: none is lost.
    """
    count = len(runs)
    while count:
        together = runs[:count]
        wait()
        begun = clock()
        for _ in range(MEASURED_STEPS):
            _turn_each(together)
        wait()
        now = clock()
        left = max(run.steps_left for run in together)
        if now + left * (now - begun) / MEASURED_STEPS <= deadline:
            return count
        count = count * 3 // 4
    return len(runs)


def _turn_each(runs: Sequence[TakesTurns]) -> None:
    for run in runs:
        if not run.ended:
            run.turn()

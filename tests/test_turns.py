"""Timed steps decide which trainings advance together. The clock of these tests advances only with steps."""

import pytest

from undoor.networks.turns import MEASURED_STEPS, take_turns

STEPS = 1000


class Device:
    """A device on which every step takes the same time."""

    seconds_a_step = 0.05

    def __init__(self):
        self.clock = 0.0
        self.launched = 0

    def wait(self):
        """Advance the clock by the time of the launched steps."""
        self.clock += self.launched * self.seconds_a_step
        self.launched = 0


class Run:
    def __init__(self, device, steps=STEPS, ends_at=None):
        self.device, self.steps_left, self.ended_at = device, steps, None
        self.ends_at = ends_at  # the number of steps left at which the training diverges

    @property
    def ended(self):
        return self.ended_at is not None

    def turn(self):
        assert not self.ended
        self.device.launched += 1
        self.steps_left -= 1
        if self.steps_left == 0 or self.steps_left == self.ends_at:
            self.device.wait()
            self.steps_left, self.ended_at = 0, self.device.clock


def ends(runs, **limits):
    device = runs[0].device if runs else Device()
    take_turns(runs, wait=device.wait, clock=lambda: device.clock, **limits)
    assert all(run.ended for run in runs)
    return [run.ended_at for run in runs]


def test_without_a_limit_all_advance_together():
    device = Device()
    assert ends([Run(device) for _ in range(4)]) == pytest.approx([4 * STEPS * device.seconds_a_step] * 4, rel=1e-2)
    assert ends([]) == []


def test_as_many_advance_together_as_end_in_time():
    # 16 trainings together take 800 s, 9 take 450 s and 6 take 300 s; the timed steps before take less than 100 s.
    device = Device()
    found = ends([Run(device) for _ in range(16)], seconds=500)
    assert sum(end <= 500 for end in found) in (6, 7, 8, 9)
    assert found == sorted(found)  # the first of the list end first
    assert max(found) == pytest.approx(16 * STEPS * device.seconds_a_step, rel=1e-6)  # no step is lost


def test_all_advance_together_if_there_is_time_for_all():
    found = ends([Run(Device()) for _ in range(4)], seconds=10_000)
    assert found == sorted(found)
    device = Device()
    assert len({round(end) for end in ends([Run(device) for _ in range(4)], seconds=1_000)}) == 1


def test_if_none_ends_in_time_none_waits():
    device = Device()
    found = ends([Run(device) for _ in range(8)], seconds=10)
    assert max(found) - min(found) < 8 * 8 * MEASURED_STEPS * device.seconds_a_step  # apart from the timed steps


def test_a_training_that_ends_early_stops_no_other():
    device = Device()
    runs = [Run(device), Run(device, ends_at=990), Run(device, steps=30), Run(device)]
    found = ends(runs, seconds=10_000)
    assert found[1] < found[2] < found[0]

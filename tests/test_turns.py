"""Which trainings go on together is decided by measured steps: trainings on a clock of their own."""

import pytest

from undoor.networks.turns import MEASURED_STEPS, take_turns

STEPS = 1000


class Device:
    """A device on which a step of several trainings takes a while for the first and a little for each other."""

    def __init__(self, first=0.1, other=0.05):
        self.now = 0.0
        self.first, self.other = first, other
        self.launched = 0

    def wait(self):
        """Let the time pass that what was launched takes, if each training launched one step in turn."""
        self.now += self.launched * self.other
        self.launched = 0


class Run:
    def __init__(self, device, steps=STEPS, ends_at=None):
        self.device, self.steps_left, self.ended_at = device, steps, None
        self.ends_at = ends_at  # as one that diverges

    @property
    def ended(self):
        return self.ended_at is not None

    def turn(self):
        assert not self.ended
        self.device.launched += 1
        self.steps_left -= 1
        if self.steps_left == 0 or self.steps_left == self.ends_at:
            self.device.wait()
            self.steps_left, self.ended_at = 0, self.device.now


def ends(runs, **limits):
    device = runs[0].device if runs else Device()
    take_turns(runs, wait=device.wait, clock=lambda: device.now, **limits)
    assert all(run.ended for run in runs)
    return [run.ended_at for run in runs]


def test_without_a_limit_all_go_on_together():
    device = Device()
    assert ends([Run(device) for _ in range(4)]) == pytest.approx([4 * STEPS * device.other] * 4, rel=1e-2)
    assert ends([]) == []


def test_as_many_go_on_together_as_end_in_time():
    # 16 together take 800 s, 9 of them 450 s and 6 of them 300 s; the measurements before cost less than 100 s.
    device = Device()
    found = ends([Run(device) for _ in range(16)], seconds=500)
    assert sum(end <= 500 for end in found) in (6, 7, 8, 9)
    assert found == sorted(found)  # the first ones in the list end first
    assert max(found) == pytest.approx(16 * STEPS * device.other, rel=1e-6)  # no step is lost


def test_all_go_on_together_where_there_is_time_for_all():
    found = ends([Run(Device()) for _ in range(4)], seconds=10_000)
    assert found == sorted(found)
    device = Device()
    assert len({round(end) for end in ends([Run(device) for _ in range(4)], seconds=1_000)}) == 1


def test_where_none_ends_in_time_none_waits():
    device = Device()
    found = ends([Run(device) for _ in range(8)], seconds=10)
    assert max(found) - min(found) < 8 * 8 * MEASURED_STEPS * device.other  # all but what was measured of some alone


def test_one_that_ends_early_stops_nobody():
    device = Device()
    runs = [Run(device), Run(device, ends_at=990), Run(device, steps=30), Run(device)]
    found = ends(runs, seconds=10_000)
    assert found[1] < found[2] < found[0]

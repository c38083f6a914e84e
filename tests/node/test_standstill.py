"""A node that is to fill a gap waits for sessions that run, not for those that stand still."""

from __future__ import annotations

from swarmd.node.standstill import Standstill


def test_as_long_as_steps_are_computed_sessions_do_not_stand_still() -> None:
    standstill = Standstill(2.0)
    moments = [(steps, 100.0 + 1.9 * steps) for steps in range(20)]
    assert not any(standstill.has_come(steps, now) for steps, now in moments)
    steps, last = moments[-1]
    assert not standstill.has_come(steps, last + 1.9)
    assert standstill.has_come(steps, last + 2.0)
    assert not standstill.has_come(steps + 1, last + 2.1)

"""Where a session is, and how the epochs of its coordinators, one after the other, stay apart.

What happens in each state is `driver.Driver`'s business.
"""

from __future__ import annotations

import enum

from swarmd.core.route import EPOCHS_PER_ATTEMPT

TAKEOVER = 1000
"""Epochs that a new coordinator skips, so that its predecessor, should it live, stays behind."""
assert EPOCHS_PER_ATTEMPT > 2 * TAKEOVER


class DriverState(enum.StrEnum):
    """Where a session is. Strings, which are looked up without a call into Python."""

    NEW = "new"
    ROUTING = "routing"
    """A route has been asked for."""
    WAITING = "waiting"
    """Until it is time to ask again."""
    REACHING = "reaching"
    """Links to the hops are being made: nothing is opened before all are there."""
    OPENING = "opening"
    RUNNING = "running"
    DONE = "done"


def is_later_attempt(epoch: int, known: int) -> bool:
    """Whether a hop's epoch is that of a coordinator to which the client turned later.

    `known` is the epoch with which the client came here. Its last coordinator before may have gone
    on for some epochs since; with each attempt to resume, the client jumps further than that.
    """
    return epoch > known + 2 * TAKEOVER

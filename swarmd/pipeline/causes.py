"""Why a running session had to be repaired: a closed list, for whoever counts."""

from __future__ import annotations

import enum

from swarmd.core.errors import CapacityError, DeadlineExceeded, PeerUnreachable, SwarmdError


class Cause(enum.StrEnum):
    """What a repair is for."""

    LOST = "lost"
    """A link broke, or a peer fell silent."""
    SLOW = "slow"
    """A hop held tokens up, and another one could take its place."""
    STALLED = "stalled"
    """No token came, and nobody was to blame."""
    CAPACITY = "capacity"
    """A hop had no room for the session's KV any more."""
    FAILED = "failed"
    """A hop could not go on with the session, or did not know it any more."""


def cause_of(error: SwarmdError) -> Cause:
    """Return what a repair after this error is for."""
    if isinstance(error, PeerUnreachable):
        return Cause.LOST
    if isinstance(error, DeadlineExceeded):
        return Cause.STALLED
    return Cause.CAPACITY if isinstance(error, CapacityError) else Cause.FAILED

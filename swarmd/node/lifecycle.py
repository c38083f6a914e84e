"""A node's life as a table: state and event give the next state; anything else is an error.

What is done in each state is `swarmd.node.life`'s and `moves`'s business.
"""

from __future__ import annotations

import enum

from swarmd.core.errors import SwarmdError
from swarmd.core.peers import NodeState


class State(enum.Enum):
    """Where a node is in its life."""

    LOADING = "loading"
    SERVING = "serving"
    MOVING = "moving"
    """Drains, to serve other blocks then."""
    RELOADING = "reloading"
    """Has left its blocks, and loads others; it coordinates as before."""
    DRAINING = "draining"
    STOPPED = "stopped"


class Event(enum.Enum):
    """What happens to a node."""

    READY = "ready"
    MOVE = "move"
    LEFT = "left"
    """A move's drain has come to its end."""
    STAY = "stay"
    """A move is given up before that."""
    DRAIN = "drain"
    DRAINED = "drained"
    STOP = "stop"
    FAIL = "fail"


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.LOADING, Event.READY): State.SERVING,
    (State.LOADING, Event.DRAIN): State.STOPPED,
    (State.LOADING, Event.STOP): State.STOPPED,
    (State.LOADING, Event.FAIL): State.STOPPED,
    (State.SERVING, Event.DRAIN): State.DRAINING,
    (State.SERVING, Event.STOP): State.STOPPED,
    (State.SERVING, Event.FAIL): State.STOPPED,
    (State.SERVING, Event.MOVE): State.MOVING,
    (State.MOVING, Event.LEFT): State.RELOADING,
    (State.MOVING, Event.STAY): State.SERVING,
    (State.MOVING, Event.DRAIN): State.DRAINING,
    (State.MOVING, Event.STOP): State.STOPPED,
    (State.MOVING, Event.FAIL): State.STOPPED,
    (State.RELOADING, Event.READY): State.SERVING,
    # What it coordinates goes on, so it has something to finish.
    (State.RELOADING, Event.DRAIN): State.DRAINING,
    (State.RELOADING, Event.STOP): State.STOPPED,
    (State.RELOADING, Event.FAIL): State.STOPPED,
    # A second request to drain means: now.
    (State.DRAINING, Event.DRAIN): State.STOPPED,
    (State.DRAINING, Event.DRAINED): State.STOPPED,
    (State.DRAINING, Event.STOP): State.STOPPED,
    (State.DRAINING, Event.FAIL): State.STOPPED,
    # Once stopped, nothing more happens to it.
    (State.STOPPED, Event.DRAIN): State.STOPPED,
    (State.STOPPED, Event.DRAINED): State.STOPPED,
    (State.STOPPED, Event.STOP): State.STOPPED,
    (State.STOPPED, Event.FAIL): State.STOPPED,
}

ANNOUNCED = {
    State.LOADING: NodeState.LOADING,
    State.SERVING: NodeState.SERVING,
    State.MOVING: NodeState.DRAINING,
    State.RELOADING: NodeState.LOADING,
    State.DRAINING: NodeState.DRAINING,
    State.STOPPED: NodeState.GONE,
}


COORDINATING = frozenset({State.SERVING, State.MOVING, State.RELOADING})
"""Where new generations may begin at a node."""


class Lifecycle:
    """Holds the state. Not thread-safe: it lives on the event loop."""

    def __init__(self) -> None:
        self.state = State.LOADING

    def handle(self, event: Event) -> State:
        """Move to the next state and return it. Raises SwarmdError for an event out of place."""
        following = TRANSITIONS.get((self.state, event))
        if following is None:
            raise SwarmdError(f"node: event {event.value} cannot happen while {self.state.value}")
        self.state = following
        return following

    @property
    def announced(self) -> NodeState:
        """The state as others are told."""
        return ANNOUNCED[self.state]

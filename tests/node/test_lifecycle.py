"""Every pair of state and event: what follows, or an error that names both."""

from __future__ import annotations

import itertools

import pytest

from swarmd.core.errors import SwarmdError
from swarmd.core.peers import NodeState
from swarmd.node.lifecycle import ANNOUNCED, TRANSITIONS, Event, Lifecycle, State


@pytest.mark.parametrize(("state", "event"), itertools.product(State, Event))
def test_every_pair(state: State, event: Event) -> None:
    node = Lifecycle()
    node.state = state
    if (state, event) in TRANSITIONS:
        assert node.handle(event) is TRANSITIONS[state, event]
    else:
        with pytest.raises(SwarmdError, match=f"{event.value}.*{state.value}"):
            node.handle(event)
        assert node.state is state


def test_whatever_happens_a_stopped_node_stays_stopped() -> None:
    followers = {after for (before, _), after in TRANSITIONS.items() if before is State.STOPPED}
    assert followers == {State.STOPPED}


def test_a_node_can_always_be_stopped() -> None:
    for state in State:
        assert TRANSITIONS[state, Event.STOP] is State.STOPPED


def test_a_second_drain_means_now() -> None:
    node = Lifecycle()
    states = [node.handle(event) for event in (Event.READY, Event.DRAIN, Event.DRAIN)]
    assert states == [State.SERVING, State.DRAINING, State.STOPPED]


def test_others_are_told_each_state() -> None:
    assert {ANNOUNCED[state] for state in State} == set(NodeState)

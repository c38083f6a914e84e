"""When a node is too slow to drive sessions: short of time while others are not."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from swarmd.node import loop_lag, starvation
from swarmd.node.loop_lag import LATEST, LoopLag
from swarmd.node.starvation import FOR_S, Starvation

WELL = [0.001, 0.002, 0.001]


class Node:
    """One whose timers come late, and that looks around once a second."""

    def __init__(self, late: float, cpu_share: float = 0.05) -> None:
        self.watch = Starvation(0.0, 0.0)
        self.now = self.cpu_s = 0.0
        self.late, self.cpu_share = late, cpu_share

    def looks(self, others: list[float], seconds: int = 1) -> list[bool]:
        found = []
        for _ in range(seconds):
            self.now += 1.0
            self.cpu_s += self.cpu_share
            found.append(self.watch.look(self.late, others, self.cpu_s, self.now))
        return found


def test_who_is_late_for_seconds_while_others_are_not_starves() -> None:
    assert Node(0.12).looks(WELL, 6) == [False] * int(FOR_S) + [True] * 3


def test_where_all_are_late_nobody_starves() -> None:
    assert not any(Node(0.12).looks([0.1, 0.15, 0.09], 60))
    assert not any(Node(0.12).looks([0.04, 0.05, 0.04], 60)), "not much later than the others"


def test_nobody_starves_alone() -> None:
    assert not any(Node(0.5).looks([], 60))


def test_one_or_two_others_that_are_late_make_no_difference() -> None:
    assert Node(0.12).looks([0.5, *WELL], 6)[-1]


def test_little_lateness_is_none_however_punctual_others_are() -> None:
    assert not any(Node(0.04).looks([0.0, 0.0], 60))


def test_a_process_that_is_merely_busy_does_not_starve() -> None:
    assert not any(Node(0.3, cpu_share=0.9).looks(WELL, 60))


def test_it_takes_seconds_in_a_row() -> None:
    node = Node(0.12)
    for _ in range(9):
        assert not any(node.looks(WELL, 2))
        node.late = 0.0
        assert not any(node.looks(WELL))
        node.late = 0.12


async def test_one_pause_is_no_lateness_and_a_few_timers_say_nothing() -> None:
    lag = LoopLag()
    for _ in range(LATEST - 1):
        lag.note(0.001)
    assert lag.usual_s == 0.0
    lag.note(20.0)
    assert lag.usual_s == 0.001


class Around:
    """What `keep_watch` sees of the swarm."""

    def __init__(self, *others: tuple[float, int]) -> None:
        """Of each other node, how late it is and how many sessions it has."""
        peers = [SimpleNamespace(peer_id="me", lag_ms=0.0, sessions=1)]
        peers += [
            SimpleNamespace(peer_id=f"p{i}", lag_ms=1000 * late, sessions=sessions)
            for i, (late, sessions) in enumerate(others)
        ]
        self.peers = peers
        self.looks = 0
        self.own_id = "me"
        self.own = SimpleNamespace(model=SimpleNamespace(digest="d"))
        self.view = SimpleNamespace(serving=lambda digest: self.peers)

    async def look_again(self) -> None:
        self.looks += 1
        if self.looks == 1:  # it has become as bad elsewhere
            self.peers[1].lag_ms *= 1e12
        else:
            self.peers[1].lag_ms = 1e-9

    @property
    def membership(self) -> Any:
        return cast(Any, SimpleNamespace(presence=self, description=SimpleNamespace(lag_s=None)))


def test_those_that_work_say_how_late_one_is_there() -> None:
    assert starvation._others(Around((0.1, 2), (0.0, 0)).membership) == [0.1]
    assert starvation._others(Around((0.1, 0), (0.0, 0)).membership) == [0.1, 0.0]
    assert starvation._others(Around().membership) == []


async def test_a_node_that_starves_says_so_looks_again_and_is_eased(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"LOOK_S": 0.01, "LEAST_S": -1.0, "USUAL_S": 0.0, "FOR_S": 0.02}.items():
        monkeypatch.setattr(starvation, name, value)
    monkeypatch.setattr(starvation, "SHARE", 1e9)
    monkeypatch.setattr(loop_lag, "INTERVAL_S", (0.001, 0.002))
    around, eased = Around((1e-9, 1)), asyncio.Event()
    membership = around.membership

    def ease() -> None:
        assert around.looks > 1
        eased.set()

    watching = asyncio.create_task(starvation.keep_watch(membership, ease, LoopLag()))
    for _ in range(2000):
        await asyncio.sleep(0.005)
        if around.looks == 1:
            around.peers[1].lag_ms = 1e-9
        if eased.is_set():
            break
    watching.cancel()
    assert eased.is_set()
    assert membership.description.lag_s is not None

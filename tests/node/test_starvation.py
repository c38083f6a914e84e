"""When a node is too slow to drive sessions: short of time while others are not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from itertools import groupby
from math import ceil
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
    assert Node(0.12).looks(WELL, 6) == [False] * ceil(FOR_S) + [True] * (6 - ceil(FOR_S))


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
        lag.note(0.001, 0.1)
    assert lag.usual_s == 0.0
    lag.note(20.0)
    assert lag.usual_s == 0.001


class Around:
    """What `keep_watch` sees of the swarm."""

    def __init__(self, *others: tuple[float, int]) -> None:
        """Of each other node, how late it is and how many sessions it has."""
        peers = [SimpleNamespace(peer_id="me", lag_ms=0.0, sessions=1, starves=False)]
        peers += [
            SimpleNamespace(peer_id=f"p{i}", lag_ms=1000 * late, sessions=sessions, starves=False)
            for i, (late, sessions) in enumerate(others)
        ]
        self.peers = peers
        self.looks = 0
        self.own_id = "me"
        self.told: list[bool] = []
        """Whether it starved whenever there may have been something to announce."""
        model = SimpleNamespace(digest="d")
        self.description = SimpleNamespace(lag_s=None, starves=False, model=model)
        self.description.load = lambda: (self.description.starves,)
        self.view = SimpleNamespace(serving=lambda digest: self.peers)

    def changed(self) -> None:
        self.told.append(self.description.starves)

    async def look_again(self) -> None:
        self.looks += 1
        if self.looks == 1:  # it has become as bad elsewhere
            self.peers[1].lag_ms *= 1e12
        else:
            self.peers[1].lag_ms = 1e-9

    @property
    def membership(self) -> Any:
        return cast(Any, SimpleNamespace(presence=self, description=self.description))


def test_those_that_work_say_how_late_one_is_there() -> None:
    assert starvation._others(Around((0.1, 2), (0.0, 0)).membership) == [0.1]
    assert starvation._others(Around((0.1, 0), (0.0, 0)).membership) == [0.1, 0.0]
    assert starvation._others(Around().membership) == []
    liar = Around((0.0, 1), (0.06, 0), (0.06, 0))
    assert starvation._others(liar.membership) == [0.0, 0.06, 0.06], "it is one of many"


async def until(so: Callable[[], object]) -> None:
    for _ in range(10_000):
        if so():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it does not come to be")


class Sessions:
    """What is done about the sessions of the node."""

    def __init__(self, around: Around) -> None:
        self.around = around
        self.eased = 0
        self.looks_then = 0
        self.rounds: list[list[str]] = []

    def ease(self) -> None:
        self.eased += 1
        self.looks_then = self.looks_then or self.around.looks

    def go_round(self, peers: Collection[str]) -> None:
        self.rounds.append(list(peers))


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any lateness is starvation, and soon."""
    for name, value in {
        "LOOK_S": 0.01,
        "LEAST_S": -1.0,
        "USUAL_S": 0.0,
        "FOR_S": 0.02,
    }.items():
        monkeypatch.setattr(starvation, name, value)
    monkeypatch.setattr(starvation, "SHARE", 1e9)
    monkeypatch.setattr(loop_lag, "INTERVAL_S", (0.001, 0.002))
    monkeypatch.setattr(loop_lag, "SOON_S", (0.001, 0.002))
    monkeypatch.setattr(loop_lag, "TELL_S", 0.01)


@pytest.mark.usefixtures("hasty")
async def test_a_node_that_starves_says_so_looks_again_and_is_eased_until_it_does_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(starvation, "OVER_S", 0.05)
    around = Around((1e-9, 1))
    membership, sessions = around.membership, Sessions(around)
    watching = asyncio.create_task(starvation.keep_watch(membership, sessions, LoopLag()))
    await until(lambda: around.looks >= 1)
    assert not sessions.eased
    around.peers[1].lag_ms = 1e-9
    await until(lambda: membership.description.starves)
    assert sessions.looks_then > 1
    assert membership.description.lag_s is not None
    assert around.told[-1], "everybody is told at once"
    monkeypatch.setattr(starvation, "LEAST_S", 60.0)
    await until(lambda: not membership.description.starves)
    told = [starves for starves, _ in groupby(around.told)]
    assert told == [False, True, False]
    assert len(around.told) <= 6, "and twice for each news"
    watching.cancel()


@pytest.mark.usefixtures("hasty")
async def test_a_load_that_changes_is_looked_at_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """At first it may come too soon after an announcement to be announced."""
    monkeypatch.setattr(starvation, "LEAST_S", 60.0)
    around = Around((0.0, 1))
    looks = 0

    def load() -> tuple[int]:
        nonlocal looks
        looks += 1
        return (looks >= 5,)

    around.description.load = load
    watching = asyncio.create_task(
        starvation.keep_watch(around.membership, Sessions(around), LoopLag())
    )
    await until(lambda: looks >= 9)
    watching.cancel()
    assert len(around.told) == 4, "twice at the start, twice for the change"


@pytest.mark.usefixtures("hasty")
async def test_sessions_go_round_others_that_say_that_they_starve() -> None:
    around = Around((0.0, 1), (0.0, 1))
    around.peers[0].starves = around.peers[2].starves = True
    sessions = Sessions(around)
    watching = asyncio.create_task(
        starvation.keep_watch(around.membership, sessions, LoopLag()),
    )
    await until(lambda: sessions.rounds)
    watching.cancel()
    assert sessions.rounds[0] == ["p1"], "not round itself"


async def test_while_timers_come_late_there_are_looks_soon_besides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And those do not count in the metric."""
    lag, waits = LoopLag(), timers(monkeypatch)

    def come(look: Callable[[float, float], None], late: float) -> list[bool]:
        """Let a timer come that late; return which of the next ones come soon."""
        waits.clear()
        look(time.monotonic() - late - 0.1, 0.1)
        return [seconds <= loop_lag.SOON_S[1] for seconds in waits]

    assert come(lag._look, 0.0) == [False]
    assert come(lag._look, 0.2) == [False, True]
    assert come(lag._look, 0.2) == [False], "one that is soon is enough"
    assert come(lag._look_again, 0.0) == []
    assert come(lag._look, 0.2) == [False, True]
    many = [come(lag._look_again, 0.2) for _ in range(LATEST)]
    many += [come(lag._look_again, 0.0) for _ in range(LATEST)]
    assert all(many[: LATEST + 2]), "that it is over is not said by one that is in time"
    assert not any(many[-3:])
    assert sum(lag.seconds._counts) == 4


async def test_what_waits_for_the_loop_counts_and_has_it_looked_at_soon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stalls that end just before each look are not missed, nor is a punctual look forgotten."""
    lag, waits = LoopLag(), timers(monkeypatch)
    lag.noticed(0.3)
    assert [seconds <= loop_lag.SOON_S[1] for seconds in waits] == [True]
    for _ in range(LATEST):
        lag._look_again(time.monotonic() - 0.025, 0.025)
        lag.noticed(0.3)
    assert lag.usual_s == 0.3
    for _ in range(LATEST):
        lag._look(time.monotonic() - 1.0, 1.0)
    lag.noticed(0.06)
    assert lag.usual_s < 0.01, "one pause is no lateness"


def timers(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the seconds for which timers are set, which do not come by themselves from now on."""
    found: list[float] = []
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "call_later", lambda seconds, *_: found.append(seconds))
    return found


async def test_who_waits_for_looks_is_told_four_times_a_second_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lag, _ = LoopLag(), timers(monkeypatch)
    for tell_s, told in ((0.0, True), (3600.0, False)):
        monkeypatch.setattr(loop_lag, "TELL_S", tell_s)
        waiter = asyncio.ensure_future(lag.looked())
        await asyncio.sleep(0)
        lag._look(time.monotonic() - 0.1, 0.1)
        await asyncio.sleep(0)
        assert waiter.done() is told
    waiter.cancel()


async def test_what_counts_is_how_late_timers_are_most_of_the_time() -> None:
    """A process that runs for a fifth of each second is punctual within that fifth."""
    lag = LoopLag()
    for _ in range(LATEST // 3):
        lag.note(0.8, 0.02)
        lag.note(0.0, 0.03)
        lag.note(0.0, 0.04)
    assert lag.usual_s == 0.8

"""When a node is too slow to drive sessions: short of time while others are not."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from swarmd.core.clock import SystemClock
from swarmd.node import starvation
from swarmd.node.starvation import BEATS, FOR_S, Starvation

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
            for _ in range(BEATS):
                self.watch.beat(self.late)
            found.append(self.watch.look(self.cpu_s, others, self.now))
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


def test_one_pause_is_no_lateness_and_a_few_timers_say_nothing() -> None:
    watch = Starvation(0.0, 0.0)
    for _ in range(BEATS - 1):
        watch.beat(0.5)
    assert watch.lag_s == 0.0
    calm = Node(0.001)
    calm.looks(WELL)
    calm.watch.beat(20.0)
    assert calm.watch.lag_s == pytest.approx(0.001)


async def test_a_node_that_starves_says_so_looks_again_and_is_eased(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(starvation, "BEAT_S", (0.001, 0.002))
    monkeypatch.setattr(starvation, "LOOK_S", 0.01)
    monkeypatch.setattr(starvation, "LEAST_S", -1.0)
    monkeypatch.setattr(starvation, "USUAL_S", 0.0)
    monkeypatch.setattr(starvation, "SHARE", 1e9)
    monkeypatch.setattr(starvation, "FOR_S", 0.02)
    done, looks = asyncio.Event(), []
    peers = [SimpleNamespace(peer_id=name, lag_ms=0.0) for name in ("me", "other")]

    async def look_again() -> None:
        looks.append(len(looks))
        if len(looks) == 1:  # the others are no better, by what they say now
            peers[1].lag_ms = 1e9
        else:
            peers[1].lag_ms = 0.0

    def ease() -> None:
        assert len(looks) > 1
        done.set()

    presence = SimpleNamespace(
        own_id="me",
        own=SimpleNamespace(model=SimpleNamespace(digest="d")),
        view=SimpleNamespace(serving=lambda digest: peers),
        look_again=look_again,
    )
    description = SimpleNamespace(lag_s=None)
    membership = cast(Any, SimpleNamespace(presence=presence, description=description))
    watching = asyncio.create_task(starvation.keep_watch(membership, ease, SystemClock()))
    for _ in range(2000):
        await asyncio.sleep(0.005)
        if looks:
            peers[1].lag_ms = 0.0
        if done.is_set():
            break
    watching.cancel()
    assert done.is_set()
    assert description.lag_s is not None

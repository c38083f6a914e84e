"""A node that leaves takes the time that it has, and no more when that becomes less."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from swarmd.core.errors import PeerUnreachable
from swarmd.core.peers import Announcement, ModelInfo, NodeState
from swarmd.core.span import Span
from swarmd.node import patrol, succession
from swarmd.node.life import Life
from swarmd.node.lifecycle import Event, State
from swarmd.swarm.view import View
from swarmd.v1 import peer_pb2 as pb

NOW = 1_000_000.0


def peer(number: int, start: int, end: int, state: NodeState = NodeState.SERVING) -> Announcement:
    model = ModelInfo("demo", "ab" * 32, 8, 64, 100, 512)
    span, address = Span(start, end), f"10.0.0.{number}:7420"
    return Announcement(f"{number:040x}", address, model, span, state, NOW, NOW + 30, pid=number)


OWN = peer(1, 0, 4, NodeState.DRAINING)
OTHER = replace(peer(2, 4, 8), moves=True)
"""Who could take the place of a node that leaves."""


class Around:
    """What a node sees of its swarm, and whether sessions run."""

    def __init__(self, *others: Announcement, idle: bool = True, holds: bool = True) -> None:
        self.service: Any = SimpleNamespace(
            drain=lambda: None, hand_over=lambda: None, is_idle=idle, holds_blocks=holds
        )
        self.silent: set[str] = set()
        """Addresses at which nobody answers."""
        self._presence = SimpleNamespace(changed=lambda: None)
        self.membership: Any = SimpleNamespace(
            presence=self._presence,
            own_id=OWN.peer_id,
            announcement=lambda: OWN,
            ask=self._ask,
        )
        self.seen(*others)

    def seen(self, *others: Announcement) -> None:
        self._presence.view = View((OWN, *others), NOW)

    async def _ask(self, address: str, own_id: str) -> pb.IntroduceReply:
        if address in self.silent:
            raise PeerUnreachable("nobody answers")
        asked = next(p for p in self._presence.view.peers if p.address == address)
        return pb.IntroduceReply(peer_id=asked.peer_id)


def leaving(around: Around, patience: float = 3600.0) -> tuple[Life, asyncio.Task[None]]:
    life = Life(patience)
    life.lifecycle.handle(Event.READY)
    life.drain()
    return life, asyncio.create_task(life.depart(around.service, cast(Any, around.membership)))


async def stays(task: asyncio.Task[None]) -> bool:
    done, _ = await asyncio.wait({task}, timeout=0.3)
    return not done


@pytest.mark.parametrize(("patience", "notice"), [(3600.0, 0.0), (0.0, 3600.0)])
async def test_a_notice_in_the_middle_of_a_drain_makes_it_shorter_never_longer(
    patience: float, notice: float
) -> None:
    life, task = leaving(Around(idle=False), patience)
    await asyncio.sleep(0)
    life.leave_within(notice)
    await asyncio.wait_for(task, 60)
    assert life.lifecycle.state is State.STOPPED


async def test_what_is_told_as_the_work_ends_is_heard() -> None:
    life = Life(patience=1.0)

    async def work() -> int:
        this = asyncio.current_task()
        assert this is not None
        this.add_done_callback(lambda _: life.drain())  # a signal, just as loading is done
        return 1

    assert await life.unless_told(asyncio.create_task(work())) is None


@pytest.mark.parametrize(
    "around",
    [
        Around(),
        Around(replace(OTHER, state=NodeState.DRAINING)),
        Around(replace(OTHER, model=replace(OTHER.model, digest="cd" * 32))),
        Around(OTHER, peer(3, 0, 4)),
        Around(OTHER, holds=False),
        Around(replace(OTHER, moves=False)),
    ],
    ids=[
        "alone",
        "all leave",
        "of another model",
        "held elsewhere",
        "between two stages",
        "nobody can step in",
    ],
)
async def test_an_idle_node_for_which_nobody_waits_goes_at_once(around: Around) -> None:
    life, task = leaving(around)
    await asyncio.wait_for(task, 60)
    assert life.lifecycle.state is State.STOPPED


async def test_one_through_which_sessions_run_stays_for_whoever_is_started(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    around = Around(replace(OTHER, moves=False), idle=False)
    _, task = leaving(around)
    assert await stays(task)
    assert "waits for another holder blocks=0:4" in caplog.text
    around.service.is_idle = True
    await asyncio.wait_for(task, 60)
    assert "nobody is left who could serve them blocks=0:4" in caplog.text


async def test_the_last_holder_stays_until_another_one_serves(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    around = Around(OTHER)
    _, task = leaving(around)
    assert await stays(task)
    assert "waits for another holder blocks=0:4 seconds=3600" in caplog.text
    around.seen(replace(OTHER, state=NodeState.DRAINING, moves=False, plan=OWN.span))
    assert await stays(task), "it is on its way"
    around.seen(OTHER, peer(3, 0, 4, NodeState.LOADING))
    assert await stays(task), "it is still loading"
    around.seen(OTHER, peer(3, 0, 3))
    assert await stays(task), "it does not serve all"
    assert "another holder serves" not in caplog.text
    around.seen(OTHER, peer(3, 0, 4))
    await asyncio.wait_for(task, 60)
    assert "another holder serves them blocks=3:4" in caplog.text
    assert "in time" not in caplog.text


async def test_a_holder_that_was_killed_does_not_count(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(patrol, "AGAIN_S", 0.0)
    twin = peer(3, 0, 4)
    around = Around(OTHER, twin)
    around.silent.add(twin.address)  # its announcement outlives it
    _, task = leaving(around)
    assert await stays(task)
    assert "waits for another holder blocks=0:4" in caplog.text
    around.silent.clear()
    around.seen(OTHER, replace(twin, pid=4))
    await asyncio.wait_for(task, 60)


async def test_or_until_its_time_is_up(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    _, task = leaving(Around(OTHER), patience=0.5)
    assert await stays(task)
    await asyncio.wait_for(task, 60)
    assert "no other holder came in time blocks=0:4" in caplog.text
    assert "another holder serves" not in caplog.text


async def test_or_until_it_is_told_once_more(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    life, task = leaving(Around(OTHER))
    assert await stays(task)
    life.drain()
    await asyncio.wait_for(task, 60)
    assert "in time" not in caplog.text


async def test_or_until_nobody_is_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(patrol, "AGAIN_S", 0.0)
    monkeypatch.setattr(succession, "ROUND_S", 0.05)
    around = Around(OTHER)
    _, task = leaving(around)
    assert await stays(task)
    around.silent.add(OTHER.address)
    await asyncio.wait_for(task, 60)
    assert "nobody is left who could serve them blocks=0:4" in caplog.text

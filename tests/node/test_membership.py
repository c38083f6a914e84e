"""A node's start among others, while the process of its directory hangs or ends."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import pytest

from swarmd.core.clock import SystemClock
from swarmd.core.config import NodeConfig
from swarmd.core.peers import ModelInfo, NodeState
from swarmd.node.loading import Opened
from swarmd.node.membership import Membership
from swarmd.swarm import dht_process
from swarmd.swarm.identity import Identity

MODEL = ModelInfo("toy", "d1" * 32, 8, 16, 100, 512)
OPENED = Opened(None, MODEL, None, 4, "float32")  # type: ignore[arg-type]  (placement needs no more)


@pytest.fixture
async def membership(tmp_path: Path) -> AsyncIterator[Membership]:
    """With a real directory process, and a view that nothing refreshes unasked."""
    config = NodeConfig(model="toy", state_dir=tmp_path, dht_listen="127.0.0.1:0")
    tasks: list[asyncio.Task[Any]] = []

    def spawn(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        tasks.append(asyncio.create_task(work))
        return tasks[-1]

    identity = Identity.load_or_create(tmp_path)
    one = await Membership.join(
        config, identity, "127.0.0.1:7420", SystemClock(), lambda: NodeState.LOADING, spawn
    )
    yield one
    await one.leave(0.1)
    await one.directory.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def send(membership: Membership, number: signal.Signals) -> None:
    """Signal the directory's process; a stopped one answers no more, and is replaced in time."""
    assert membership.directory.child_pid is not None
    os.kill(membership.directory.child_pid, number)


async def test_a_start_outlives_the_directory_process(
    membership: Membership, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dht_process, "REPLY_TIMEOUT_S", 1.0)
    send(membership, signal.SIGSTOP)
    span = await membership.choose_span(OPENED)
    assert len(span) == 4
    own = membership.presence.view.peer(membership.own_id)
    assert own is not None
    assert own.span == span
    assert membership.directory.restarts >= 1


async def test_a_directory_that_does_not_come_back_is_waited_for_in_bounds(
    membership: Membership,
) -> None:
    before = membership.presence.view
    send(membership, signal.SIGSTOP)
    async with asyncio.timeout(dht_process.REPLY_TIMEOUT_S / 2):
        await membership.see_others(0.2)
    assert membership.presence.view is before
    send(membership, signal.SIGCONT)


async def test_its_door_says_from_when_on_it_has_announced_itself(membership: Membership) -> None:
    before = membership.peering.introduction()
    assert before.announced_since_s == pytest.approx(before.wall_time_s, abs=1.0)
    await membership.choose_span(OPENED)
    (own,) = await membership.directory.announcements()
    after = membership.peering.introduction()
    assert before.announced_since_s < after.announced_since_s <= own.issued_at < after.wall_time_s

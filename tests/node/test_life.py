"""A node that leaves takes the time that it has, and no more when that becomes less."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from swarmd.node.life import Life
from swarmd.node.lifecycle import Event, State

BUSY = cast(Any, SimpleNamespace(drain=lambda: None, hand_over=lambda: None, is_idle=False))
"""A service whose sessions do not end."""
OTHERS = cast(Any, SimpleNamespace(presence=SimpleNamespace(changed=lambda: None)))


@pytest.mark.parametrize(("patience", "notice"), [(3600.0, 0.0), (0.0, 3600.0)])
async def test_a_notice_in_the_middle_of_a_drain_makes_it_shorter_never_longer(
    patience: float, notice: float
) -> None:
    life = Life(patience)
    life.lifecycle.handle(Event.READY)
    life.drain()
    leaving = asyncio.create_task(life.depart(BUSY, OTHERS))
    await asyncio.sleep(0)
    life.leave_within(notice)
    await asyncio.wait_for(leaving, 60)
    assert life.lifecycle.state is State.STOPPED


async def test_what_is_told_as_the_work_ends_is_heard() -> None:
    life = Life(patience=1.0)

    async def work() -> int:
        this = asyncio.current_task()
        assert this is not None
        this.add_done_callback(lambda _: life.drain())  # a signal, just as loading is done
        return 1

    assert await life.unless_told(asyncio.create_task(work())) is None

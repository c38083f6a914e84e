"""A deadline that moves, on both event loops that a node may run on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from swarmd.node.timer import Deadline

Run = Callable[[Coroutine[Any, Any, None]], None]
pytestmark = pytest.mark.parametrize("run", [asyncio.run, uvloop.run])


def test_it_wakes_at_the_last_time_that_was_set(run: Run) -> None:
    async def life() -> None:
        loop = asyncio.get_running_loop()
        rung: asyncio.Future[float] = loop.create_future()
        deadline = Deadline(lambda: rung.set_result(loop.time()))
        began = loop.time()
        for moved in (0.05, 0.2, 0.1, 0.15):
            deadline.set(began + moved)
        assert await rung >= began + 0.15 - 1e-3

    run(life())


def test_an_earlier_deadline_does_not_wait_for_the_later_one(run: Run) -> None:
    async def life() -> None:
        loop = asyncio.get_running_loop()
        rung = asyncio.Event()
        deadline = Deadline(rung.set)
        deadline.set(loop.time() + 3600)
        deadline.set(loop.time() + 0.01)
        async with asyncio.timeout(30):
            await rung.wait()

    run(life())


def test_none_takes_it_back(run: Run) -> None:
    async def life() -> None:
        loop = asyncio.get_running_loop()
        rung = asyncio.Event()
        deadline = Deadline(rung.set)
        deadline.set(loop.time() + 0.02)
        deadline.set(None)
        later = asyncio.Event()
        Deadline(later.set).set(loop.time() + 0.05)
        await later.wait()
        assert not rung.is_set()

    run(life())


def test_it_can_be_set_again_from_the_call(run: Run) -> None:
    async def life() -> None:
        loop = asyncio.get_running_loop()
        rung: list[float] = []
        done = asyncio.Event()

        def ring() -> None:
            rung.append(loop.time())
            deadline.set(loop.time() + 0.01) if len(rung) < 3 else done.set()

        deadline = Deadline(ring)
        deadline.set(loop.time())
        async with asyncio.timeout(30):
            await done.wait()
        assert len(rung) == 3

    run(life())


def test_it_does_not_spin_through_the_last_fraction_of_a_millisecond(run: Run) -> None:
    fired = 0

    class Counted(Deadline):
        def _fire(self) -> None:
            nonlocal fired
            fired += 1
            super()._fire()

    async def life() -> None:
        rung = asyncio.Event()
        Counted(rung.set).set(asyncio.get_running_loop().time() + 0.0024)
        async with asyncio.timeout(30):
            await rung.wait()

    run(life())
    assert fired <= 2


def test_it_can_be_moved_when_its_time_has_come_while_it_was_set(run: Run) -> None:
    class Slow(Deadline):
        """As if the machine gave the process no time between its look at the clock and its call."""

        def _arm(self, when: float, now: float) -> None:
            loop = asyncio.get_running_loop()
            call_at = loop.call_at

            def late(when: float, *args: Any) -> Any:
                time.sleep(max(0.0, when - loop.time()))
                return call_at(when, *args)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(asyncio, "get_running_loop", lambda: Late(loop, late))
                super()._arm(when, now)

    class Late:
        def __init__(self, loop: asyncio.AbstractEventLoop, call_at: Callable[..., Any]) -> None:
            self.time, self.call_at = loop.time, call_at

    async def life() -> None:
        rung = asyncio.Event()
        deadline = Slow(rung.set)
        for _ in range(2):
            deadline.set(asyncio.get_running_loop().time())
        async with asyncio.timeout(30):
            await rung.wait()

    run(life())


def test_a_call_that_would_come_in_vain_is_put_off_before_it_comes(run: Run) -> None:
    """It would wake the process; but neither is it made anew with every token."""

    async def life() -> None:
        now = asyncio.get_running_loop().time()
        deadline = Deadline(lambda: None)
        calls = []
        for seconds in (3600, 5400, 7100, 7300, 14000):
            deadline.set(now + seconds)
            calls.append(deadline._handle)
        deadline.set(None)
        first, second = calls[0], calls[3]
        assert calls == [first, first, first, second, second]
        assert first is not second

    run(life())

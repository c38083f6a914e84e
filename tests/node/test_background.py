"""What blocks for long is awaited, and can be left behind."""

from __future__ import annotations

import asyncio
import threading

import pytest

from swarmd.node.background import in_background


async def test_the_loop_goes_on_while_it_blocks() -> None:
    gate = threading.Event()

    def blocks(value: int) -> int:
        gate.wait()
        return value

    task = asyncio.create_task(in_background(blocks, 7))
    await asyncio.sleep(0)
    gate.set()
    assert await task == 7


async def test_what_it_raises_is_raised() -> None:
    def fails() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await in_background(fails)


async def test_work_that_gives_up_is_cancelled_work() -> None:
    def gives_up() -> None:
        raise asyncio.CancelledError

    task = asyncio.create_task(in_background(gives_up))
    await asyncio.wait([task])
    assert task.cancelled()


def test_what_was_left_behind_is_not_waited_for() -> None:
    gate, ended = threading.Event(), threading.Event()

    def blocks() -> None:
        gate.wait()
        ended.set()

    async def leave() -> None:
        task = asyncio.create_task(in_background(blocks))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(leave())  # the loop has ended
    assert not ended.is_set()
    gate.set()
    assert ended.wait(60)

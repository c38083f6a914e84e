"""What the parent of a directory process waits for can be given up at any moment."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import Mock

import pytest

from swarmd.swarm.dht_process import DirectoryProcess
from swarmd.v1 import directory_pb2 as pb


async def test_a_cancellation_at_the_moment_of_the_reply_is_not_lost() -> None:
    asked = asyncio.Event()
    writer = Mock(write=lambda message: asked.set())
    parts: list[Any] = [Mock(), asyncio.StreamReader(), writer]
    process = DirectoryProcess(*parts, met=lambda addresses: None)
    asking = asyncio.create_task(process.ask(pb.DirectoryCommand()))
    await asked.wait()
    (waiting,) = process._waiting.values()
    waiting.set_result(pb.DirectoryReply())
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await process.stop()

"""What a node says while it joins."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from swarmd.node.presence import Presence
from swarmd.testing import FakeClock, MemoryDirectory
from swarmd.v1 import peer_pb2 as pb

DOOR = "127.0.0.1:7420"


def joins(tmp_path: Path, shown: float, takes: float = 0.0) -> None:
    """Join through a door whose clock shows so many seconds more than that of the node."""
    clock = FakeClock()

    async def ask(door: str, own_id: str) -> pb.IntroduceReply:
        theirs = clock.wall() + shown
        clock.advance(takes)
        return pb.IntroduceReply(peer_id="b" * 40, wall_time_s=theirs)

    presence = Presence(
        "a" * 40,
        MemoryDirectory(clock),
        [DOOR],
        30.0,
        tmp_path,
        clock,
        lambda: None,
        lambda: None,
        ask,
    )
    asyncio.run(presence.join())


@pytest.mark.parametrize(
    ("shown", "word"), [(10.0, "10.0 s behind that"), (-3600.0, "3600.0 s ahead of that")]
)
def test_a_clock_that_is_wrong_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, shown: float, word: str
) -> None:
    with caplog.at_level(logging.WARNING):
        joins(tmp_path, shown)
    assert [r.message for r in caplog.records if "clock" in r.message and DOOR in r.message]
    assert word in caplog.text


def test_the_way_there_and_back_is_not_taken_for_a_wrong_clock(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        joins(tmp_path, 0.5, takes=4.0)
    assert "clock" not in caplog.text

"""What a node says while it joins."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from swarmd.core.errors import DirectoryError
from swarmd.core.peers import Announcement, NodeState
from swarmd.core.span import Span
from swarmd.node.presence import Presence
from swarmd.testing import FakeClock, MemoryDirectory, toy_model
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


async def test_a_crowd_that_looks_again_asks_the_directory_at_most_twice(tmp_path: Path) -> None:
    class Counted(MemoryDirectory):
        asked = 0
        goes_on = asyncio.Event()

        async def announcements(self, wait_s: float = 0.0) -> list[Announcement]:
            self.asked += 1
            found = await super().announcements(wait_s)
            await self.goes_on.wait()
            return found

    clock = FakeClock()
    directory = Counted(clock)
    presence = Presence("a" * 40, directory, [], 30.0, tmp_path, clock, lambda: None, lambda: None)
    first = asyncio.create_task(presence.look_again())
    await asyncio.sleep(0)
    await directory.publish(announcement("b" * 40, clock))
    others = [asyncio.create_task(presence.look_again()) for _ in range(20)]
    await asyncio.sleep(0)
    directory.goes_on.set()
    await asyncio.gather(first, *others)
    assert directory.asked == 2, "one that was under way, and one that all others share"
    assert presence.view.peer("b" * 40), "what was there when they asked has been seen"
    await presence.look_again()
    assert directory.asked == 3


async def test_a_look_that_is_given_up_leaves_the_next_one_to_others(tmp_path: Path) -> None:
    class Stuck(MemoryDirectory):
        asked = 0

        async def announcements(self, wait_s: float = 0.0) -> list[Announcement]:
            self.asked += 1
            if self.asked == 1:
                await asyncio.Event().wait()
            return await super().announcements(wait_s)

    clock = FakeClock()
    directory = Stuck(clock)
    presence = Presence("a" * 40, directory, [], 30.0, tmp_path, clock, lambda: None, lambda: None)
    first = asyncio.create_task(presence.look_again())
    await asyncio.sleep(0)
    second = asyncio.create_task(presence.look_again())
    await asyncio.sleep(0)
    first.cancel()
    await second
    assert directory.asked == 2


async def test_a_directory_that_is_being_started_again_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Away(MemoryDirectory):
        times = 2

        async def announcements(self, wait_s: float = 0.0) -> list[Announcement]:
            if self.times:
                self.times -= 1
                raise DirectoryError("its process is being started again")
            return await super().announcements(wait_s)

    monkeypatch.setattr("swarmd.node.presence.RETRY_S", 0.0)
    clock = FakeClock()
    directory = Away(clock)
    presence = Presence("a" * 40, directory, [], 30.0, tmp_path, clock, lambda: None, lambda: None)
    await directory.publish(announcement("b" * 40, clock))
    await presence.see()
    assert presence.view.peer("b" * 40)


def announcement(peer_id: str, clock: FakeClock) -> Announcement:
    now, model = clock.wall(), toy_model()
    return Announcement(
        peer_id, DOOR, model, Span(0, model.num_blocks), NodeState.SERVING, now, now + 30.0
    )


def test_the_way_there_and_back_is_not_taken_for_a_wrong_clock(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        joins(tmp_path, 0.5, takes=4.0)
    assert "clock" not in caplog.text

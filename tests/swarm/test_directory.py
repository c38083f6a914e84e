"""Both directories keep the same promises; these are checked on the one in memory."""

from __future__ import annotations

from swarm_peers import NOW, peer, peer_id

from swarmd.core.peers import NodeState
from swarmd.swarm.directory import Directory
from swarmd.testing import FakeClock, MemoryDirectory


async def test_what_one_node_publishes_the_others_find() -> None:
    clock = FakeClock(NOW)
    first: Directory = MemoryDirectory(clock)
    second: Directory = MemoryDirectory(clock, first)
    await first.publish(peer(1, 0, 8))
    assert await second.announcements() == [peer(1, 0, 8)]
    assert await MemoryDirectory(clock).announcements() == []


async def test_an_announcement_expires_with_its_lease() -> None:
    clock = FakeClock(NOW)
    directory = MemoryDirectory(clock)
    await directory.publish(peer(1, 0, 8))
    clock.advance(30)
    assert await directory.announcements() == []


async def test_leaving_writes_a_tombstone() -> None:
    directory = MemoryDirectory(FakeClock(NOW))
    await directory.publish(peer(1, 0, 8))
    await directory.withdraw(peer_id(1))
    await directory.withdraw(peer_id(2))
    (gone,) = await directory.announcements()
    assert gone.state is NodeState.GONE
    await directory.publish(peer(1, 0, 8))
    assert (await directory.announcements())[0].state is NodeState.GONE


async def test_only_a_later_announcement_replaces_another() -> None:
    directory = MemoryDirectory(FakeClock(NOW))
    await directory.publish(peer(1, 0, 8))
    await directory.publish(peer(1, 0, 4))
    assert (await directory.announcements()) == [peer(1, 0, 8)]
    await directory.publish(peer(1, 0, 4, expires_at=NOW + 31))
    assert len((await directory.announcements())[0].span) == 4

"""What the directory process knows of everybody: all around are asked seldom, one holder often."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Sequence

import pytest

from swarmd.swarm import dht_commands
from swarmd.swarm.dht_commands import Picture
from swarmd.swarm.records import MODELS_KEY, model_key
from swarmd.v1 import directory_pb2 as pb

DIGEST = hashlib.sha256(b"model").hexdigest()
OTHER = hashlib.sha256(b"other").hexdigest()


def of_model(digest: str, expires_at: float = 30.0) -> pb.DirectoryRecord:
    subkey = bytes.fromhex(digest)
    return pb.DirectoryRecord(key=MODELS_KEY, subkey=subkey, value=b"m", expires_at=expires_at)


def of_node(name: str, expires_at: float = 30.0, digest: str = DIGEST) -> pb.DirectoryRecord:
    value = f"{name} {expires_at}".encode()
    key, subkey = model_key(digest, 0), name.encode()
    return pb.DirectoryRecord(key=key, subkey=subkey, value=value, expires_at=expires_at)


class OneOfMany:
    """A peer of a DHT: what all of them hold together, and what the one it glances at does."""

    refused = 0
    port = 0

    def __init__(self, *records: pb.DirectoryRecord) -> None:
        self.all = list(records)
        self.seen = list(records)
        self.glance_fails: Exception | None = None
        self.lookups = self.glances = 0

    async def lookup(self, keys: Sequence[bytes]) -> Iterable[pb.DirectoryRecord]:
        self.lookups += 1
        return [record for record in self.all if record.key in keys]

    async def glance(self, keys: Sequence[bytes]) -> Iterable[pb.DirectoryRecord]:
        self.glances += 1
        if self.glance_fails:
            raise self.glance_fails
        return [record for record in self.seen if record.key in keys]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():  # noqa: ASYNC110 (nothing tells how often it was asked)
                await asyncio.sleep(0.001)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dht_commands, "GLANCE_S", 0.001)
    monkeypatch.setattr(dht_commands, "LOOKUP_S", 3600.0)


def picture_of(peer: OneOfMany) -> Picture:
    return Picture(peer)  # type: ignore[arg-type]


def names(found: pb.DirectoryFound) -> list[bytes]:
    return [record.subkey for record in found.records]


async def first(picture: Picture) -> pb.DirectoryFound:
    return await picture.survey(pb.DirectorySurvey())


def waiting(picture: Picture, known: pb.DirectoryFound) -> asyncio.Task[pb.DirectoryFound]:
    order = pb.DirectorySurvey(wait_s=60.0, known=known.version)
    return asyncio.create_task(picture.survey(order))


async def test_what_comes_to_one_holder_is_seen_without_asking_all_around() -> None:
    peer = OneOfMany(of_model(DIGEST), of_node("a"))
    picture = picture_of(peer)
    known = await first(picture)
    looked = peer.lookups
    task = waiting(picture, known)
    await peer.until(lambda: peer.glances >= 5)
    assert not task.done(), "nothing has changed"
    peer.seen = [of_model(DIGEST), of_node("b")]  # it has nothing of the other one
    found = await task
    assert names(found) == [b"a", b"b"]
    assert peer.lookups == looked
    # One that is newer takes the place of what is known, one that is older does not.
    peer.seen = [of_node("a", 20.0), of_node("b", 40.0)]
    found = await waiting(picture, found)
    assert [record.expires_at for record in found.records] == [30.0, 40.0]
    assert peer.lookups == looked


async def test_who_does_not_wait_is_told_what_all_around_say() -> None:
    peer = OneOfMany(of_model(DIGEST), of_node("a"))
    picture = picture_of(peer)
    assert names(await first(picture)) == [b"a"]
    peer.all = [of_model(DIGEST), of_node("b")]
    peer.seen = []
    assert names(await first(picture)) == [b"b"]


async def test_a_model_that_comes_is_looked_for_at_once() -> None:
    peer = OneOfMany(of_model(DIGEST), of_node("a"))
    picture = picture_of(peer)
    task = waiting(picture, await first(picture))
    peer.all += [of_model(OTHER), of_node("o", digest=OTHER)]
    peer.seen = [of_model(OTHER)]
    assert sorted(names(await task)) == [b"a", b"o"]


@pytest.mark.parametrize("error", [TimeoutError(), LookupError("no answer")])
async def test_where_the_holder_fails_all_around_are_asked(error: Exception) -> None:
    peer = OneOfMany(of_model(DIGEST), of_node("a"))
    picture = picture_of(peer)
    task = waiting(picture, await first(picture))
    peer.all.append(of_node("b"))
    peer.glance_fails = error
    assert names(await task) == [b"a", b"b"]


async def test_what_one_holder_lacks_is_found_when_all_around_are_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dht_commands, "LOOKUP_S", 0.01)
    peer = OneOfMany(of_model(DIGEST), of_node("a"))
    picture = picture_of(peer)
    task = waiting(picture, await first(picture))
    peer.all.append(of_node("b"))
    assert names(await task) == [b"a", b"b"]
    # And what nobody has any more is gone.
    peer.all.pop()
    assert names(await waiting(picture, task.result())) == [b"a"]

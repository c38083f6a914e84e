"""What the directory process knows of everybody: all around are asked seldom, one holder often."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import pytest

from swarmd.swarm import dht_picture
from swarmd.swarm.dht_picture import Picture
from swarmd.swarm.pipe import MAX_MESSAGE_BYTES
from swarmd.swarm.records import MAX_RECORD_BYTES, MODELS_KEY, model_key
from swarmd.v1 import directory_pb2 as pb

DIGEST = hashlib.sha256(b"model").hexdigest()
OTHER = hashlib.sha256(b"other").hexdigest()
NOW = time.time()


def of_model(digest: str, lease: float = 3600.0) -> pb.DirectoryRecord:
    subkey = bytes.fromhex(digest)
    return pb.DirectoryRecord(key=MODELS_KEY, subkey=subkey, value=b"m", expires_at=NOW + lease)


def of_node(
    name: str, lease: float = 3600.0, digest: str = DIGEST, value: bytes | None = None
) -> pb.DirectoryRecord:
    return pb.DirectoryRecord(
        key=model_key(digest, 0),
        subkey=name.encode(),
        value=value or f"{name} {lease}".encode(),
        expires_at=NOW + lease,
    )


class OneOfMany:
    """A peer of a DHT: what all of them hold together, and what the one it glances at does."""

    refused = 0

    def __init__(self, *records: pb.DirectoryRecord) -> None:
        self.all = list(records)
        self.seen = list(records)
        self.error: Exception | None = None
        """Of a glance."""
        self.broken: Exception | None = None
        """Of a lookup."""
        self.lookups = self.glances = 0
        self.asked: list[frozenset[bytes]] = []

    async def lookup(self, keys: Sequence[bytes]) -> Iterable[pb.DirectoryRecord]:
        self.lookups += 1
        self.asked.append(frozenset(keys) - {MODELS_KEY})
        await asyncio.sleep(0)
        if self.broken:
            raise self.broken
        return [record for record in self.all if record.key in keys]

    async def glance(self, keys: Sequence[bytes]) -> Iterable[pb.DirectoryRecord]:
        self.glances += 1
        if self.error:
            raise self.error
        return [record for record in self.seen if record.key in keys]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 (nothing tells how often it was asked)
            await asyncio.sleep(0.001)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: NOW)
    monkeypatch.setattr(dht_picture, "GLANCE_S", 0.001)
    monkeypatch.setattr(dht_picture, "LEAST_S", 0.0)
    monkeypatch.setattr(dht_picture, "LOOKUP_S", 3600.0)


@contextlib.contextmanager
def looking(picture: Picture) -> Iterator[None]:
    """As in the directory process, where lookups go on beside surveys."""
    task = asyncio.create_task(picture.keep_looking())
    try:
        yield
    finally:
        task.cancel()


def names(found: pb.DirectoryFound) -> list[bytes]:
    return [record.subkey for record in found.records if record.key != MODELS_KEY]


async def now(picture: Picture) -> pb.DirectoryFound:
    return await picture.survey(pb.DirectorySurvey())


def news(picture: Picture, known: pb.DirectoryFound) -> asyncio.Task[pb.DirectoryFound]:
    order = pb.DirectorySurvey(wait_s=60.0, known=known.version)
    return asyncio.create_task(picture.survey(order))


async def test_what_comes_to_one_holder_is_seen_without_asking_all_around() -> None:
    peer = OneOfMany(of_model(DIGEST), of_node("a"))
    picture = Picture(peer)
    known = await now(picture)
    looked = peer.lookups
    task = news(picture, known)
    await until(lambda: peer.glances >= 5)
    assert not task.done(), "nothing has changed"
    peer.seen = [of_model(DIGEST), of_node("b")]  # it has nothing of the other one
    found = await task
    assert names(found) == [b"a", b"b"]
    # One that is newer takes the place of what is known, one that is older does not.
    peer.seen = [of_model(DIGEST), of_node("a", 1000.0), of_node("b", 4000.0)]
    found = await news(picture, found)
    assert [record.expires_at - NOW for record in found.records] == [3600.0, 4000.0]
    assert peer.lookups == looked


async def test_while_nothing_changes_a_survey_says_so_at_its_end() -> None:
    peer = OneOfMany(of_model(DIGEST), of_node("a"))
    picture = Picture(peer)
    known = await now(picture)
    found = await picture.survey(pb.DirectorySurvey(wait_s=0.02, known=known.version))
    assert found.version == known.version
    assert not found.records
    assert peer.glances


async def test_who_does_not_wait_is_told_what_all_around_say() -> None:
    peer = OneOfMany(of_model(DIGEST), of_node("a"))
    picture = Picture(peer)
    assert names(await now(picture)) == [b"a"]
    peer.all.append(of_node("b"))
    assert names(await now(picture)) == [b"a", b"b"]
    assert not peer.glances, "it has no time for more"
    peer.broken = TimeoutError("hung")
    with pytest.raises(TimeoutError):
        await now(picture)


async def test_what_has_expired_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = OneOfMany(of_model(DIGEST), of_node("a"), of_node("b", 100.0))
    picture = Picture(peer)
    found = await now(picture)
    assert names(found) == [b"a", b"b"]
    task = news(picture, found)
    await until(lambda: peer.glances >= 3)
    assert not task.done()
    monkeypatch.setattr(time, "time", lambda: NOW + 101.0)
    assert names(await task) == [b"a"]
    assert names(await now(picture)) == [b"a"], "though others have it still"


async def test_a_model_that_comes_is_looked_for_at_once() -> None:
    peer = OneOfMany(of_model(DIGEST), of_node("a"))
    picture = Picture(peer)
    with looking(picture):
        task = news(picture, await now(picture))
        peer.all += [of_model(OTHER), of_node("o", digest=OTHER)]
        peer.seen = [of_model(DIGEST), of_model(OTHER)]
        assert sorted(names(await task)) == [b"a", b"o"]


@pytest.mark.parametrize("error", [TimeoutError(), LookupError("no answer"), None])
async def test_where_a_holder_fails_or_has_nothing_all_around_are_asked(
    error: Exception | None,
) -> None:
    peer = OneOfMany(of_model(DIGEST), of_node("a"))
    picture = Picture(peer)
    with looking(picture):
        task = news(picture, await now(picture))
        peer.all.append(of_node("b"))
        peer.seen, peer.error = [], error
        assert names(await task) == [b"a", b"b"]


async def test_what_one_holder_lacks_is_found_when_all_around_are_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dht_picture, "LOOKUP_S", 0.01)
    peer = OneOfMany(of_model(DIGEST), of_node("a"))
    picture = Picture(peer)
    with looking(picture):
        task = news(picture, await now(picture))
        peer.all.append(of_node("b"))
        assert names(await task) == [b"a", b"b"]


async def test_whoever_joins_has_all_around_asked_anew() -> None:
    peer = OneOfMany()
    picture = Picture(peer)
    with looking(picture):
        task = news(picture, await now(picture))
        await until(lambda: peer.glances >= 3)
        peer.all = [of_model(DIGEST), of_node("a")]  # this node holds nothing of it
        picture.look_again()
        assert names(await task) == [b"a"]


async def test_where_lookups_fail_glances_go_on() -> None:
    peer = OneOfMany(of_model(DIGEST), of_node("a"))
    picture = Picture(peer)
    with looking(picture):
        known = await now(picture)
        peer.broken = TimeoutError("hung")
        picture.look_again()
        task = news(picture, known)
        peer.seen.append(of_node("b"))
        assert names(await task) == [b"a", b"b"]


async def test_surveys_that_look_at_once_see_all() -> None:
    peer = OneOfMany(of_model(DIGEST), of_node("a"))
    picture = Picture(peer)
    both = await asyncio.gather(now(picture), now(picture))
    assert [names(found) for found in both] == [[b"a"], [b"a"]]


async def test_models_without_end_are_not_looked_for_without_end() -> None:
    """A peer that tells of another model at each question keeps nobody busy."""

    class Endless(OneOfMany):
        async def lookup(self, keys: Sequence[bytes]) -> Iterable[pb.DirectoryRecord]:
            digest = hashlib.sha256(str(self.lookups).encode()).hexdigest()
            return [*await super().lookup(keys), of_model(digest)]

    peer = Endless(of_model(DIGEST), of_node("a"))
    picture = Picture(peer)
    picture.serves([MODELS_KEY, model_key(DIGEST, 0)])
    for _ in range(2 * dht_picture.MAX_MODELS):
        assert names(await now(picture)) == [b"a"]
    assert peer.lookups <= dht_picture.ROUNDS * 2 * dht_picture.MAX_MODELS
    assert max(map(len, peer.asked)) == dht_picture.MAX_MODELS
    assert all(model_key(DIGEST, 0) in asked for asked in peer.asked[1:])


async def test_strangers_without_end_hide_no_node_of_ours_and_the_answer_fits() -> None:
    value = b"x" * MAX_RECORD_BYTES
    fakes = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(12)]
    ours = [of_model(DIGEST), of_node("a"), of_node("b")]
    theirs = [
        of_node(f"{n}", digest=digest, value=value)
        for digest in fakes
        for n in range(dht_picture.MAX_PLACES + 100)
    ]
    peer = OneOfMany(*ours, *map(of_model, fakes), *theirs)
    picture = Picture(peer)
    picture.serves([MODELS_KEY, model_key(DIGEST, 0)])
    found = await now(picture)
    assert names(found)[:2] == [b"a", b"b"]
    assert len(found.records) == dht_picture.MAX_RECORDS
    assert found.ByteSize() < MAX_MESSAGE_BYTES
    assert len(picture._records) <= dht_picture.MAX_PLACES * (len(fakes) + 2)

"""The directory process between its socket and its DHT peer: commands in, replies out.

What a command does is the peer's business (`swarm.dht_child`); who sends it is `swarm.dht`'s.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import shutil
import signal
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Protocol

from swarmd.swarm.pipe import read_message, write_message
from swarmd.swarm.records import MODELS_KEY, SHARDS, model_key
from swarmd.v1 import directory_pb2 as pb

GLANCE_S = 0.35
"""How often a survey that waits looks at one holder of the records, and so sees what changes."""
LOOKUP_S = 3.0
"""How often it asks all around, as one holder may lack something."""
MAX_WAIT_S = 60.0


class Peer(Protocol):
    """What runs in this process: one peer of the DHT."""

    port: int

    @property
    def refused(self) -> int: ...

    async def store(self, records: Sequence[pb.DirectoryRecord]) -> list[bool]: ...

    async def lookup(self, keys: Sequence[bytes]) -> Iterable[pb.DirectoryRecord]:
        """Return the latest records under the keys, of all who may have some."""
        ...

    async def glance(self, keys: Sequence[bytes]) -> Iterable[pb.DirectoryRecord]:
        """Return the records that one holder of each key has: this process, where it is one."""
        ...

    def join(self, peers: Iterable[str]) -> None: ...

    async def addresses(self) -> list[str]: ...

    async def wait_until_tried(self) -> None: ...

    async def keep_joined(self, met: Callable[[list[str]], None]) -> None: ...

    async def wait_for_death(self) -> None: ...

    async def close(self) -> None: ...


Start = Callable[[pb.DirectoryStart], Awaitable[Peer]]


async def run(start: Start, descriptor: int) -> None:
    """Serve the socket with that descriptor until it closes or the peer dies."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        # A service manager signals the whole group; the parent still has to take its announcement
        # back through this process, and closes the socket when it is done.
        loop.add_signal_handler(number, lambda: None)
    loop.set_exception_handler(_say)
    reader, writer = await asyncio.open_unix_connection(sock=socket.socket(fileno=descriptor))
    try:
        await serve(start, reader, writer)
    finally:
        writer.close()


def _say(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Say what went wrong in a task that nobody waits for; of a p2pd that died, its end says it."""
    if not isinstance(context.get("exception"), ConnectionError | asyncio.IncompleteReadError):
        loop.default_exception_handler(context)


async def serve(start: Start, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Start as the first command says, then answer until the socket closes or the peer dies."""
    first = await _next_command(reader)
    if first is None or first.WhichOneof("body") != "start":
        return
    try:
        peer = await start(first.start)
    except Exception as error:
        _send(writer, pb.DirectoryReply(id=first.id, failed=_failure(error)))
        await writer.drain()
        return

    def met(addresses: list[str]) -> None:
        _send(writer, pb.DirectoryReply(neighbours=pb.DirectoryNeighbours(addresses=addresses)))

    try:
        work = {
            asyncio.create_task(peer.keep_joined(met)),
            asyncio.create_task(peer.wait_for_death()),
            asyncio.create_task(_answer_all(peer, first, reader, writer)),
        }
        await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        await peer.close()
        shutil.rmtree(first.start.socket_dir, ignore_errors=True)


async def _answer_all(
    peer: Peer,
    first: pb.DirectoryCommand,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    await peer.wait_until_tried()
    picture = Picture(peer)
    started = pb.DirectoryStarted(port=peer.port, addresses=await peer.addresses())
    _send(writer, pb.DirectoryReply(id=first.id, started=started))

    async def reply(command: pb.DirectoryCommand) -> None:
        _send(writer, await answer(peer, picture, command))

    async with asyncio.TaskGroup() as group:
        while command := await _next_command(reader):
            group.create_task(reply(command))


async def answer(peer: Peer, picture: Picture, command: pb.DirectoryCommand) -> pb.DirectoryReply:
    """Carry out one command; what goes wrong is in the reply."""
    reply = pb.DirectoryReply(id=command.id)
    try:
        match command.WhichOneof("body"):
            case "store":
                reply.stored.stored.extend(await peer.store(command.store.records))
            case "survey":
                reply.found.CopyFrom(await picture.survey(command.survey))
            case "join":
                peer.join(command.join.peers)
                reply.joined.SetInParent()
            case other:
                raise ValueError(f"unknown command {other}")
    except Exception as error:  # the parent decides what a failure means
        reply.failed.CopyFrom(_failure(error))
    return reply


class Picture:
    """Everybody's announcements, as the DHT has them."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._records: dict[tuple[bytes, bytes], pb.DirectoryRecord] = {}
        self._keys: frozenset[bytes] = frozenset()
        """Those of the models that there are."""
        self._due = 0.0
        """When all around are asked again."""

    async def survey(self, order: pb.DirectorySurvey) -> pb.DirectoryFound:
        """Look at the announcements until they differ from what is known, or time is up.

        Waiting here, not in the node, leaves the node's event loop alone while nothing changes.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + min(order.wait_s, MAX_WAIT_S)
        if not order.wait_s:
            await self._look_up()  # who does not wait wants to know what is so now
        while True:
            records = await self._look()
            version, refused = _version(records), self._peer.refused
            if version != order.known:
                return pb.DirectoryFound(records=records, version=version, refused=refused)
            if loop.time() >= end:
                return pb.DirectoryFound(version=version, refused=refused)
            await asyncio.sleep(GLANCE_S * random.uniform(0.8, 1.2))

    async def _look(self) -> list[pb.DirectoryRecord]:
        """Return the records of all models in order, having asked one holder, or all around."""
        if asyncio.get_running_loop().time() >= self._due or not await self._glance():
            await self._look_up()
        places = sorted(place for place in self._records if place[0] in self._keys)
        return [self._records[place] for place in places]

    async def _glance(self) -> bool:
        """Take over what a holder has that is newer; False if that was not all that is needed."""
        try:
            seen = await self._peer.glance([MODELS_KEY, *self._keys])
        except (TimeoutError, LookupError):
            return False
        for record in seen:
            held = self._records.get(_place(record))
            if held is None or held.expires_at < record.expires_at:
                self._records[_place(record)] = record
        return self._models() <= self._keys

    async def _look_up(self) -> None:
        """Ask all around: once where no model has come, as then the keys are known."""
        while True:
            found = await self._peer.lookup([MODELS_KEY, *self._keys])
            self._records = {_place(record): record for record in found}
            if (keys := self._models()) <= self._keys:
                break
            self._keys = keys
        self._keys = keys
        self._due = asyncio.get_running_loop().time() + LOOKUP_S * random.uniform(0.8, 1.2)

    def _models(self) -> frozenset[bytes]:
        """Return the keys under which the nodes of the models are that have any."""
        digests = [subkey.hex() for key, subkey in self._records if key == MODELS_KEY]
        return frozenset(model_key(digest, shard) for digest in digests for shard in range(SHARDS))


def _place(record: pb.DirectoryRecord) -> tuple[bytes, bytes]:
    return record.key, record.subkey


def _version(records: Iterable[pb.DirectoryRecord]) -> bytes:
    digest = hashlib.sha256()
    for record in records:
        for part in (record.key, record.subkey, record.value):
            digest.update(len(part).to_bytes(4, "big") + part)
    return digest.digest()


def _failure(error: Exception) -> pb.DirectoryFailed:
    what = str(error) or "no answer from the DHT in time"
    return pb.DirectoryFailed(message=f"{type(error).__name__}: {what}")


def _send(writer: asyncio.StreamWriter, reply: pb.DirectoryReply) -> None:
    write_message(writer, reply.SerializeToString())


async def _next_command(reader: asyncio.StreamReader) -> pb.DirectoryCommand | None:
    message = await read_message(reader)
    return None if message is None else pb.DirectoryCommand.FromString(message)

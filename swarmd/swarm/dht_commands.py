"""The directory process between its socket and its DHT peer: commands in, replies out.

What a command does is the peer's business (`swarm.dht_child`); who sends it is `swarm.dht`'s.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Protocol

from swarmd.swarm.dht_picture import Picture, Source
from swarmd.swarm.pipe import read_message, write_message
from swarmd.v1 import directory_pb2 as pb


class Peer(Source, Protocol):
    """What runs in this process: one peer of the DHT."""

    port: int

    async def store(self, records: Sequence[pb.DirectoryRecord]) -> list[bool]: ...

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

    picture = Picture(peer)

    def met(addresses: list[str]) -> None:
        picture.look_again()  # what was said before others were there is not all
        _send(writer, pb.DirectoryReply(neighbours=pb.DirectoryNeighbours(addresses=addresses)))

    try:
        work = {
            asyncio.create_task(peer.keep_joined(met)),
            asyncio.create_task(peer.wait_for_death()),
            asyncio.create_task(picture.keep_looking()),
            asyncio.create_task(_answer_all(peer, picture, first, reader, writer)),
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
    picture: Picture,
    first: pb.DirectoryCommand,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    await peer.wait_until_tried()
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
                picture.serves(record.key for record in command.store.records)
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


def _failure(error: Exception) -> pb.DirectoryFailed:
    what = str(error) or "no answer from the DHT in time"
    return pb.DirectoryFailed(message=f"{type(error).__name__}: {what}")


def _send(writer: asyncio.StreamWriter, reply: pb.DirectoryReply) -> None:
    write_message(writer, reply.SerializeToString())


async def _next_command(reader: asyncio.StreamReader) -> pb.DirectoryCommand | None:
    message = await read_message(reader)
    return None if message is None else pb.DirectoryCommand.FromString(message)

"""Nodes that have nothing but links, peers that misbehave, and peers in processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc

from swarmd.core.frames import Close, SessionFrame
from swarmd.v1 import peer_pb2 as pb
from swarmd.v1 import peer_pb2_grpc
from swarmd.wire import encoding, frames, limits
from swarmd.wire.channel import dial, new_server
from swarmd.wire.link import LinkSettings, RttSample
from swarmd.wire.links import Links
from swarmd.wire.sealed import add_peer_service, seal

A, B, C, D = ("a" * 40, "b" * 40, "c" * 40, "d" * 40)

SETTINGS = LinkSettings(heartbeat=0.1, timeout=5.0, handshake=5.0)
"""Patient, so that a busy machine loses nobody."""
IMPATIENT = LinkSettings(heartbeat=0.1, timeout=1.0, handshake=5.0)
"""For peers that fall silent."""
SHORT_DIAL = LinkSettings(heartbeat=0.1, timeout=5.0, handshake=0.5)
"""For peers that do not even begin to speak."""


class Recorder:
    """A handler that keeps everything, and lets a test wait for it."""

    def __init__(self) -> None:
        self.frames: list[tuple[str, SessionFrame]] = []
        self.batches: list[int] = []
        """How many frames came together."""
        self.up: list[str] = []
        self.lost: list[tuple[str, str]] = []
        self.rtts: list[tuple[str, RttSample]] = []
        self.errors: dict[str, Exception] = {}
        """What on_frames raises for frames of a peer."""
        self.own_coordinate: tuple[float, ...] = ()
        self._changed = asyncio.Event()

    def on_frames(self, peer_id: str, batch: Sequence[SessionFrame]) -> None:
        if peer_id in self.errors:
            raise self.errors[peer_id]
        self.batches.append(len(batch))
        self.frames += [(peer_id, frame) for frame in batch]
        self._changed.set()

    takes_links = True

    def on_peer_up(self, peer_id: str) -> None:
        self.up.append(peer_id)
        self._changed.set()

    def on_peer_lost(self, peer_id: str, reason: str) -> None:
        self.lost.append((peer_id, reason))
        self._changed.set()

    def on_rtt(self, peer_id: str, sample: RttSample) -> None:
        self.rtts.append((peer_id, sample))
        self._changed.set()

    def coordinate(self) -> tuple[float, ...]:
        return self.own_coordinate

    async def until(self, happened: Callable[[], object]) -> None:
        """Wait for something that a callback makes true."""
        async with asyncio.timeout(20):
            while not happened():
                self._changed.clear()
                await self._changed.wait()

    async def frames_from(self, peer_id: str, count: int) -> list[SessionFrame]:
        await self.until(lambda: len(self.got(peer_id)) >= count)
        return self.got(peer_id)

    def got(self, peer_id: str) -> list[SessionFrame]:
        return [frame for sender, frame in self.frames if sender == peer_id]

    async def loss_of(self, peer_id: str) -> str:
        """Wait until the peer is lost and return the reason, the first if there are several."""
        await self.until(lambda: peer_id in dict(self.lost))
        return next(reason for peer, reason in self.lost if peer == peer_id)


class Node(peer_pb2_grpc.PeerServicer):
    """Links behind a real server on a free port of this machine."""

    def __init__(
        self, peer_id: str, view: dict[str, str], settings: LinkSettings = SETTINGS
    ) -> None:
        self.peer_id = peer_id
        self.view = view
        self.handler = Recorder()
        self.tasks: set[asyncio.Task[None]] = set()
        self.dialled: list[str] = []
        self.appears: asyncio.Future[str | None] | None = None
        """Where a peer is that the view does not show."""
        self.links = Links(
            peer_id, "", self.handler, self._resolve, self._spawn, settings, appears=self._appears
        )
        self.address = ""
        self._server = new_server()

    def _resolve(self, peer_id: str) -> str | None:
        self.dialled.append(peer_id)
        return self.view.get(peer_id)

    async def _appears(self, peer_id: str) -> str | None:
        return await self.appears if self.appears is not None else None

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        return task

    async def Link(self, request_iterator: object, context: Any) -> None:
        await self.links.accept(context)

    async def __aenter__(self) -> Node:
        add_peer_service(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self.view[self.peer_id] = self.address
        await self._server.start()
        return self

    async def stop_server(self) -> None:
        await self._server.stop(grace=0)

    async def __aexit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.links.close()
        await self.stop_server()
        # The daemon's task group: what a task raises would end the node.
        async with asyncio.timeout(10):
            results = await asyncio.gather(*self.tasks, return_exceptions=True)
        assert [r for r in results if isinstance(r, Exception)] == []


class Stranger:
    """Somebody who opens `Peer.Link` and says what it likes, byte by byte."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.call = channel.stream_stream(
            "/swarmd.v1.Peer/Link", response_deserializer=pb.Frame.FromString
        )()

    async def say(self, *messages: pb.Frame | bytes) -> None:
        for message in messages:
            raw = message if isinstance(message, bytes) else seal(message)
            await self.call.write(raw)

    async def hear(self) -> list[SessionFrame]:
        """Return the next session frames, whatever heartbeats come before."""
        while True:
            message = await self.call.read()
            assert message is not grpc.aio.EOF
            if message.WhichOneof("body") not in ("hello", "heartbeat"):
                return list(frames.decode(message))

    async def refusal(self) -> tuple[grpc.StatusCode, str]:
        """Wait until the other side ends the stream; the status comes after all messages."""
        async with asyncio.timeout(20):
            with contextlib.suppress(grpc.RpcError):
                while await self.call.read() is not grpc.aio.EOF:
                    pass
            return await self.call.code(), await self.call.details()


@contextlib.asynccontextmanager
async def stranger(node: Node, *first: pb.Frame | bytes) -> AsyncIterator[Stranger]:
    async with dial(node.address) as channel:
        somebody = Stranger(channel)
        with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):
            await somebody.say(*first)  # who is refused may not even get this far
        yield somebody


def close_frame(n: int) -> pb.Frame:
    return encoding.encode(Close(n.to_bytes(16, "big"), 1))


def hello(peer_id: str, protocol: int = limits.PROTOCOL) -> pb.Frame:
    return pb.Frame(hello=pb.Hello(protocol=protocol, peer_id=peer_id))


@contextlib.contextmanager
def silent_port() -> Iterator[str]:
    """The address of somebody who takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def free_port() -> str:
    """An address at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


@contextlib.asynccontextmanager
async def process(peer_id: str, calls: str = "") -> AsyncIterator[tuple[Any, str]]:
    """A node in a process of its own, and its address. `calls`: an address that it dials as A."""
    script = Path(__file__).with_name("peer_process.py")
    child = await asyncio.create_subprocess_exec(
        sys.executable, str(script), peer_id, calls, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert child.stdout is not None
        async with asyncio.timeout(30):
            address = (await child.stdout.readline()).decode().strip()
        yield child, address
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()

"""One link over a stream in memory: what no real network does on demand."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import frame_values as values
import grpc
import pytest
from wire_nodes import A, B, Node, Recorder, close_frame, hello

from swarmd.core.errors import PeerUnreachable
from swarmd.v1 import peer_pb2 as pb
from swarmd.wire.link import Link, LinkSettings
from swarmd.wire.sealed import seal
from swarmd.wire.stream import AcceptedStream, DialledStream, FrameStream

pytestmark = pytest.mark.usefixtures("quiet")


class MemoryStream:
    """A stream whose other end is the test; serves as gRPC's context as well, where it is given
    bytes to read."""

    def __init__(self) -> None:
        self.incoming: asyncio.Queue[Any] = asyncio.Queue()
        self.written: asyncio.Queue[Any] = asyncio.Queue()
        self.closed = False

    async def read(self) -> Any:
        return await self.incoming.get()

    async def write(self, frame: Any) -> None:
        self.written.put_nowait(frame)

    async def finish(self) -> None:
        raise PeerUnreachable("finished")

    def close(self) -> None:
        self.closed = True

    def say_heartbeat(self) -> None:
        self.incoming.put_nowait(pb.Frame(heartbeat=pb.Heartbeat(sent_us=1)))

    async def next_heartbeat(self) -> None:
        async with asyncio.timeout(20):
            while (await self.written.get()).WhichOneof("body") != "heartbeat":
                pass


@contextlib.asynccontextmanager
async def running(
    stream: FrameStream, settings: LinkSettings
) -> AsyncIterator[tuple[Link, asyncio.Task[None]]]:
    link = Link(stream, B, settings, Recorder())
    task: asyncio.Task[None] = asyncio.get_running_loop().create_task(link.run())
    try:
        yield link, task
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()


async def test_time_in_which_this_process_did_not_run_is_no_silence_of_the_peers() -> None:
    stream = MemoryStream()
    settings = LinkSettings(heartbeat=0.1, timeout=1.0)
    async with running(stream, settings) as (_, task):
        await stream.next_heartbeat()
        stream.say_heartbeat()
        await stream.next_heartbeat()
        time.sleep(1.5)  # noqa: ASYNC251 - it is this loop that stands still
        await stream.next_heartbeat()
        stream.say_heartbeat()
        for _ in range(3):
            await stream.next_heartbeat()
        assert not task.done()


async def test_time_in_which_this_process_did_not_run_is_no_distance_to_the_peer() -> None:
    stream, heard = MemoryStream(), Recorder()
    link = Link(stream, B, LinkSettings(heartbeat=0.1, timeout=1.0), heard)
    task = asyncio.get_running_loop().create_task(link.run())
    now_us = time.monotonic_ns() // 1000
    for ago_us in (20_000_000, 1_000):  # the first one lay unread while the process was stopped
        beat = pb.Heartbeat(sent_us=1, echo_us=now_us - ago_us)
        stream.incoming.put_nowait(pb.Frame(heartbeat=beat))
    while not heard.rtts:  # noqa: ASYNC110 - the link reads on in between
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert [round(sample.seconds) for _, sample in heard.rtts] == [0]


async def test_silence_ends_a_link_and_closes_its_stream() -> None:
    stream = MemoryStream()
    async with running(stream, LinkSettings(heartbeat=0.05, timeout=0.2)) as (_, task):
        with pytest.raises(PeerUnreachable, match="peer bbbbbbbb was silent for"):
            await task
        assert stream.closed


async def test_a_finished_link_has_sent_everything_before_it_ends() -> None:
    stream = MemoryStream()
    async with running(stream, LinkSettings()) as (link, task):
        link.send([values.close(n) for n in range(3)])
        link.finish()
        with pytest.raises(PeerUnreachable, match="finished"):
            await task
    written = [stream.written.get_nowait() for _ in range(stream.written.qsize())]
    assert [message.WhichOneof("body") for message in written].count("close") == 3


async def test_a_caller_that_grpc_reports_by_cancellation_only_is_lost() -> None:
    async with Node(A, {}) as a:
        context = MemoryStream()
        context.incoming.put_nowait(seal(hello(B)))
        context.incoming.put_nowait(seal(close_frame(1)))
        serving = asyncio.ensure_future(a.links.accept(context))
        await a.handler.frames_from(B, 1)
        serving.cancel()
        await asyncio.wait([serving])
        assert serving.cancelled()
        assert a.handler.lost == [(B, "the peer closed the link")]
        assert a.links.connected() == []


class DeadCall:
    """A call or context on which everything fails in one way."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    async def read(self) -> Any:
        raise self._error

    async def write(self, frame: pb.Frame) -> None:
        raise self._error

    done_writing = read


@pytest.mark.parametrize(
    "error",
    [
        asyncio.InvalidStateError("RPC already finished."),
        grpc.aio.UsageError("RPC already finished."),
        grpc.aio.InternalError("Failed \x1b execute_batch\n" + "x" * 999),
        grpc.aio.AioRpcError(
            grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "gone"
        ),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_whatever_grpc_raises_on_a_dead_stream_is_a_lost_peer(error: Exception) -> None:
    call = DeadCall(error)
    dialled = DialledStream.__new__(DialledStream)
    dialled._call = call
    accepted = AcceptedStream(call)
    for act in (
        accepted.read(),
        accepted.write(close_frame(1)),
        dialled.read(),
        dialled.write(close_frame(1)),
        dialled.finish(),
    ):
        with pytest.raises(PeerUnreachable, match="the link broke: ") as caught:
            await act
        assert len(str(caught.value)) < 250
        assert str(caught.value).isprintable()

"""One link's stream, whichever side dialled it: read a frame, write a frame, close.

The border to grpc.aio: what it raises on a dead stream leaves here as PeerUnreachable.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import grpc

from swarmd.core.errors import PeerUnreachable
from swarmd.v1 import peer_pb2 as pb

# A write to a stream that has just died may raise InvalidStateError instead of an RPC error.
_BROKEN = (grpc.RpcError, asyncio.InvalidStateError, grpc.aio.UsageError)


class FrameStream(Protocol):
    """A bidirectional stream of frames. Every method raises PeerUnreachable when it is broken."""

    async def read(self) -> pb.Frame: ...

    async def write(self, frame: pb.Frame) -> None: ...

    def close(self) -> None: ...


class DialledStream:
    """The stream as the side sees it that called `Peer.Link`."""

    def __init__(self, channel: grpc.aio.Channel, call: grpc.aio.StreamStreamCall) -> None:
        self._channel = channel
        self._call = call

    async def read(self) -> pb.Frame:
        return await _read(self._call)

    async def write(self, frame: pb.Frame) -> None:
        try:
            await self._call.write(frame)
        except _BROKEN as error:
            raise PeerUnreachable(f"the link broke: {_reason(error)}") from error

    def close(self) -> None:
        self._call.cancel()


class AcceptedStream:
    """The stream as the side sees it that serves `Peer.Link`."""

    def __init__(self, context: grpc.aio.ServicerContext) -> None:
        self._context = context

    async def read(self) -> pb.Frame:
        return await _read(self._context)

    async def write(self, frame: pb.Frame) -> None:
        try:
            await self._context.write(frame)
        except _BROKEN as error:
            raise PeerUnreachable(f"the link broke: {_reason(error)}") from error

    def close(self) -> None:
        """The stream ends when the servicer's coroutine returns."""


async def _read(source: grpc.aio.StreamStreamCall | grpc.aio.ServicerContext) -> pb.Frame:
    try:
        frame = await source.read()
    except _BROKEN as error:
        raise PeerUnreachable(f"the link broke: {_reason(error)}") from error
    if not isinstance(frame, pb.Frame):
        raise PeerUnreachable("the peer closed the link")
    return frame


def _reason(error: BaseException) -> str:
    details = getattr(error, "details", None)
    text = details() if callable(details) else None
    return str(text or error or type(error).__name__)

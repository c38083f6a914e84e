"""One link's stream, whichever side dialled it: read a frame, write a frame, end it.

The border to grpc.aio: what it raises on a dead stream leaves here as PeerUnreachable, and bytes
that are no frame as ProtocolError.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

import grpc
from google.protobuf.message import DecodeError

from swarmd.core.errors import PeerUnreachable, ProtocolError
from swarmd.v1 import peer_pb2 as pb
from swarmd.wire.sealed import call_link, seal, unseal
from swarmd.wire.status import printable

# A write to a stream that has just died may raise InvalidStateError instead of an RPC error.
_BROKEN = (grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError)
_MAX_REASON = 200


class FrameStream(Protocol):
    """A bidirectional stream of frames. Every method raises PeerUnreachable when it is broken."""

    async def read(self) -> pb.Frame:
        """Return the next frame. Raises ProtocolError for bytes that are none."""
        ...

    async def write(self, frame: pb.Frame) -> None:
        """Write a frame; waits while the peer takes nothing. Cancelled, it ends the stream."""
        ...

    async def finish(self) -> None:
        """Write no more; what has been written still arrives. Reading then comes to its end."""
        ...

    def close(self) -> None:
        """End the stream; what is on its way may be lost."""
        ...


class _GrpcStream:
    def __init__(self, call: Any) -> None:
        """Take a StreamStreamCall or a ServicerContext: both read and write alike."""
        self._call = call

    async def read(self) -> pb.Frame:
        try:
            data = await self._call.read()
        except _BROKEN as error:
            raise _lost(error) from error
        if not isinstance(data, bytes):
            raise PeerUnreachable("the peer closed the link")
        try:
            return unseal(data)
        except DecodeError as error:
            raise ProtocolError(f"not a frame: {error}") from error

    async def write(self, frame: pb.Frame) -> None:
        try:
            await self._call.write(seal(frame))
        except _BROKEN as error:
            raise _lost(error) from error


class DialledStream(_GrpcStream):
    """The stream as the side sees it that called `Peer.Link`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        super().__init__(call_link(channel))

    async def finish(self) -> None:
        try:
            await self._call.done_writing()
        except _BROKEN as error:
            raise _lost(error) from error

    def close(self) -> None:
        self._call.cancel()


class AcceptedStream(_GrpcStream):
    """The stream as the side sees it that serves `Peer.Link`; it ends with the servicer's call."""

    async def finish(self) -> None:
        # Not by ending the call: a dialler whose next write fails can read no more, whatever is
        # on its way. It is asked to end its side, which ends the call.
        await self.write(pb.Frame(goodbye=pb.Goodbye()))

    def close(self) -> None:
        pass


def _lost(error: BaseException) -> PeerUnreachable:
    """Name what broke, in one line of bounded length: the details are the peer's own words."""
    details = getattr(error, "details", None)
    text = details() if callable(details) else None
    reason = " ".join(printable(str(text or error or type(error).__name__)).split())
    return PeerUnreachable(f"the link broke: {reason[:_MAX_REASON]}")

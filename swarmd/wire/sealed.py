"""Frames of links as bytes with a checksum: what a broken wire or proxy has changed is no frame.

TCP's own checksum misses one damaged segment in some ten thousands (Stone and Partridge, SIGCOMM
2000), and covers no proxy in between; a changed bit within hidden states would give wrong tokens.
This guards against damage, not against anybody who means harm: that is the transport's business.
"""

from __future__ import annotations

import zlib
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from swarmd.v1 import peer_pb2 as pb

_LINK = "/swarmd.v1.Peer/Link"
_TAG = bytes([pb.Frame.CHECKSUM_FIELD_NUMBER << 3 | 5])
"""How protobuf writes that a field of four bytes follows: the checksum stands at the end, so that
the message is what protobuf itself could have written."""
_SEAL_BYTES = len(_TAG) + 4


def seal(frame: pb.Frame) -> bytes:
    """Return a frame's bytes with the CRC-32 (RFC 1952) of what comes before it at the end."""
    data = frame.SerializeToString()
    return data + _TAG + zlib.crc32(data).to_bytes(4, "little")


def unseal(data: bytes) -> pb.Frame:
    """Return the frame in these bytes. Raises DecodeError if they are not as they were sent."""
    body = memoryview(data)[:-_SEAL_BYTES]
    if data[-_SEAL_BYTES:] != _TAG + zlib.crc32(body).to_bytes(4, "little"):
        raise DecodeError("a frame whose checksum is wrong, or missing")
    return pb.Frame.FromString(data)


def call_link(channel: grpc.aio.Channel) -> Any:
    """Call `Peer.Link`; returns the call, which reads and writes frames as bytes."""
    return channel.stream_stream(_LINK)()


def add_peer_service(servicer: Any, server: grpc.aio.Server) -> None:
    """Have a server answer `Peer`: as generated code does, but for the bytes of frames."""
    handlers = {
        "Link": grpc.stream_stream_rpc_method_handler(servicer.Link),
        "Introduce": grpc.unary_unary_rpc_method_handler(
            servicer.Introduce,
            request_deserializer=pb.IntroduceRequest.FromString,
            response_serializer=pb.IntroduceReply.SerializeToString,
        ),
    }
    handler = grpc.method_handlers_generic_handler("swarmd.v1.Peer", handlers)
    server.add_generic_rpc_handlers((handler,))

"""What was damaged on its way is no frame, whichever bit it was."""

from __future__ import annotations

import asyncio
import contextlib

import grpc
import pytest
from google.protobuf.message import DecodeError
from wire_nodes import Node, Stranger

from swarmd.core.frames import DType, Payload, Step
from swarmd.v1 import peer_pb2 as pb
from swarmd.wire import encoding, limits
from swarmd.wire.channel import dial
from swarmd.wire.sealed import seal, unseal

HIDDEN = Payload(DType.FLOAT32, (1, 4), bytes(range(16)))
STEP = Step(b"s" * 16, 1, 0, 7, (1,), hidden=HIDDEN, wants=(7,))


def test_a_sealed_frame_comes_out_as_it_went_in_and_protobuf_reads_it_too() -> None:
    frame = encoding.encode(STEP)
    assert unseal(seal(frame)).steps == frame.steps
    assert pb.Frame.FromString(seal(frame)).steps == frame.steps


def test_every_flipped_bit_is_noticed() -> None:
    data = seal(encoding.encode(STEP))
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DecodeError):
            unseal(bytes(damaged))


@pytest.mark.parametrize("data", [b"", b"\x7d", pb.Frame(goodbye=pb.Goodbye()).SerializeToString()])
def test_what_has_no_checksum_is_no_frame(data: bytes) -> None:
    with pytest.raises(DecodeError, match="checksum"):
        unseal(data)


async def test_a_link_ends_with_the_first_damaged_frame() -> None:
    hello = pb.Frame(hello=pb.Hello(protocol=limits.PROTOCOL, peer_id="b" * 40))
    sound = seal(encoding.encode(STEP))
    at = sound.index(HIDDEN.data[3:9])  # within the numbers, where protobuf sees no difference
    damaged = sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :]
    async with Node("a" * 40, {}) as node, dial(node.address) as channel:
        stranger = Stranger(channel)
        await stranger.say(hello, sound)
        await node.handler.frames_from("b" * 40, 1)
        # The link may be gone before the second of these is written.
        with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):
            await stranger.say(damaged, sound)
        await node.handler.loss_of("b" * 40)
    assert len(node.handler.got("b" * 40)) == 1

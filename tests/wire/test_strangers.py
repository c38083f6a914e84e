"""What anybody can send to the port: refused by name, and nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
import math

import frame_values as values
import grpc
import pytest
from wire_nodes import (
    SHORT_DIAL,
    A,
    B,
    C,
    D,
    Node,
    hello,
    stranger,
)

from swarmd.v1 import peer_pb2 as pb
from swarmd.wire import encoding, limits

pytestmark = pytest.mark.usefixtures("quiet")

CLOSE = encoding.encode(values.close(1))


def heartbeat(coordinate: list[float]) -> pb.Frame:
    return pb.Frame(heartbeat=pb.Heartbeat(sent_us=1, coordinate=coordinate))


@pytest.mark.parametrize(
    ("first", "complaint"),
    [
        (b"\xff\xff\xff", "not a frame"),
        (b"", "not a frame"),
        (pb.Frame(), "must be a hello"),
        (CLOSE, "must be a hello"),
        (heartbeat([]), "must be a hello"),
        (hello(B, protocol=0), "link protocol 0, this node 1"),
        (hello(B, protocol=2), "link protocol 2, this node 1"),
        (hello(A), "own peer id"),
        (hello(""), "40 hex digits"),
        (hello("B" * 40), "40 hex digits"),
        (hello("b" * 41), "40 hex digits"),
        (hello("\x1b[2J" * 9), "40 hex digits"),
    ],
)
async def test_who_does_not_introduce_itself_is_refused(
    first: pb.Frame | bytes, complaint: str
) -> None:
    view: dict[str, str] = {}
    async with Node(A, view) as a, Node(C, view) as c:
        c.links.send(A, [values.close(1)])
        await a.handler.frames_from(C, 1)
        async with stranger(a, first) as somebody:
            code, details = await somebody.refusal()
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert complaint in details
        assert details.isprintable()
        c.links.send(A, [values.close(2)])
        await a.handler.frames_from(C, 2)
        assert a.handler.lost == []
        assert {peer for peer, _ in a.handler.frames} == {C}


async def test_who_says_nothing_is_refused_after_a_while() -> None:
    async with Node(A, {}, SHORT_DIAL) as a, stranger(a) as somebody:
        code, details = await somebody.refusal()
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "no hello within 0.5 s" in details
        assert a.handler.lost == []


@pytest.mark.parametrize("first", [b"\xff\xff\xff", hello(A), hello(B), b""])
async def test_who_leaves_at_any_moment_leaves_no_trace(first: pb.Frame | bytes) -> None:
    async with Node(A, {}) as a:
        for patience in range(12):
            async with stranger(a, first) as somebody:
                for _ in range(patience):
                    await asyncio.sleep(0)
                somebody.call.cancel()
        async with stranger(a, hello(C), CLOSE):
            await a.handler.frames_from(C, 1)


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (b"\xff\xff\xff", "not a frame"),
        (pb.Frame(), "kind none"),
        (hello(B), "kind hello"),
        (pb.Frame(close=pb.Close(session=b"x", epoch=1)), "session id"),
        (pb.Frame(steps=pb.Steps(steps=[pb.Step()])), "chunks"),
        (heartbeat([math.nan]), "finite"),
        (heartbeat([math.inf]), "finite"),
        (heartbeat([1.0] * 9), "at most 8"),
        (pb.Frame(fragment=pb.Fragment()), "fragment"),
        (pb.Frame(fragment=pb.Fragment(total_bytes=1 << 40, data=b"x")), "at most"),
        (pb.Frame(fragment=pb.Fragment(total_bytes=2, data=b"\x0a\x00")), "kind hello"),
        (pb.Frame(fragment=pb.Fragment(total_bytes=2, data=b"\x0a\x05")), "does not parse"),
        (pb.Frame.FromString(b"\xfa\x02\x03abc"), "kind none"),  # a kind that came later
    ],
)
async def test_who_breaks_a_rule_loses_its_link_and_no_other(
    message: pb.Frame | bytes, complaint: str
) -> None:
    view: dict[str, str] = {}
    async with Node(A, view) as a, Node(C, view) as c:
        c.links.send(A, [values.close(1)])
        await a.handler.frames_from(C, 1)
        async with stranger(a, hello(B), CLOSE, message) as somebody:
            assert complaint in await a.handler.loss_of(B)
            await somebody.refusal()
        c.links.send(A, [values.close(2)])
        await a.handler.frames_from(C, 2)
        assert a.handler.got(B) == [values.close(1)]
        assert [peer for peer, _ in a.handler.lost] == [B]


async def test_a_message_over_grpcs_limit_ends_the_link() -> None:
    async with Node(A, {}) as a, stranger(a, hello(B), CLOSE) as somebody:
        await a.handler.frames_from(B, 1)
        big = encoding.encode(values.hidden_step(1, limits.RECEIVE_MESSAGE_BYTES))
        # It may be on its way as a whole before it is refused.
        with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):
            await somebody.say(big)
        await a.handler.loss_of(B)
        code, _ = await somebody.refusal()
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_forged_echo_gives_no_round_trip() -> None:
    async with Node(A, {}) as a:
        forged = pb.Frame(heartbeat=pb.Heartbeat(sent_us=1, echo_us=(1 << 64) - 1))
        ancient = pb.Frame(heartbeat=pb.Heartbeat(sent_us=1, echo_us=1))
        async with stranger(a, hello(B), forged, ancient, CLOSE):
            await a.handler.frames_from(B, 1)
            assert a.handler.rtts == []


async def test_one_peer_can_hold_few_links() -> None:
    async with contextlib.AsyncExitStack() as stack:
        a = await stack.enter_async_context(Node(A, {}))
        for n in range(limits.MAX_LINKS_PER_PEER):
            await stack.enter_async_context(stranger(a, hello(B), CLOSE))
            await a.handler.frames_from(B, n + 1)
        one_more = await stack.enter_async_context(stranger(a, hello(B)))
        code, details = await one_more.refusal()
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "4 links with this peer" in details
        await stack.enter_async_context(stranger(a, hello(C), CLOSE))
        await a.handler.frames_from(C, 1)
        assert a.handler.lost == []


async def test_a_peer_that_is_not_the_one_dialled_is_refused_before_it_notices() -> None:
    view: dict[str, str] = {}
    async with Node(A, view) as a, Node(B, view) as b:
        view[D] = b.address
        a.links.send(D, [values.close(1)])
        assert "peer bbbbbbbb now, not dddddddd" in await a.handler.loss_of(D)
        a.links.send(B, [values.close(2)])
        assert await b.handler.frames_from(A, 1) == [values.close(2)]
        assert b.handler.lost == []
        assert a.links.connected() == [B]

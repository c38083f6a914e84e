"""However a link ends, the node that is left behind hears of it, and of nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import signal

import frame_values as values
import pytest
from wire_nodes import (
    IMPATIENT,
    SHORT_DIAL,
    A,
    B,
    C,
    D,
    Node,
    close_frame,
    free_port,
    hello,
    process,
    silent_port,
    stranger,
)

from swarmd.core.errors import ProtocolError
from swarmd.v1 import peer_pb2 as pb
from swarmd.wire.link import LinkSettings

pytestmark = pytest.mark.usefixtures("quiet")


async def test_a_peer_whose_server_stops_is_lost_on_both_sides_of_the_link() -> None:
    view: dict[str, str] = {}
    async with Node(A, view) as a, Node(B, view) as b:
        a.links.send(B, [values.close(1)])
        await b.handler.frames_from(A, 1)
        await b.stop_server()
        await a.handler.loss_of(B)
        await b.handler.loss_of(A)  # gRPC cancelled the servicer; the node itself is not closing
        assert (a.links.connected(), b.links.connected()) == ([], [])


async def test_a_peer_that_closes_the_link_it_dialled_is_lost() -> None:
    view: dict[str, str] = {}
    async with Node(A, view) as a, Node(B, view) as b:
        b.links.send(A, [values.close(1)])
        await a.handler.frames_from(B, 1)
        await b.links.close()
        assert "closed" in await a.handler.loss_of(B)


async def test_a_caller_that_cancels_is_lost() -> None:
    async with Node(A, {}) as a, stranger(a, hello(B), close_frame(1)) as caller:
        await a.handler.frames_from(B, 1)
        caller.call.cancel()
        await a.handler.loss_of(B)
        assert len(a.handler.lost) == 1


@pytest.mark.parametrize("dials", ["we dial", "it dials"])
async def test_a_killed_process_is_lost(dials: str) -> None:
    async with Node(A, {}) as a:
        calls = a.address if dials == "it dials" else ""
        async with process(B, calls) as (child, address):
            await linked(a, address, dials)
            child.send_signal(signal.SIGKILL)
            await a.handler.loss_of(B)
            assert a.links.connected() == []


@pytest.mark.parametrize("dials", ["we dial", "it dials"])
async def test_a_process_that_falls_silent_is_lost_after_the_timeout(dials: str) -> None:
    async with Node(A, {}, IMPATIENT) as a:
        calls = a.address if dials == "it dials" else ""
        async with process(B, calls) as (child, address):
            await linked(a, address, dials)
            child.send_signal(signal.SIGSTOP)
            assert "silent for" in await a.handler.loss_of(B)
            assert a.links.connected() == []


async def linked(a: Node, address: str, dials: str) -> None:
    if dials == "it dials":
        await a.handler.frames_from(B, 1)
    else:
        a.view[B] = address
        a.links.send(B, [values.close(1)])
        await a.handler.until(lambda: a.handler.rtts)


async def test_a_peer_that_only_says_hello_is_lost_after_the_timeout() -> None:
    async with Node(A, {}, IMPATIENT) as a, stranger(a, hello(B)):
        assert "silent for" in await a.handler.loss_of(B)


async def test_a_peer_that_reads_nothing_is_given_up_when_too_much_waits() -> None:
    step = values.hidden_step(1, 32 << 20)
    heartbeat = pb.Frame(heartbeat=pb.Heartbeat(sent_us=1))
    async with Node(A, {}) as a, stranger(a, hello(B), close_frame(1)) as deaf:
        await a.handler.frames_from(B, 1)
        for _ in range(7):  # the same bytes each time, so that nobody needs that much memory
            a.links.send(B, [step])
            await deaf.say(heartbeat)
        a.links.send(B, [step, step])  # 288 MiB
        assert a.handler.lost == []  # never within send
        assert "takes too little" in await a.handler.loss_of(B)
        assert a.links.connected() == []


async def test_a_peer_that_cannot_be_dialled_is_lost() -> None:
    unknown = "e" * 40
    async with Node(A, {B: free_port(), D: "unix:/run/x"}) as a:
        for peer in (B, D, unknown):
            a.links.send(peer, [values.close(1)])
        assert "broke" in await a.handler.loss_of(B)
        assert "unix:/run/x" in await a.handler.loss_of(D)
        assert "not in this node's view" in await a.handler.loss_of(unknown)
        assert len(a.handler.lost) == 3


async def test_a_peer_that_does_not_answer_a_dial_is_lost() -> None:
    with silent_port() as silent:
        async with Node(A, {C: silent}, SHORT_DIAL) as a:
            a.links.send(C, [values.close(1)])
            assert "no answer to a dial" in await a.handler.loss_of(C)
            assert len(a.handler.lost) == 1


async def test_a_lost_peer_is_dialled_again_by_the_next_send() -> None:
    view = {B: free_port()}
    async with Node(A, view) as a:
        a.links.send(B, [values.close(1)])
        await a.handler.loss_of(B)
        async with Node(B, view) as b:
            a.links.send(B, [values.close(2)])
            assert await b.handler.frames_from(A, 1) == [values.close(2)]


async def test_too_much_for_a_link_that_is_not_open_yet_is_a_loss() -> None:
    step = values.hidden_step(1, 32 << 20)
    view: dict[str, str] = {}
    async with Node(A, view) as a, Node(B, view) as b:
        for _ in range(8):  # before the dial has begun
            a.links.send(B, [step])
        a.links.send(B, [values.close(1)])
        assert a.handler.lost == []
        assert "not open yet" in await a.handler.loss_of(B)
        # Only what came after the loss: never a session with a hole in it.
        assert await b.handler.frames_from(A, 1) == [values.close(1)]
        assert a.dialled == [B]


async def test_a_dial_that_fails_loses_nothing_if_the_peer_has_dialled_meanwhile() -> None:
    with contextlib.ExitStack() as opened:
        silent = opened.enter_context(silent_port())
        async with Node(A, {B: silent}) as a:
            a.links.send(B, [values.close(1)])
            async with Node(B, {A: a.address}) as b:
                b.links.send(A, [values.close(2)])
                assert await b.handler.frames_from(A, 1) == [values.close(1)]
                assert not any(task.done() for task in a.tasks)
                opened.close()  # the dial fails now, and not before, however slow the machine
                await asyncio.wait(a.tasks)
                assert a.links.connected() == [B]
                assert a.handler.lost == []


async def test_closing_ends_a_dial_that_nobody_answers() -> None:
    patient = LinkSettings(handshake=600)
    with silent_port() as silent:
        async with Node(A, {B: silent}, patient) as a:
            a.links.send(B, [values.close(1)])
            await asyncio.sleep(0)
            async with asyncio.timeout(20):
                await a.links.close()
            assert [task.done() for task in a.tasks] == [True]
            assert a.handler.lost == []


async def test_when_one_of_two_links_breaks_the_other_goes_on() -> None:
    async with Node(A, {}) as a, stranger(a, hello(B), close_frame(1)) as first:
        await a.handler.frames_from(B, 1)
        async with stranger(a, hello(B), close_frame(2)) as second:
            await a.handler.frames_from(B, 2)
            a.links.send(B, [values.close(3)])
            assert await first.hear() == [values.close(3)]
            # More than the windows take: some of it still waits when the link breaks.
            a.links.send(B, [values.hidden_step(4, 48 << 20)])
            first.call.cancel()
            await a.handler.loss_of(B)
            assert a.links.connected() == [B]
            a.links.send(B, [values.close(5)])
            # What waited for the first link was reported as lost; the second brings none of it.
            assert await second.hear() == [values.close(5)]
            assert len(a.handler.lost) == 1


async def test_a_frame_that_the_handler_forbids_ends_only_that_link() -> None:
    view: dict[str, str] = {}
    async with Node(A, view) as a, Node(B, view) as b, Node(C, view) as c:
        a.handler.errors[B] = ProtocolError("not in this state")
        c.links.send(A, [values.close(1)])
        await a.handler.frames_from(C, 1)
        b.links.send(A, [values.close(1)])
        assert "not in this state" in await a.handler.loss_of(B)
        await b.handler.loss_of(A)
        c.links.send(A, [values.close(2)])
        assert await a.handler.frames_from(C, 2) == [values.close(1), values.close(2)]
        assert a.handler.lost == [(B, "not in this state")]

"""Links between real servers on loopback: what is sent arrives, in order, over one stream."""

from __future__ import annotations

import asyncio

import frame_values as values
import pytest
from wire_nodes import (
    SETTINGS,
    A,
    B,
    C,
    Node,
    close_frame,
    free_port,
    hello,
    stranger,
)

from swarmd.core.errors import ConfigError, ProtocolError
from swarmd.core.frames import SessionFrame, Step
from swarmd.v1 import peer_pb2 as pb
from swarmd.wire import limits
from swarmd.wire.channel import dial
from swarmd.wire.link import LinkSettings

pytestmark = pytest.mark.usefixtures("quiet")


async def test_two_nodes_talk_over_the_link_that_one_of_them_dialled() -> None:
    view: dict[str, str] = {}
    async with Node(A, view) as a, Node(B, view) as b:
        a.links.send(B, [values.close(1)])
        assert await b.handler.frames_from(A, 1) == [values.close(1)]
        b.links.send(A, [values.close(2)])
        assert await a.handler.frames_from(B, 1) == [values.close(2)]
        assert (a.links.connected(), b.links.connected()) == ([B], [A])
        assert (a.dialled, b.dialled) == ([B], [])


async def test_a_dial_without_frames_makes_a_link_of_which_both_sides_are_told() -> None:
    view: dict[str, str] = {}
    async with Node(A, view) as a, Node(B, view) as b:
        a.links.send(B, [])
        await a.handler.until(lambda: a.handler.up == [B])
        await b.handler.until(lambda: b.handler.up == [A])
        assert a.links.connected() == [B]


async def test_a_node_that_is_loading_takes_no_links() -> None:
    view: dict[str, str] = {}
    async with Node(A, view) as a, Node(B, view) as b:
        b.handler.takes_links = False
        a.links.send(B, [values.close(1)])
        assert "loading" in await a.handler.loss_of(B)
        b.handler.takes_links = True
        a.links.send(B, [values.close(2)])
        assert await b.handler.frames_from(A, 1) == [values.close(2)]


async def test_frames_wait_for_a_peer_that_the_view_does_not_show_yet() -> None:
    view: dict[str, str] = {}
    async with Node(A, {}) as a, Node(B, view) as b:
        a.appears = asyncio.get_running_loop().create_future()
        a.links.send(B, [values.close(1)])
        await asyncio.sleep(0)
        assert not a.handler.lost
        a.appears.set_result(b.address)
        assert await b.handler.frames_from(A, 1) == [values.close(1)]


async def test_what_waits_for_a_link_can_be_asked_before_and_after_it_is_open() -> None:
    view: dict[str, str] = {}
    big = values.hidden_step(1, 8 << 20)
    async with Node(A, {}) as a, Node(B, view) as b:
        assert a.links.pending(B) == 0
        a.appears = asyncio.get_running_loop().create_future()
        a.links.send(B, [big])
        assert a.links.pending(B) > 8 << 20
        assert a.links.pending(A) == 0
        a.appears.set_result(b.address)
        assert len(await b.handler.frames_from(A, 1)) == 1
        await a.handler.until(lambda: a.links.pending(B) == 0)
        a.links.send(B, [big, big])
        assert a.links.pending(B) > 16 << 20
        assert len(await b.handler.frames_from(A, 3)) == 3
        assert a.links.pending(B) == 0


async def test_many_frames_arrive_in_order_per_session() -> None:
    sent = [values.decode_step(n % 7, position=n) for n in range(2000)]
    view: dict[str, str] = {}
    async with Node(A, view) as a, Node(B, view) as b:
        for start in range(0, len(sent), 10):
            a.links.send(B, sent[start : start + 10])
            if start % 100 == 0:
                await asyncio.sleep(0)
        arrived = await b.handler.frames_from(A, len(sent))
        assert len(arrived) == len(sent)
        for n in range(7):
            assert values.of(n, arrived) == sent[n::7]


async def test_what_a_microbatch_has_for_a_neighbour_comes_in_one_message() -> None:
    view: dict[str, str] = {}
    async with Node(A, view) as a, Node(B, view) as b:
        a.links.send(B, [values.decode_step(n) for n in range(16)])
        await b.handler.frames_from(A, 16)
        b.links.send(A, [values.decode_step(n) for n in range(8)])
        await a.handler.frames_from(B, 8)
        assert (b.handler.batches, a.handler.batches) == ([16], [8])


async def test_both_may_dial_at_once_and_nothing_is_lost_or_mixed_up() -> None:
    view: dict[str, str] = {}
    ours = [values.close(n, epoch=1) for n in range(200)]
    theirs = [values.close(n, epoch=2) for n in range(200)]
    async with Node(A, view) as a, Node(B, view) as b:
        for mine, other in zip(ours, theirs, strict=True):
            a.links.send(B, [mine])
            b.links.send(A, [other])
            await asyncio.sleep(0)
        assert await b.handler.frames_from(A, 200) == ours
        assert await a.handler.frames_from(B, 200) == theirs
        assert (a.dialled, b.dialled) == ([B], [A])
        assert (a.handler.lost, b.handler.lost) == ([], [])


async def test_a_step_of_5_mib_arrives_intact() -> None:
    data = bytes(range(256)) * (5 * 4096)
    view: dict[str, str] = {}
    async with Node(A, view) as a, Node(B, view) as b:
        step = values.hidden_step(1, len(data), memoryview(data))
        a.links.send(B, [step, values.decode_step(2)])
        (arrived,) = values.of(1, await b.handler.frames_from(A, 2))
        assert isinstance(arrived, Step)
        assert arrived.hidden is not None
        assert arrived.hidden.data == data


async def test_round_trips_are_measured_and_bring_the_peers_coordinate() -> None:
    view: dict[str, str] = {}
    async with Node(A, view) as a, Node(B, view) as b:
        a.handler.own_coordinate, b.handler.own_coordinate = (1.0, 2.0, 0.5), (4.0,)
        a.links.send(B, [values.close(1)])
        await a.handler.until(lambda: len(a.handler.rtts) >= 2)
        await b.handler.until(lambda: len(b.handler.rtts) >= 2)
        assert {(peer, rtt.coordinate) for peer, rtt in a.handler.rtts} == {(B, (4.0,))}
        assert {(peer, rtt.coordinate) for peer, rtt in b.handler.rtts} == {(A, (1.0, 2.0, 0.5))}
        # Less than the time between heartbeats: how long the echo lay there is subtracted.
        assert min(rtt.seconds for _, rtt in a.handler.rtts) < SETTINGS.heartbeat


async def test_frames_to_itself_need_no_wire() -> None:
    node = Node(A, {})
    node.links.send(A, [values.close(1)])
    assert node.handler.frames == []  # not within the call
    assert await node.handler.frames_from(A, 1) == [values.close(1)]
    assert node.dialled == []
    assert node.links.connected() == []


async def test_a_frame_that_no_peer_would_take_is_the_senders_error() -> None:
    view: dict[str, str] = {}
    huge = values.hidden_step(1, limits.MAX_FRAME_BYTES)
    async with Node(A, view) as a, Node(B, view) as b:
        with pytest.raises(ProtocolError, match="cannot be sent"):
            a.links.send(B, [huge])
        a.links.send(B, [values.close(2)])
        await b.handler.frames_from(A, 1)
        with pytest.raises(ProtocolError, match="cannot be sent"):
            a.links.send(B, [huge])
        assert a.handler.lost == []


async def test_closing_sends_what_waits_and_reports_no_loss() -> None:
    view: dict[str, str] = {}
    frames: list[SessionFrame] = [values.hidden_step(1, 4 << 20), values.close(2)]
    async with Node(A, view) as a, Node(B, view) as b, Node(C, view) as c:
        a.links.send(B, [values.close(0)])  # a link that A dialled
        c.links.send(A, [values.close(0)])  # and one that A accepted
        await b.handler.frames_from(A, 1)
        await a.handler.frames_from(C, 1)
        a.links.send(B, frames)
        a.links.send(C, frames)
        await a.links.close(grace=20)
        for other, earlier in ((b, 1), (c, 0)):
            got = await other.handler.frames_from(A, earlier + 2)
            assert sorted(map(str, got[earlier:])) == sorted(map(str, frames))
            assert "closed" in await other.handler.loss_of(A)
        assert a.links.connected() == []
        assert a.handler.lost == []


async def test_a_dialler_that_is_writing_still_gets_all_that_a_leaving_node_sent() -> None:
    """A write that meets the end of the call would cost it what it has not read yet."""
    talkative = LinkSettings(heartbeat=0.001, timeout=5.0)
    for _ in range(10):
        async with Node(A, {}) as a, Node(B, {A: a.address}, talkative) as b:
            b.links.send(A, [values.close(0)])
            await a.handler.frames_from(B, 1)
            a.links.send(B, [values.hidden_step(n, 200 << 10) for n in range(10)])
            await a.links.close(grace=20)
            await b.handler.loss_of(A)
            assert len(b.handler.frames) == 10


async def test_who_never_ends_a_link_is_left_behind() -> None:
    hasty = LinkSettings(heartbeat=0.1, timeout=5.0, handshake=1.0)
    goodbye = pb.Frame(goodbye=pb.Goodbye())
    async with Node(A, {}, hasty) as a, stranger(a, hello(B), goodbye):
        assert "did not end the link in time" in await a.handler.loss_of(B)


async def test_after_closing_nothing_is_sent_or_accepted() -> None:
    view: dict[str, str] = {}
    async with Node(A, view) as a, Node(B, view) as b:
        await a.links.close()
        a.links.send(B, [values.close(1)])
        a.links.send(A, [values.close(1)])
        b.links.send(A, [values.close(2)])
        assert "this node is leaving" in await b.handler.loss_of(A)
        assert a.dialled == []
        assert (a.handler.frames, b.handler.frames, a.handler.lost) == ([], [], [])


async def test_closing_does_not_wait_for_a_peer_that_reads_nothing() -> None:
    async with Node(A, {}) as a, stranger(a, hello(B), close_frame(1)) as deaf:
        await a.handler.frames_from(B, 1)
        big = values.hidden_step(1, 32 << 20)
        a.links.send(B, [big, big, big])
        await a.links.close(grace=0.2)
        assert a.links.connected() == []
        await deaf.refusal()


async def test_links_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_LINKS", 2)
    async with Node(A, {}) as a, stranger(a) as first, stranger(a) as second:
        for silent in (first, second):
            await silent.call.read()  # the hello of A, which has taken the link by then
        async with stranger(a) as third:
            assert "2 links are open here" in (await third.refusal())[1]


@pytest.fixture
def dead_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://{free_port()}")
    for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("dead_proxy")
async def test_a_proxy_for_the_web_is_not_asked_for_a_way_to_peers() -> None:
    view: dict[str, str] = {}
    async with Node(A, view) as a, Node(B, view) as b:
        a.links.send(B, [values.close(1)])
        assert await b.handler.frames_from(A, 1) == [values.close(1)]


@pytest.mark.parametrize("address", ["unix:/run/x", "unix:7420x", "", "host", "h:1:2", "a/b:1"])
async def test_only_host_and_port_can_be_dialled(address: str) -> None:
    with pytest.raises(ConfigError):
        dial(address)


@pytest.mark.parametrize("heartbeat", [0.0, 0.2, 1.0])
def test_a_heartbeat_must_fit_into_the_timeout(heartbeat: float) -> None:
    with pytest.raises(ConfigError, match="must exceed the heartbeat"):
        LinkSettings(heartbeat=heartbeat, timeout=0.2)

"""Closing a client ends what runs and waits, with a typed error; idle channels are let go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from scripted_node import ScriptedNode, finished, serving, token, whole

from swarmd.client import AsyncClient, ResumePolicy, nodes, resume
from swarmd.client.nodes import Nodes
from swarmd.core.errors import NodeLoading, PeerUnreachable, UsageError
from swarmd.core.results import KeptSession
from swarmd.v1 import inference_pb2 as pb
from swarmd.v1.inference_pb2_grpc import add_InferenceServicer_to_server
from swarmd.wire.channel import new_server
from swarmd.wire.status import abort

EOF = grpc.aio.EOF
SHUTDOWN = grpc.ChannelConnectivity.SHUTDOWN

Ask = Callable[[AsyncClient, str], Awaitable[Any]]


def kept(address: str) -> KeptSession:
    return KeptSession(address, "00" * 16, "11" * 16, 1)


UNARY: dict[str, Ask] = {
    "Status": lambda client, address: client.status(),
    "Tokenize": lambda client, address: client.tokenize("a"),
    "Release": lambda client, address: client.release(kept(address)),
}


@pytest.fixture
def paused(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set when a client begins to wait for a node."""
    event, pause = asyncio.Event(), Nodes.pause

    async def seen(self: Nodes, seconds: float) -> None:
        event.set()
        await pause(self, seconds)

    monkeypatch.setattr(Nodes, "pause", seen)
    return event


@pytest.mark.parametrize("way", ["close", "cancel"])
@pytest.mark.parametrize("name", UNARY)
async def test_a_call_that_runs_ends_by_what_ended_it(
    name: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, asked = ScriptedNode(), asyncio.Event()

    async def never(request: Any, context: Any) -> None:
        asked.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(node, name, never)
    async with serving(node), AsyncClient(node.address) as client:
        call = asyncio.ensure_future(UNARY[name](client, node.address))
        await asked.wait()
        if way == "close":
            await client.close()
            with pytest.raises(UsageError, match="closed"):
                await call
        else:
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call


@pytest.mark.parametrize("name", ["Status", "Tokenize", "Release", "Generate"])
async def test_a_client_that_is_closed_while_it_dials_says_so(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However late that is: the channel may be connected by then."""
    node = ScriptedNode()
    connected = nodes._connected
    async with serving(node), AsyncClient(node.address) as client:

        async def closed_then(channel: Any, address: str) -> None:
            await connected(channel, address)
            await client.close()

        monkeypatch.setattr(nodes, "_connected", closed_then)
        with pytest.raises(UsageError, match="closed"):
            await (UNARY.get(name) or _generate)(client, node.address)


async def _generate(client: AsyncClient, address: str) -> None:
    await client.complete("p", max_tokens=1)


async def test_a_dial_that_nobody_answers_ends_with_the_client() -> None:
    taken = asyncio.Event()
    ended: list[asyncio.StreamWriter] = []

    def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ended.append(writer)
        taken.set()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with AsyncClient(address, connect_timeout=3600) as client:
        call = asyncio.ensure_future(client.status(timeout=3600))
        await taken.wait()
        await client.close()
        async with asyncio.timeout(20):
            with pytest.raises(UsageError, match="closed"):
                await call
    server.close()
    for writer in ended:
        writer.close()


async def test_who_waits_for_a_node_that_loads_is_told_at_once(
    paused: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume, "LOADING_WAIT_S", (3600.0, 3600.0))
    node = ScriptedNode(fails_with=NodeLoading("still loading", 1.0))
    async with serving(node), AsyncClient(node.address) as client:
        call = asyncio.ensure_future(client.complete("p"))
        await paused.wait()
        await client.close()
        async with asyncio.timeout(20):
            with pytest.raises(UsageError, match="closed"):
                await call


async def test_who_waits_to_resume_is_told_at_once(paused: asyncio.Event) -> None:
    async def lost(node: ScriptedNode, request: Any, context: Any) -> AsyncIterator[Any]:
        if not request.HasField("resume"):
            yield node.started(request)
            yield token(0)
        await abort(context, PeerUnreachable("gone"))

    node = ScriptedNode(script=lost)
    patient = ResumePolicy(budget_s=3600, first_delay_s=3600, max_delay_s=3600)
    async with serving(node), AsyncClient(node.address, resume=patient) as client:
        call = asyncio.ensure_future(client.complete("p", max_tokens=3))
        await paused.wait()
        await client.close()
        async with asyncio.timeout(20):
            with pytest.raises(UsageError, match="closed"):
                await call


async def test_a_cancellation_at_the_moment_of_the_connection_is_not_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node = ScriptedNode()
    async with serving(node), AsyncClient(node.address) as client:

        async def connected_as_it_is_cancelled(channel: Any, address: str) -> None:
            call.cancel()

        monkeypatch.setattr(nodes, "_connected", connected_as_it_is_cancelled)
        call = asyncio.ensure_future(client.status())
        with pytest.raises(asyncio.CancelledError):
            await call


# -- channels that are not needed any more ---------------------------------------------------------


class Held:
    """A script that ends once it is let go."""

    def __init__(self) -> None:
        self.begun, self.go = asyncio.Event(), asyncio.Event()

    async def __call__(
        self, node: ScriptedNode, request: Any, context: Any
    ) -> AsyncIterator[pb.GenerateEvent]:
        yield node.started(request)
        yield token(0)
        self.begun.set()
        await self.go.wait()
        yield token(1)
        yield finished(2)


async def reach(known: Nodes, node: ScriptedNode) -> Any:
    await (await known.call(node.address, 20.0, lambda stub: stub.Status(pb.StatusRequest())))
    return known._lines[node.address].channel


async def test_the_channels_used_least_lately_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "MAX_IDLE", 2)
    held, known = Held(), Nodes()
    busy, *others = [ScriptedNode(script=held), *(ScriptedNode() for _ in range(4))]

    def begin(stub: Any) -> Any:
        return stub.Generate(pb.GenerateRequest(max_tokens=2), timeout=60)

    async with serving(busy, *others):
        call = await known.call(busy.address, 20.0, begin)
        await held.begun.wait()
        channels = [await reach(known, node) for node in others]
        first, second, third, fourth = (node.address for node in others)
        assert list(known._lines) == [busy.address, second, third, fourth], "one call runs there"
        assert await reach(known, others[1]) is channels[1]
        await reach(known, others[0])
        assert list(known._lines) == [busy.address, fourth, second, first], "used last, closed last"
        states = [channel.get_state() is SHUTDOWN for channel in channels]
        assert states == [True, False, True, False]
        held.go.set()
        while await call.read() is not EOF:
            pass
        await reach(known, others[0])
        assert list(known._lines) == [fourth, second, first], "no call runs there any more"
        await known.close()


async def test_a_call_goes_on_though_its_node_takes_no_others() -> None:
    """As one that leaves does: whoever else dials it does not close what still works."""
    held = Held()
    node, server = ScriptedNode(script=held), new_server()
    add_InferenceServicer_to_server(node, server)
    node.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    async with AsyncClient(node.address) as client:
        call = asyncio.ensure_future(client.complete("p", max_tokens=2))
        await held.begun.wait()
        leaving = asyncio.ensure_future(server.stop(60))
        refused = 0
        while refused < 3:
            try:
                await client.status()
            except PeerUnreachable:
                refused += 1
        held.go.set()
        result = await call
        await leaving
    assert (result.token_ids, result.resumes) == (whole(2)[0], 0)


async def test_the_oldest_failures_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "MAX_FAILED", 2)
    known = Nodes()
    dead = [f"127.0.0.1:{port}" for port in (1, 2, 3, 2)]
    for address in dead:
        with pytest.raises(PeerUnreachable):
            await known.call(address, 20.0, lambda stub: stub.Status(pb.StatusRequest()))
    assert list(known._failed) == dead[2:]
    assert known.order(["127.0.0.1:3", "127.0.0.1:1"]) == ["127.0.0.1:1", "127.0.0.1:3"]
    await known.close()

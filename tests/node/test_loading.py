"""A node that still loads its model, as clients see it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from swarmd.client import AsyncClient
from swarmd.core.errors import NodeLoading, PeerUnreachable
from swarmd.core.peers import Announcement, ModelInfo, NodeState
from swarmd.core.span import Span
from swarmd.node.inference import InferenceService
from swarmd.node.presence import Presence
from swarmd.node.warming import LEAST_WAIT_S, MOST_WAIT_S, Warming
from swarmd.testing import FakeClock, MemoryDirectory
from swarmd.v1 import inference_pb2 as pb
from swarmd.v1.inference_pb2_grpc import InferenceStub, add_InferenceServicer_to_server
from swarmd.wire.channel import dial, new_server
from swarmd.wire.status import error_from_rpc

DEAD = "127.0.0.1:1"
OWN = "a" * 40
MODEL = ModelInfo("toy", "d1" * 32, 8, 16, 100, 512)
OTHER = ModelInfo("other", "d2" * 32, 4, 16, 100, 512)


def peer(
    letter: str,
    start: int,
    end: int,
    state: NodeState = NodeState.SERVING,
    model: ModelInfo = MODEL,
) -> Announcement:
    return Announcement(
        letter * 40, f"192.0.2.1:{ord(letter)}", model, Span(start, end), state, 0.0, 1e12
    )


@dataclass
class Loading:
    """A real door of a node that loads, among peers that a test chooses."""

    presence: Presence
    clock: FakeClock
    address: str
    stopped: list[bool] = field(default_factory=list)

    async def ask(self, model: str = "", *, allow_redirect: bool = True) -> pb.GenerateEvent:
        request = pb.GenerateRequest(model=model, text="def", allow_redirect=allow_redirect)
        async with dial(self.address) as channel:
            try:
                call = InferenceStub(channel).Generate(request, timeout=20)
                event: pb.GenerateEvent = await call.read()
                return event
            except grpc.RpcError as error:
                raise error_from_rpc(error) from None


@asynccontextmanager
async def loading(
    tmp_path: Path,
    *peers: Announcement,
    own: Announcement | None = None,
    progress: Callable[[], str] = lambda: "weights: 45 %",
) -> AsyncIterator[Loading]:
    clock = FakeClock()
    directory = MemoryDirectory(clock)
    for one in peers:
        await directory.publish(one)
    presence = Presence(OWN, directory, [], 30.0, tmp_path, clock, lambda: own, lambda: None)
    await presence.refresh()
    stopped: list[bool] = []
    warming = Warming(presence, clock, lambda: stopped.append(True), progress)
    server = new_server()
    add_InferenceServicer_to_server(InferenceService(presence, warming), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield Loading(presence, clock, f"127.0.0.1:{port}", stopped)
    finally:
        await server.stop(None)


async def test_a_client_that_knows_others_asks_them(tmp_path: Path) -> None:
    async with loading(tmp_path) as node, AsyncClient([node.address, DEAD]) as client:
        await client.status()  # so that the time is not spent on the way there
        with pytest.raises(PeerUnreachable, match=r"none of 2 nodes.*still loading"):
            await client.complete("def", max_tokens=1, timeout=1.0)


async def test_it_says_how_far_it_is_and_when_to_come_back(tmp_path: Path) -> None:
    async with loading(tmp_path) as node:
        with pytest.raises(NodeLoading, match="45 %") as soon:
            await node.ask()
        assert soon.value.retry_after_s == LEAST_WAIT_S
        node.clock.advance(20.0)
        with pytest.raises(NodeLoading) as later:
            await node.ask()
        assert later.value.retry_after_s == pytest.approx(2.0)
        node.clock.advance(3600.0)
        with pytest.raises(NodeLoading) as late:
            await node.ask()
        assert late.value.retry_after_s == MOST_WAIT_S


async def test_clients_are_sent_to_whoever_serves_the_model_already(tmp_path: Path) -> None:
    own = peer("a", 0, 8, NodeState.LOADING)
    async with loading(tmp_path, peer("b", 4, 8), peer("c", 0, 4), own=own) as node:
        for asked in ("", MODEL.name, MODEL.digest):
            target = (await node.ask(asked)).redirect
            assert (target.peer_id, target.model_digest) == ("c" * 40, MODEL.digest)
        with pytest.raises(NodeLoading):
            await node.ask(allow_redirect=False)


async def test_nobody_is_sent_to_half_a_model(tmp_path: Path) -> None:
    half = peer("b", 0, 4), peer("c", 4, 8, NodeState.LOADING)
    stale = peer("a", 4, 8)  # of its life before it was started again
    own = peer("a", 4, 8, NodeState.LOADING)
    async with loading(tmp_path, *half, stale, own=own) as node:
        with pytest.raises(NodeLoading):
            await node.ask()


async def test_before_it_knows_its_own_model_only_a_named_one_is_found(tmp_path: Path) -> None:
    async with loading(tmp_path, peer("b", 0, 8), peer("c", 0, 4, model=OTHER)) as node:
        assert (await node.ask("other")).redirect.peer_id == "c" * 40
        for unknown in ("", "nobody's"):
            with pytest.raises(NodeLoading):
                await node.ask(unknown)


async def test_a_drain_ends_the_start(tmp_path: Path) -> None:
    async with loading(tmp_path) as node, AsyncClient(node.address) as client:
        assert await client.drain() == 0
        assert node.stopped == [True]

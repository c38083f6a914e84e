"""The door for clients, over a real connection."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest

from swarmd.core.errors import PeerUnreachable
from swarmd.core.route import Hop
from swarmd.core.span import Span
from swarmd.node.inference import InferenceService, Parts
from swarmd.toys import toy_model
from swarmd.v1 import inference_pb2 as pb
from swarmd.v1.inference_pb2_grpc import InferenceStub, add_InferenceServicer_to_server
from swarmd.wire.status import error_from_rpc


@dataclass
class LongPrompt:
    """A prompt whose ids are there when the test says so."""

    tokenizer: None = None
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    read: asyncio.Event = field(default_factory=asyncio.Event)

    async def ids_of(self, request: pb.GenerateRequest) -> list[int]:
        self.asked.set()
        await self.read.wait()
        return [1, 2, 3]


def runs_nothing(generation: Any) -> Any:
    raise AssertionError("a session began on a node that drains")


def parts_of(own: object, **changes: Any) -> Parts:
    nothing = cast(Any, None)
    values: dict[str, Any] = {
        "announcement": lambda: own,
        "coordinator": SimpleNamespace(place=nullcontext, run=runs_nothing),
        "routes": nothing,
        "prompts": nothing,
        "report": nothing,
        "accepts": lambda: True,
        "serves": lambda: True,
        "dismissal": nothing,
    }
    return Parts(**values | changes)


@pytest.mark.parametrize("home", ["", "other"])
@pytest.mark.parametrize("others", [set(), {"other"}])
@pytest.mark.parametrize("starves", [False, True])
def test_a_first_hop_that_starves_sends_clients_on(
    *, starves: bool, home: str, others: set[str]
) -> None:
    """Also where prompts that begin alike have no place to meet; not to another one that does."""
    other = Hop("other", Span(0, 8), "other:1")
    routes = SimpleNamespace(
        home=lambda key: other if home else None,
        first_hop=lambda: other,
        has_well_first_hop=not others,
    )
    own = SimpleNamespace(model=toy_model(), span=Span(0, 8), starves=starves, peer_id="me")
    service = InferenceService(cast(Any, None), cast(Any, None))
    parts = parts_of(own, routes=routes)
    ids = tuple(range(500))
    ask = pb.GenerateRequest(text="a book", allow_redirect=True)
    event = service._redirect(parts, ask, ids)
    assert (event is not None) is (bool(home) or (starves and not others))
    assert event is None or event.redirect.peer_id == "other"
    ask.allow_redirect = False
    assert service._redirect(parts, ask, ids) is None


async def test_a_node_that_drains_since_the_prompt_came_sends_the_client_elsewhere() -> None:
    prompt, accepts = LongPrompt(), [True]
    own = SimpleNamespace(model=toy_model(), span=Span(0, 8), starves=False)
    service = InferenceService(cast(Any, None), cast(Any, None))
    service.parts = parts_of(own, prompts=prompt, accepts=lambda: accepts[0])
    server = grpc.aio.server()
    add_InferenceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            request = pb.GenerateRequest(text="a book", max_tokens=1, allow_redirect=False)
            call = InferenceStub(channel).Generate(request, timeout=60)
            first = asyncio.ensure_future(call.read())
            await asyncio.wait_for(prompt.asked.wait(), 60)
            accepts[0] = False
            prompt.read.set()
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await first
            error = error_from_rpc(failed.value)
            assert isinstance(error, PeerUnreachable)
            assert "draining: ask another one" in str(error)
    finally:
        await server.stop(None)

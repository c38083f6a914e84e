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


async def test_a_node_that_drains_since_the_prompt_came_sends_the_client_elsewhere() -> None:
    prompt, accepts = LongPrompt(), [True]
    own = SimpleNamespace(model=toy_model(), span=Span(0, 8))
    service = InferenceService(cast(Any, None), cast(Any, None))
    service.parts = Parts(
        announcement=lambda: cast(Any, own),
        coordinator=cast(Any, SimpleNamespace(place=nullcontext, run=runs_nothing)),
        routes=cast(Any, None),
        prompts=cast(Any, prompt),
        report=cast(Any, None),
        accepts=lambda: accepts[0],
        serves=lambda: True,
        dismissal=cast(Any, None),
    )
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

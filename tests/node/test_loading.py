"""A node that still loads its model, as clients see it."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarmd.client import AsyncClient
from swarmd.core.errors import PeerUnreachable
from swarmd.node.inference import InferenceService
from swarmd.node.presence import Presence
from swarmd.testing import FakeClock, MemoryDirectory
from swarmd.v1.inference_pb2_grpc import add_InferenceServicer_to_server
from swarmd.wire.channel import new_server

DEAD = "127.0.0.1:1"


async def test_a_client_that_knows_others_asks_them(tmp_path: Path) -> None:
    clock = FakeClock()
    presence = Presence(
        "a" * 40,
        MemoryDirectory(clock),
        [],
        30.0,
        tmp_path,
        clock,
        lambda: None,
        lambda: None,
    )
    server = new_server()
    add_InferenceServicer_to_server(InferenceService(presence), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with AsyncClient([f"127.0.0.1:{port}", DEAD]) as client:
            with pytest.raises(PeerUnreachable, match=r"none of 2 nodes.*still loading"):
                await client.complete("def", max_tokens=1)
    finally:
        await server.stop(None)

"""What `swarmd status` says of blocks that are thin, and of nodes that move."""

from __future__ import annotations

from rich.console import Console

from swarmd.cli.status import model_line, render
from swarmd.core.results import ModelStatus, PeerStatus, SwarmStatus
from swarmd.core.span import Span

MODEL = ModelStatus("demo", "d" * 64, 8, 8, 1, (), 512, thin=((4, 8),))


def test_blocks_that_only_one_peer_serves_are_named() -> None:
    assert model_line(MODEL, "demo") == "demo: 8 of 8 blocks, replicas 1, only one peer for 4:8"
    assert MODEL.as_dict()["thin"] == ["4:8"]


def test_a_node_that_moves_shows_where_it_goes() -> None:
    numbers = {"sessions": 0, "kv_total_bytes": 0, "kv_free_bytes": 0, "tokens_per_s": 0.0}
    peer = PeerStatus(
        peer="ab" * 20, address="h:1", blocks=Span(0, 4), state="draining", device="cpu",
        dtype="float32", pid=1, version="", model="demo", model_digest="d" * 64, ragged=True,
        replay_exact=True, queue_depth=0, step_ms=0.0, plan=Span(4, 8), **numbers,
    )  # fmt: skip
    console = Console(width=200, record=True)
    console.print(render(SwarmStatus("x", (peer,), (MODEL,), {})))
    assert "draining, to 4:8" in console.export_text()
    assert peer.as_dict()["plan"] == "4:8"

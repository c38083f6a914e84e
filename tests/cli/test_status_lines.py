"""What `swarmd status` says of blocks that are thin, and of nodes that move."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from swarmd.cli.status import model_line, render
from swarmd.core.results import ModelStatus, PeerStatus, SwarmStatus
from swarmd.core.span import Span

MODEL = ModelStatus("demo", "d" * 64, 8, 8, 1, (), 512, thin=((4, 8),))


def test_blocks_that_only_one_peer_serves_are_named() -> None:
    assert model_line(MODEL, "demo") == "demo: 8 of 8 blocks, replicas 1, only one peer for 4:8"
    assert MODEL.as_dict()["thin"] == ["4:8"]


def a_peer(**what: Any) -> PeerStatus:
    numbers = {"sessions": 0, "kv_total_bytes": 0, "kv_free_bytes": 0, "tokens_per_s": 0.0}
    return PeerStatus(
        peer="ab" * 20, address="h:1", blocks=Span(0, 4), device="cpu",
        dtype="float32", pid=1, version="", model="demo", model_digest="d" * 64, ragged=True,
        replay_exact=True, queue_depth=0, step_ms=0.0, **numbers, **what,
    )  # fmt: skip


def table_with(peer: PeerStatus) -> str:
    console = Console(width=200, record=True)
    console.print(render(SwarmStatus("x", (peer,), (MODEL,), {})))
    return console.export_text()


def test_a_node_that_moves_shows_where_it_goes() -> None:
    peer = a_peer(state="draining", plan=Span(4, 8))
    assert "draining, to 4:8" in table_with(peer)
    assert peer.as_dict()["plan"] == "4:8"


def test_a_node_that_gets_too_little_time_is_shown() -> None:
    peer = a_peer(state="serving", starves=True)
    assert "serving, starved" in table_with(peer)
    assert peer.as_dict()["starves"] is True
    assert "starved" not in table_with(a_peer(state="serving"))

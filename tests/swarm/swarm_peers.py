"""Announcements to test with."""

from __future__ import annotations

from typing import Any

from swarmd.core.peers import Announcement, ModelInfo, NodeState
from swarmd.core.span import Span

NOW = 1_000_000.0


def model_of(num_blocks: int = 8, name: str = "demo", digest: str = "ab" * 32) -> ModelInfo:
    return ModelInfo(
        name=name,
        digest=digest,
        num_blocks=num_blocks,
        hidden_size=64,
        vocab_size=100,
        max_model_len=512,
        eos_token_ids=(2,),
    )


def peer_id(number: int) -> str:
    return f"{number:040x}"


def peer(number: int, start: int, end: int, num_blocks: int = 8, **fields: Any) -> Announcement:
    """A serving peer with one millisecond per block and KV without end."""
    values: dict[str, Any] = {
        "peer_id": peer_id(number),
        "address": f"10.0.0.{number % 250}:7420",
        "model": model_of(num_blocks),
        "span": Span(start, end),
        "state": NodeState.SERVING,
        "issued_at": NOW,
        "expires_at": NOW + 30,
        "step_ms": float(end - start),
        "pid": number,
    }
    return Announcement(**values | fields)

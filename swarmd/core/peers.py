"""What is known of a node: its announcement, and the model that it serves a span of.

How announcements travel is `swarmd.swarm.dht`'s; what follows from them is `swarm.view`'s.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from swarmd.core.span import Span

MAX_PRECISION = 32
"""Characters of a precision's name."""
MAX_LEASE_S = 120.0
"""For which an announcement may be valid: nobody believes one that asks for more."""
PEER_ID_HEX = 40
"""A peer id is the first 20 bytes of the SHA-256 of the node's public key, in lower-case hex."""


class NodeState(enum.IntEnum):
    """Where a node is in its life, as others see it. Values are the wire's."""

    LOADING = 1
    SERVING = 2
    DRAINING = 3
    GONE = 4


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One model as the whole swarm knows it."""

    name: str
    """The served name, such as `Qwen/Qwen2.5-0.5B-Instruct`."""
    digest: str
    """SHA-256 in hex over config and weights: what makes two nodes serve the same model."""
    num_blocks: int
    hidden_size: int
    vocab_size: int
    max_model_len: int
    """Positions that the model was made for (or `--max-model-len`, if that is lower)."""
    eos_token_ids: tuple[int, ...] = ()


def qualified(name: str, digest: str) -> str:
    """A served name that tells namesakes apart: `NAME@` and the beginning of the digest."""
    return f"{name}@{digest[:12]}"


@dataclass(frozen=True, slots=True)
class Announcement:
    """What a node publishes about itself, under a lease. A hint: hops are asked again on open."""

    peer_id: str
    address: str
    """gRPC `HOST:PORT` at which others can dial this node."""
    model: ModelInfo
    span: Span
    state: NodeState
    issued_at: float
    """Seconds since the Unix epoch, by the node's own clock; the later of two counts."""
    expires_at: float
    """Seconds since the Unix epoch; after it the announcement is void."""
    dtype: str = "float32"
    precision: str = ""
    """The dtype, and where its last bits may tell, a name of all that they depend on: two stages of
    one precision give the same bits. Empty: not known yet."""
    device: str = "cpu"
    pid: int = 0
    version: str = ""
    step_ms: float = 0.0
    """Measured time of one decode step over the whole span, one session, in milliseconds."""
    prefill_ms: float = 0.0
    """Measured time of one position of a prompt over the whole span, computed with many others, in
    milliseconds; 0: not measured."""
    lag_ms: float = 0.0
    """How late timers come in its process, in milliseconds: more than a few, and it is short of its
    machine's time; 0: not measured."""
    tokens_per_s: float = 0.0
    """Tokens of the last ten seconds, per second."""
    sessions: int = 0
    queue_depth: int = 0
    kv_total_bytes: int = 0
    kv_free_bytes: int = 0
    kv_bytes_per_token: int = 0
    coordinate: tuple[float, ...] = ()
    """Vivaldi network coordinate (Dabek et al. 2004): x, y, height in milliseconds."""
    replay_exact: bool = True
    """Whether a replay gives the same bits on this node (see the probe at load)."""
    ragged: bool = True
    """Whether this node batches sessions; False: one session per forward."""
    moves: bool = False
    """Whether this node goes where the swarm needs it; False: its blocks were chosen by hand."""
    plan: Span | None = None
    """Blocks to which it is about to move; None: it stays."""
    leaves: bool = False
    """Whether it is about to leave, unless others do on whom it counts; until then it serves."""
    starves: bool = False
    """Whether it has found that its machine gives it too little time, while others get more."""
    public_key: bytes = field(default=b"", repr=False)
    signature: bytes = field(default=b"", repr=False)

    @property
    def destination(self) -> Span:
        """The blocks that it will hold once it has moved."""
        return self.plan or self.span

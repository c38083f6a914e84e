"""What a node says when it serves: as text for people, as fields for programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from swarmd.core.span import Span

if TYPE_CHECKING:
    from swarmd.engine.stage import Stage
    from swarmd.node.membership import Membership


@dataclass(frozen=True, slots=True)
class Ready:
    """As of the moment in which it began to serve; `str()` is the line for people."""

    model: str
    digest: str
    blocks: Span
    num_blocks: int
    """Of the whole model."""
    address: str
    peer: str
    """This node's id."""
    directory: tuple[str, ...]
    """Addresses at which the directory can be joined, its own first."""
    dtype: str
    device: str
    kv_bytes: int
    kv_tokens: int | None
    """How many tokens have room there; None: sessions take the same whatever their length."""
    peers: int
    """Others that serve some of the same model."""
    covered_blocks: int
    """Blocks of the model that somebody serves, this node included."""

    def __str__(self) -> str:
        room = "sessions of any length" if self.kv_tokens is None else f"{self.kv_tokens:,} tokens"
        return (
            f"serving {self.model} blocks {self.blocks} of {self.num_blocks} at {self.address} "
            f"({self.dtype} on {self.device}, KV {_short_size(self.kv_bytes)} = {room}); "
            f"{self.peers} other {'peer' if self.peers == 1 else 'peers'}, "
            f"{self.covered_blocks} of {self.num_blocks} blocks covered"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON object; the line is its `message`."""
        span = {"blocks": str(self.blocks), "start": self.blocks.start, "end": self.blocks.end}
        return {"event": "serving", "message": str(self)} | asdict(self) | span


def ready_of(stage: Stage, membership: Membership) -> Ready:
    """Return what is said of a node that begins to serve."""
    info, view = stage.info, membership.presence.view
    budget, per_token = stage.budget.total_bytes, stage.kv_bytes_per_token
    return Ready(
        model=info.name,
        digest=info.digest,
        blocks=stage.span,
        num_blocks=info.num_blocks,
        address=membership.address,
        peer=membership.own_id,
        directory=tuple(membership.presence.directory_addresses()),
        dtype=str(stage.dtype).removeprefix("torch."),
        device=str(stage.device),
        kv_bytes=budget,
        kv_tokens=budget // per_token if per_token else None,
        peers=len(view.of_model(info.digest)) - 1,
        covered_blocks=sum(count > 0 for count in view.replicas(info.digest)),
    )


def _short_size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"

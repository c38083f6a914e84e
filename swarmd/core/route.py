"""Routes: the hops, in order, that together hold every block of a model.

Choosing one is `swarmd.swarm.router`'s business; driving a session along it `swarmd.pipeline`'s.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from swarmd.core.errors import CoverageError
from swarmd.core.span import Span, missing_blocks

EPOCHS_PER_ATTEMPT = 4096
"""What a client adds to its epoch with each attempt to resume: a coordinator that was lost, or
whose answer never came, may have begun epochs that the client did not see. It is so much that those
of two attempts never meet: a coordinator that the client has left knows by them that it has."""


@dataclass(frozen=True, slots=True)
class Hop:
    """One peer and the blocks that it computes for a session; never more than its own span."""

    peer_id: str
    blocks: Span
    address: str = ""
    """gRPC `HOST:PORT`, for people to read: links are dialled by peer id."""
    pid: int = 0
    precision: str = ""
    """What it computes in (see `Announcement.precision`); empty: not known."""


Route = tuple[Hop, ...]


def check_route(route: Iterable[Hop], num_blocks: int) -> None:
    """Raise CoverageError unless the hops follow on one another from block 0 to `num_blocks`."""
    hops = tuple(route)
    reached = 0
    for hop in hops:
        if hop.blocks.start != reached:
            break
        reached = hop.blocks.end
    else:
        if reached == num_blocks:
            return
    gaps = missing_blocks((hop.blocks for hop in hops), num_blocks)
    spans = ", ".join(str(hop.blocks) for hop in hops) or "nothing"
    raise CoverageError(f"a route over {spans} does not run through 0:{num_blocks} once", gaps)

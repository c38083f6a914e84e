"""What a repair takes, as pure functions: which blocks to cover anew, and who is sent what.

Finding peers for the blocks is `swarmd.swarm.router`'s; carrying the plan out the driver's.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

from swarmd.core.route import Hop, Route
from swarmd.core.span import Span
from swarmd.pipeline.steps import ChunkPlan


def lost_spans(route: Route, gone: Collection[str]) -> tuple[Span, ...]:
    """The blocks of the hops that are gone; those of adjacent ones in one span."""
    spans: list[Span] = []
    for hop in route:
        if hop.peer_id not in gone:
            continue
        if spans and spans[-1].end == hop.blocks.start:
            spans[-1] = Span(spans[-1].start, hop.blocks.end)
        else:
            spans.append(hop.blocks)
    return tuple(spans)


def splice(kept: Sequence[Hop], found: Sequence[Hop]) -> Route:
    """Put hops that were found between those that are kept.

    A peer that would come up twice takes everything from its first to its last block: its own span
    is contiguous, and a session has one KV per peer.
    """
    route: list[Hop] = []
    for hop in sorted((*kept, *found), key=lambda hop: hop.blocks):
        again = next((i for i, other in enumerate(route) if other.peer_id == hop.peer_id), None)
        if again is None:
            route.append(hop)
        else:
            span = Span(route[again].blocks.start, hop.blocks.end)
            merged = Hop(hop.peer_id, span, hop.address, hop.pid, hop.precision)
            route[again:] = [merged]
    return tuple(route)


def other_precision(before: Route, after: Route) -> Route:
    """Return the hops of a route that compute blocks in another precision than was done before.

    What is not known to differ does not.
    """
    return tuple(
        hop
        for hop in after
        if any(
            old.blocks.start < hop.blocks.end
            and hop.blocks.start < old.blocks.end
            and "" != old.precision != hop.precision != ""
            for old in before
        )
    )


def is_same_precision(hop: Hop, peers: Route) -> bool:
    """Whether no peer is known to compute a hop's blocks in another precision than the hop does."""
    return not other_precision((hop,), peers)


@dataclass(frozen=True, slots=True)
class Held:
    """What a hop said when it was opened: KV of `[0, kv_length)`, outputs from `log_start` on."""

    kv_length: int
    log_start: int
    chunk_exact: bool = True
    """Whether it does not matter in which chunks it computes."""


@dataclass(frozen=True, slots=True)
class Replay:
    """How the hops of a new route come to hold the same positions again."""

    send_from: tuple[int, ...]
    """For each hop, from where on it sends its outputs."""
    feed_from: int
    """The first hop gets the ids of `[feed_from, rewind_to)` anew, in round 0."""
    rewind_to: int
    """Then, in the next round, every hop computes from here on."""


def plan(held: Sequence[Held], last_chunk: int, chunks: ChunkPlan) -> Replay:
    """Decide from where each hop is fed, so that as little as possible is computed again.

    A hop whose predecessor's log reaches back to what it holds is filled up out of that log. One
    whose predecessor's does not can be fed only by rewinding the whole pipeline to where it is.
    Either way everybody computes the last chunk again, since its token may have been lost. So is a
    chunk of which a copy holds a part: its rest alone might come out in other bits.
    """
    reached = max(hop.kv_length for hop in held)
    rewind = chunks.floor(min(last_chunk, reached))
    filled = max(held[0].kv_length, rewind)
    send_from: list[int | None] = []
    for before, hop in pairwise(held):
        connected = before.log_start <= hop.kv_length
        filled = max(hop.kv_length, filled) if connected else hop.kv_length
        send_from.append(hop.kv_length if connected else None)
        rewind = min(rewind, filled)
    for hop in held:
        whole = chunks.floor(hop.kv_length)
        if not hop.chunk_exact and whole < hop.kv_length < rewind:
            rewind = whole
    rewind = chunks.floor(rewind)
    return Replay(
        send_from=(*(rewind if at is None else at for at in send_from), 0),
        feed_from=min(held[0].kv_length, rewind),
        rewind_to=rewind,
    )


def suspect(lengths: Sequence[int]) -> int:
    """Which hop holds things up: the first that has taken in more than the one after it has."""
    for index, (own, after) in enumerate(pairwise(lengths)):
        if own > after:
            return index
    return len(lengths) - 1

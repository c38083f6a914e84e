"""Which peers a session runs over: the cheapest path through (block, peer), as a pure function.

The view and the peers' health come from outside; opening the session, and finding out that a peer
has less room than it announced, are the pipeline's business.

A route's cost is an estimate of the milliseconds that one token takes, plus what keeps a session
off peers that failed. `swarm.paths` searches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from swarmd.core.errors import CoverageError, KVExhausted, PromptTooLong, SwarmdError
from swarmd.core.peers import Announcement, ModelInfo
from swarmd.core.route import Hop, Route
from swarmd.core.span import Span, missing_blocks
from swarmd.swarm.health import Health
from swarmd.swarm.paths import Offer, cheapest_route
from swarmd.swarm.view import View, block_ms

HOP_MS = 0.5
"""What a hop costs besides link and blocks: of equal routes the one with fewer hops is taken."""
PENALTY_MS = 500.0
"""Per unit of `Health.penalty`."""
STRANGER_BLOCK_MS = 1e6
"""Per block on a peer that is not preferred, while preferred ones hold that block."""
OTHER_DTYPE_BLOCK_MS = 1e4
BATCHED_SESSION = 0.1
"""How much of a step another session adds where sessions are batched."""


@dataclass(frozen=True, slots=True)
class RouteRequest:
    """What a session needs of its route, and what it would rather have."""

    positions: int = 0
    """KV to reserve: prompt and output together."""
    exclude: frozenset[str] = frozenset()
    """Peers that must not be used."""
    prefer: frozenset[str] = frozenset()
    """Peers that hold KV of this session already: used wherever they can be."""
    same_dtype: str = ""
    """Peers that compute in another dtype are used only where no other is left."""


def choose_route(
    view: View, model: str, health: Health, request: RouteRequest, origin: str = ""
) -> Route:
    """Return the cheapest route over all blocks of `model` (a name or digest).

    `origin` is the coordinator's peer id: the ids of new tokens come from there and go back there.
    Raises UnknownModel; CoverageError with the missing blocks; KVExhausted if only room for the KV
    is lacking now, PromptTooLong if it always will be.
    """
    whole = Span(0, view.find(model).num_blocks)
    return _route(view, model, whole, health, request, origin, origin)


def cover(
    view: View,
    model: str,
    blocks: Span,
    health: Health,
    *,
    exclude: Iterable[str] = (),
    prefer: Iterable[str] = (),
    same_dtype: str = "",
    positions: int = 0,
    before: str = "",
    after: str = "",
) -> tuple[Hop, ...]:
    """Return hops over exactly `blocks`, to fill a hole in a route; raises as `choose_route` does.

    `before` and `after` are the peers on both sides of the hole. Exclude them and all other hops of
    the route: a peer is one hop of a session at most.
    """
    request = RouteRequest(positions, frozenset(exclude), frozenset(prefer), same_dtype)
    return _route(view, model, blocks, health, request, before, after)


def _route(
    view: View,
    model: str,
    blocks: Span,
    health: Health,
    request: RouteRequest,
    before: str,
    after: str,
) -> Route:
    info = view.find(model)
    peers = [p for p in view.serving(info.digest) if p.peer_id not in request.exclude]
    ends = view.peer(before), view.peer(after)
    found = (_offer(peer, blocks, health, request, view.now) for peer in peers)
    path = cheapest_route([offer for offer in found if offer], blocks, *ends)
    if path is None:
        raise _why_not(peers, view.serving(info.digest), info, blocks, request.positions)
    return tuple(
        Hop(offer.peer.peer_id, span, offer.peer.address, offer.peer.pid, offer.peer.dtype)
        for offer, span in path
    )


# What a peer offers, and at what cost -------------------------------------------------------------


def _offer(
    peer: Announcement, blocks: Span, health: Health, request: RouteRequest, now: float
) -> Offer | None:
    """Return what a peer offers of `blocks`; None without a block, or without room for its KV."""
    start, end = max(peer.span.start, blocks.start), min(peer.span.end, blocks.end)
    room = _blocks_with_room(peer, request.positions)
    if start >= end or room < 1:
        return None
    cost = block_ms(peer)
    if request.prefer and peer.peer_id not in request.prefer:
        cost += STRANGER_BLOCK_MS
    if request.same_dtype not in ("", peer.dtype):
        cost += OTHER_DTYPE_BLOCK_MS
    distrust = PENALTY_MS * health.penalty(peer.peer_id, now)
    return Offer(peer, Span(start, end), room, cost, HOP_MS + _waiting_ms(peer) + distrust)


def _blocks_with_room(peer: Announcement, positions: int) -> int:
    """Return for how many of its blocks the peer has KV: each takes an equal share."""
    needed = positions * peer.kv_bytes_per_token
    if needed <= peer.kv_free_bytes:
        return len(peer.span)
    return peer.kv_free_bytes * len(peer.span) // needed


def _waiting_ms(peer: Announcement) -> float:
    """Return how long a step waits for others: one after the other where nothing is batched."""
    step = block_ms(peer) * len(peer.span)
    return step * (peer.queue_depth + peer.sessions * (BATCHED_SESSION if peer.ragged else 1.0))


# Why there is no route ----------------------------------------------------------------------------


def _why_not(
    peers: Sequence[Announcement],
    everybody: Sequence[Announcement],
    info: ModelInfo,
    blocks: Span,
    positions: int,
) -> SwarmdError:
    """Return why `peers` make no route. Waiting helps if `everybody`, idle, would make one."""
    gaps = _gaps(peers, blocks)
    if gaps:
        names = ", ".join(f"{start}:{end}" for start, end in gaps)
        return CoverageError(
            f"no live peer holds blocks {names} of {info.name}; "
            f"`swarmd serve {info.name} --blocks {names.partition(',')[0]}` adds them",
            gaps,
        )
    text = f"{positions} positions of {info.name} need KV on every block of {blocks}"
    idle = [replace(peer, kv_free_bytes=peer.kv_total_bytes) for peer in everybody]
    if _has_route(idle, blocks, positions):
        total = sum(peer.kv_total_bytes for peer in everybody)
        free = sum(peer.kv_free_bytes for peer in everybody) / max(total, 1)
        return KVExhausted(f"{text}, and {free:.0%} of the peers' KV is free now: try again soon")
    return PromptTooLong(
        f"{text}, the peers have room for {_longest(idle, blocks, positions)} when idle: "
        "shorten the prompt or ask for fewer tokens"
    )


def _longest(peers: Sequence[Announcement], blocks: Span, too_many: int) -> int:
    """Return for how many positions there is a route, when there is none for `too_many`."""
    fits = 0
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if _has_route(peers, blocks, middle):
            fits = middle
        else:
            too_many = middle
    return fits


def _has_route(peers: Sequence[Announcement], blocks: Span, positions: int) -> bool:
    request, nobody = RouteRequest(positions), Health()
    found = (_offer(peer, blocks, nobody, request, 0.0) for peer in peers)
    return cheapest_route([offer for offer in found if offer], blocks) is not None


def _gaps(peers: Sequence[Announcement], blocks: Span) -> tuple[tuple[int, int], ...]:
    """Return the parts of `blocks` that no peer holds."""
    shifted = (
        Span(max(p.span.start, blocks.start) - blocks.start, p.span.end - blocks.start)
        for p in peers
        if p.span.start < blocks.end and p.span.end > blocks.start
    )
    gaps = missing_blocks(shifted, len(blocks))
    return tuple((start + blocks.start, end + blocks.start) for start, end in gaps)

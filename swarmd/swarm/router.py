"""Which peers a session runs over: the cheapest path through (block, peer), as a pure function.

The view and the peers' health come from outside; opening the session, and finding out that a peer
has less room than it announced, are the pipeline's business.

A path's cost is an estimate of the milliseconds that one token takes, plus what keeps a session off
peers that failed. A peer may be entered and left in the middle of its span, and is used once at
most, since a hop knows a session by its id. `cheapest_path` relaxes that last rule, and
`cheapest_route` restores it by branching over the rare paths that break it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import count

from swarmd.core.errors import CoverageError, KVExhausted, PromptTooLong, SwarmdError
from swarmd.core.peers import Announcement, ModelInfo
from swarmd.core.route import Hop, Route
from swarmd.core.span import Span, missing_blocks
from swarmd.swarm.coordinates import rtt_ms
from swarmd.swarm.health import Health
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
MAX_BRANCHES = 16


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


@dataclass(frozen=True, slots=True, eq=False)
class Offer:
    """A peer that can compute any part of `blocks` that is at most `max_blocks` long."""

    peer: Announcement
    blocks: Span
    max_blocks: int
    block_cost: float
    fixed_cost: float
    """Milliseconds for being a hop at all: waiting, overhead, distrust."""
    solid: frozenset[int] = frozenset()
    """Boundaries at which this offer may be neither entered nor left (see `_branches`)."""


Path = list[tuple[Offer, Span]]


@dataclass(frozen=True, slots=True)
class _Label:
    """A way to have all blocks below `end` done, whose last hop is [start, end) of an offer."""

    cost: float
    offer: Offer
    start: int
    end: int
    before: _Label | None

    @property
    def path(self) -> Path:
        earlier = self.before.path if self.before else []
        return [*earlier, (self.offer, Span(self.start, self.end))]

    def uses(self, peer_id: str) -> bool:
        label: _Label | None = self
        while label is not None and label.offer.peer.peer_id != peer_id:
            label = label.before
        return label is not None


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
        raise _why_not(peers, info, blocks, request.positions)
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


def link_ms(a: Announcement | None, b: Announcement | None) -> float:
    """Return the estimated one-way time between two peers; 0 within one, and to nobody."""
    if a is None or b is None or a.peer_id == b.peer_id:
        return 0.0
    return rtt_ms(a.coordinate, b.coordinate) / 2


# The search ---------------------------------------------------------------------------------------


def path_cost(path: Path, before: Announcement | None, after: Announcement | None) -> float:
    """Return what a path costs: the definition that the search must agree with."""
    cost, at = 0.0, before
    for offer, span in path:
        cost += link_ms(at, offer.peer) + offer.fixed_cost + offer.block_cost * len(span)
        at = offer.peer
    return cost + link_ms(at, after)


def cheapest_route(
    offers: Sequence[Offer],
    blocks: Span,
    before: Announcement | None = None,
    after: Announcement | None = None,
) -> Path | None:
    """Return the cheapest path over exactly `blocks` that uses no peer twice, if there is one.

    Best first: no route among some offers is cheaper than their cheapest path, so the first path
    popped that repeats no peer is the optimum. After `MAX_BRANCHES` a good route has to do.
    """
    order = count()
    heap: list[tuple[float, int, Path, Sequence[Offer]]] = []

    def consider(candidates: Sequence[Offer]) -> None:
        path = cheapest_path(candidates, blocks, before, after)
        if path is not None:
            heappush(heap, (path_cost(path, before, after), next(order), path, candidates))

    consider(offers)
    for _ in range(MAX_BRANCHES):
        if not heap:
            return None
        _, _, path, candidates = heappop(heap)
        twice = _used_twice(path)
        if twice is None:
            return path
        for branch in _branches(candidates, *twice):
            consider(branch)
    return cheapest_path(offers, blocks, before, after, repeat=False)


def _used_twice(path: Path) -> tuple[str, Span, Span] | None:
    """Return the first peer that is used twice, with both parts of the path; None if all differ."""
    seen: dict[str, Span] = {}
    for offer, span in path:
        peer_id = offer.peer.peer_id
        if peer_id in seen:
            return peer_id, seen[peer_id], span
        seen[peer_id] = span
    return None


def _branches(
    offers: Sequence[Offer], peer_id: str, first: Span, second: Span
) -> Iterator[list[Offer]]:
    """Yield three sets of offers that together allow each route, and none the path with both parts.

    A route has that peer on no block of the second part or later, on no block of the first part or
    earlier, or on everything from the one to the other.
    """
    bridge = Span(first.end - 1, second.start + 1)
    early, late, through = [], [], []
    for offer in offers:
        if offer.peer.peer_id == peer_id:
            early += _clipped(offer, 0, second.start)
            late += _clipped(offer, first.end, offer.blocks.end)
            solid = offer.solid | set(range(first.end, second.start + 1))
            through.append(replace(offer, solid=solid))
        else:
            early.append(offer)
            late.append(offer)
            through += _clipped(offer, 0, bridge.start)
            through += _clipped(offer, bridge.end, offer.blocks.end)
    yield from (early, late, through)


def _clipped(offer: Offer, low: int, high: int) -> list[Offer]:
    start, end = max(offer.blocks.start, low), min(offer.blocks.end, high)
    return [replace(offer, blocks=Span(start, end))] if start < end else []


def cheapest_path(
    offers: Sequence[Offer],
    blocks: Span,
    before: Announcement | None = None,
    after: Announcement | None = None,
    repeat: bool = True,
) -> Path | None:
    """Return the cheapest path over exactly `blocks`, None if there is none.

    With `repeat` a peer may come twice, and the path is optimal. Without, each boundary keeps the
    cheapest way to each peer that repeats none, and the path is a good one.
    """
    boundaries = sorted(_boundaries(offers, blocks))
    labels: dict[int, dict[Offer, _Label]] = {boundary: {} for boundary in boundaries}
    for at, start in enumerate(boundaries[:-1]):
        arrived = sorted(labels[start].values(), key=_rank)
        if repeat:
            arrived = _undominated(arrived)
        for offer in offers:
            if start in offer.blocks and start not in offer.solid:
                label = _enter(offer, start, arrived, blocks, before, repeat)
                if label is not None:
                    _leave(labels, label, boundaries[at + 1 :])
    finished = sorted(labels[blocks.end].values(), key=_rank)
    if not finished:
        return None
    return min(finished, key=lambda label: label.cost + link_ms(label.offer.peer, after)).path


def _boundaries(offers: Sequence[Offer], blocks: Span) -> set[int]:
    """Return where hops may begin and end without losing the optimum.

    Costs are linear in the length of a hop, so it pays to shift each boundary as far as it goes: to
    the end of a span. Where a lack of KV ends a hop earlier, any block may be the boundary.
    """
    if any(offer.max_blocks < len(offer.blocks) for offer in offers):
        return set(range(blocks.start, blocks.end + 1))
    edges = {edge for offer in offers for edge in (offer.blocks.start, offer.blocks.end)}
    return edges | {blocks.start, blocks.end}


def _enter(
    offer: Offer,
    start: int,
    arrived: Sequence[_Label],
    blocks: Span,
    before: Announcement | None,
    repeat: bool,
) -> _Label | None:
    """Return the cheapest way to stand before `offer` at `start`, its fixed cost paid."""
    if start == blocks.start:
        return _Label(link_ms(before, offer.peer) + offer.fixed_cost, offer, start, start, None)
    ways = [label for label in arrived if repeat or not label.uses(offer.peer.peer_id)]
    if not ways:
        return None
    best = min(ways, key=lambda label: label.cost + link_ms(label.offer.peer, offer.peer))
    cost = best.cost + link_ms(best.offer.peer, offer.peer) + offer.fixed_cost
    return _Label(cost, offer, start, start, best)


def _leave(
    labels: dict[int, dict[Offer, _Label]], entered: _Label, boundaries: Iterable[int]
) -> None:
    """Leave an offer at every boundary within reach, where nothing better stands yet."""
    offer = entered.offer
    last = min(offer.blocks.end, entered.start + offer.max_blocks)
    for end in boundaries:
        if end > last:
            return
        if end in offer.solid:
            continue
        cost = entered.cost + offer.block_cost * (end - entered.start)
        label = replace(entered, cost=cost, end=end)
        held = labels[end].get(offer)
        if held is None or _rank(label) < _rank(held):
            labels[end][offer] = label


def _undominated(labels: Sequence[_Label]) -> list[_Label]:
    """Return those of the sorted labels that no other one beats wherever the path goes next.

    Distances in the plane obey the triangle inequality: if another label can reach this one's place
    as cheaply as this one leaves it, it is as good for any next peer.
    """
    kept: list[_Label] = []
    for label in labels:
        place = label.offer.peer.coordinate
        leaving = label.cost + rtt_ms(place, place) / 2
        if not any(k.cost + rtt_ms(k.offer.peer.coordinate, place) / 2 <= leaving for k in kept):
            kept.append(label)
    return kept


def _rank(label: _Label) -> tuple[float, str, int]:
    return label.cost, label.offer.peer.peer_id, label.start


# Why there is no route ----------------------------------------------------------------------------


def _why_not(
    peers: Sequence[Announcement], info: ModelInfo, blocks: Span, positions: int
) -> SwarmdError:
    gaps = _gaps(peers, blocks)
    if gaps:
        names = ", ".join(f"{start}:{end}" for start, end in gaps)
        return CoverageError(
            f"no live peer holds blocks {names} of {info.name}; "
            f"`swarmd serve {info.name} --blocks {names.partition(',')[0]}` adds them",
            gaps,
        )
    now = _room(peers, blocks, positions, [peer.kv_free_bytes for peer in peers])
    empty = _room(peers, blocks, positions, [peer.kv_total_bytes for peer in peers])
    text = f"{positions} positions of {info.name} need KV on every block of {blocks}"
    if empty < positions:
        return PromptTooLong(
            f"{text}, the peers of one block have room for {empty} when idle: "
            "shorten the prompt or ask for fewer tokens"
        )
    return KVExhausted(f"{text}, the peers of one block have room for {now} now: try again soon")


def _gaps(peers: Sequence[Announcement], blocks: Span) -> tuple[tuple[int, int], ...]:
    """Return the parts of `blocks` that no peer holds."""
    shifted = (
        Span(max(p.span.start, blocks.start) - blocks.start, p.span.end - blocks.start)
        for p in peers
        if p.span.start < blocks.end and p.span.end > blocks.start
    )
    gaps = missing_blocks(shifted, len(blocks))
    return tuple((start + blocks.start, end + blocks.start) for start, end in gaps)


def _room(
    peers: Sequence[Announcement], blocks: Span, positions: int, budgets: Sequence[int]
) -> int:
    """Return how many positions the scarcest block has room for, counted up to `positions`."""

    def on(block: int) -> int:
        return max(
            positions
            if not peer.kv_bytes_per_token
            else min(positions, budget * len(peer.span) // peer.kv_bytes_per_token)
            for peer, budget in zip(peers, budgets, strict=True)
            if block in peer.span
        )

    return min(on(block) for block in range(blocks.start, blocks.end))

"""The cheapest way through a model's blocks, among what peers offer: a search and nothing else.

What peers offer, and what it costs, is `swarm.router`'s business. A peer may be entered and left in
the middle of its span, and is used once at most, since a hop knows a session by its id.
`cheapest_path` relaxes that last rule; `cheapest_route` restores it, by branching over the rare
paths that break it. `cheapest_path` is plain: it says what is right, and `swarm.sweep` finds the
same faster.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import Protocol

from swarmd.core.peers import Announcement
from swarmd.core.span import Span
from swarmd.swarm.coordinates import rtt_ms

MAX_BRANCHES = 16
MAX_WEIGHT = 5_000
"""Of all offers searched for one route, once a good one is known."""


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

    @property
    def ways(self) -> int:
        """How many parts it stands for when it has room for some of its blocks only: its weight."""
        spare = len(self.blocks) - self.max_blocks
        return 1 + spare if spare > 0 else 1


Path = list[tuple[Offer, Span]]


class Search(Protocol):
    """`cheapest_path`, or another function that finds paths of the same cost."""

    def __call__(
        self,
        offers: Sequence[Offer],
        blocks: Span,
        before: Announcement | None = None,
        after: Announcement | None = None,
        repeat: bool = True,
    ) -> Path | None: ...


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


def link_ms(a: Announcement | None, b: Announcement | None) -> float:
    """Return the estimated one-way time between two peers; 0 within one, and to nobody."""
    if a is None or b is None or a.peer_id == b.peer_id:
        return 0.0
    return rtt_ms(a.coordinate, b.coordinate) / 2


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
    search: Search | None = None,
    slack: float = 0.0,
) -> Path | None:
    """Return the cheapest path over exactly `blocks` that uses no peer twice, if there is one.

    Best first: no route among some offers is cheaper than their cheapest path, so the first path
    popped that repeats no peer is the optimum. `slack` is the share by which the route may be
    dearer; after `MAX_BRANCHES`, or `MAX_WEIGHT` of them, a good one has to do.
    """
    search = search or cheapest_path
    order = count()
    heap: list[tuple[float, int, Path, Sequence[Offer]]] = []

    weight = 0

    def consider(candidates: Sequence[Offer]) -> None:
        nonlocal weight
        weight += sum(offer.ways for offer in candidates)
        path = search(candidates, blocks, before, after)
        if path is not None:
            heappush(heap, (path_cost(path, before, after), next(order), path, candidates))

    consider(offers)
    if not heap or _used_twice(heap[0][2]) is None:
        return heap[0][2] if heap else None
    good = search(offers, blocks, before, after, repeat=False)
    ceiling = path_cost(good, before, after) if good is not None else inf
    for _ in range(MAX_BRANCHES):
        if not heap:
            return None
        floor, _, path, candidates = heappop(heap)
        if good is not None and ceiling <= floor * (1 + slack):
            return good
        twice = _used_twice(path)
        if twice is None:
            return path
        if good is not None and weight > MAX_WEIGHT:
            break
        for branch in _branches(candidates, *twice):
            consider(branch)
    return good


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

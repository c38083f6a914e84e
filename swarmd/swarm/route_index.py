"""Who is worth a look: the peers in order of the least that a route through them can cost.

Made once per view and ends of a route, and read by every search over them. What a peer costs is
told by `swarm.router`; the search itself is `swarm.sweep`'s.

How the bound of a peer comes about: a route's links go at least from one end to the peer and on to
the other end; the peer computes some of its blocks at its own price; what is before and after them
is done at the lowest prices that there are, wherever. So once some route is known, the peers whose
bounds are above its cost can be forgotten: no cheaper route runs through them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import hypot, inf
from operator import add

from swarmd.core.peers import Announcement
from swarmd.core.span import Span
from swarmd.swarm.coordinates import UNKNOWN
from swarmd.swarm.paths import Offer

Price = Callable[[Announcement], tuple[float, float]]
"""What a peer costs per block, and for being a hop at all, in milliseconds."""


@dataclass(frozen=True, slots=True)
class _Class:
    """Peers that hold the same part of the wanted blocks."""

    start: int
    end: int
    members: list[tuple[float, float, float, int]]
    """Cost per block, cost of being a hop, detour over it, number of the peer; in this order."""


class RouteIndex:
    """What peers offer of `blocks` to anybody, in order of their bounds.

    `before` and `after` are the peers at both ends of the route. Bounds hold for searches in which
    no peer costs less than `price` says, so that requests may add to it.
    """

    def __init__(
        self,
        peers: Sequence[Announcement],
        blocks: Span,
        before: Announcement | None,
        after: Announcement | None,
        price: Price,
    ) -> None:
        classes = _classes(peers, blocks, before, after, price)
        lines = [line for each in classes for line in _cheapest(each)]
        done = _least_costs(lines, len(blocks))
        mirrored = (
            (len(blocks) - b, len(blocks) - a, slope, fixed) for a, b, slope, fixed in lines
        )
        left = _least_costs(mirrored, len(blocks))[::-1]
        self.to_go = dict(enumerate(left, blocks.start))
        """By block, the least that it costs to have all blocks from there on done."""
        others = [list(map(add, done, left[length:])) for length in range(len(blocks) + 1)]
        bounds = [bound for each in classes for bound in _bounds(each, others)]
        self._blocks = blocks
        self._peers = peers
        self._price = price
        self._bounds = sorted(bound for bound in bounds if bound[0] < inf)
        self._offers: dict[int, Offer] = {}

    def __iter__(self) -> Iterator[tuple[float, Offer]]:
        """Yield bounds and offers, the lowest bound first; of room there is no word yet."""
        for bound, number in self._bounds:
            if number not in self._offers:
                self._offers[number] = self._offer(self._peers[number])
            yield bound, self._offers[number]

    def _offer(self, peer: Announcement) -> Offer:
        span = Span(max(peer.span.start, self._blocks.start), min(peer.span.end, self._blocks.end))
        return Offer(peer, span, len(peer.span), *self._price(peer))


def _classes(
    peers: Sequence[Announcement],
    blocks: Span,
    before: Announcement | None,
    after: Announcement | None,
    price: Price,
) -> list[_Class]:
    classes: defaultdict[tuple[int, int], list[tuple[float, float, float, int]]] = defaultdict(list)
    first, last = blocks.start, blocks.end
    (ax, ay, _), (bx, by, _) = (_place(end or before or after) for end in (before, after))
    # A link has half of both heights. Only a hop next to itself, or to nobody, does not pay both.
    ends = {end.peer_id for end in (before, after) if end is not None}
    both = before is not None and after is not None
    for number, peer in enumerate(peers):
        start, end = peer.span.start, peer.span.end
        if start < last and end > first:
            slope, fixed = price(peer)
            x, y, height = peer.coordinate or UNKNOWN
            if both:
                detour = (hypot(x - ax, y - ay) + hypot(x - bx, y - by)) / 2
                if peer.peer_id not in ends:
                    fixed += height
            else:
                detour = 0.0
            key = (max(start, first) - first, min(end, last) - first)
            classes[key].append((slope, fixed, detour, number))
    for members in classes.values():
        members.sort()
    return [_Class(*key, members) for key, members in classes.items()]


def _place(peer: Announcement | None) -> tuple[float, ...]:
    return (peer.coordinate if peer is not None else ()) or UNKNOWN


_Line = tuple[int, int, float, float]
"""From block, to block, cost per block, cost of being a hop."""


def _cheapest(each: _Class) -> Iterable[_Line]:
    """Yield those members' lines that no other one of the class is below everywhere."""
    lowest = inf
    for slope, fixed, _, _ in each.members:
        if fixed < lowest:
            lowest = fixed
            yield each.start, each.end, slope, fixed


def _least_costs(lines: Iterable[_Line], length: int) -> list[float]:
    """Return for 0..length what it costs to have all blocks below done, were there no links."""
    starting = defaultdict(list)
    for start, end, slope, fixed in lines:
        starting[start].append((end, slope, fixed))
    costs = [0.0] + [inf] * length
    running: list[tuple[float, float, float, int]] = []
    for at in range(length):
        here = costs[at]
        # As in the sweep, one way into each line is enough: its cost is `base + slope * block`.
        running = [
            (min(base, here + fixed - slope * at), slope, fixed, end)
            for base, slope, fixed, end in running
            if end > at
        ]
        running += [
            (here + fixed - slope * at, slope, fixed, end) for end, slope, fixed in starting[at]
        ]
        costs[at + 1] = min((base + slope * (at + 1) for base, slope, _, _ in running), default=inf)
    return costs


def _bounds(each: _Class, others: Sequence[Sequence[float]]) -> Iterable[tuple[float, int]]:
    rests = _rests(each.start, each.end, others)
    for slope, fixed, detour, number in each.members:
        rest = min([cost + slope * length for length, cost in rests])
        yield rest + fixed + detour, number


def _rests(start: int, end: int, others: Sequence[Sequence[float]]) -> list[tuple[int, float]]:
    """Return (length, least cost of all other blocks) for hops within [start, end).

    `others` has for each length the least cost without so many blocks, by the first of them.
    Lengths that are not the best for any cost per block are left out.
    """
    hull: list[tuple[int, float]] = []
    for length in range(1, end - start + 1):
        cost = min(others[length][start : end - length + 1])
        if hull and cost >= hull[-1][1]:
            continue
        while len(hull) > 1 and _above(hull[-2], hull[-1], (length, cost)):
            hull.pop()
        hull.append((length, cost))
    return hull


def _above(a: tuple[int, float], b: tuple[int, float], c: tuple[int, float]) -> bool:
    """Whether b is on or above the straight line from a to c."""
    return (b[1] - a[1]) * (c[0] - a[0]) >= (c[1] - a[1]) * (b[0] - a[0])

"""For how long a session the peers have room at best, which is when all of them are idle.

Whether there is room now is found out by looking for a route (`swarm.router`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from math import inf

from swarmd.core.peers import Announcement
from swarmd.core.span import Span

MAX_TRIES = 500
"""Orders of peers that are tried for one length, before it counts as too long."""

_Parts = dict[Span, list[Announcement]]
"""Peers by the part of the blocks that they hold, those with the most room first."""
_Holder = tuple[int, int, int]
"""First and last boundary of what a peer holds, and the number of blocks for which it has room."""


def blocks_with_room(peer: Announcement, positions: int, kv_bytes: int) -> int:
    """Return for how many of a peer's blocks so much KV is enough: each takes an equal share."""
    needed = positions * peer.kv_bytes_per_token
    if needed <= max(0, kv_bytes):
        return len(peer.span)
    return max(0, kv_bytes) * len(peer.span) // needed


class Room:
    """Routes over `blocks` by idle peers. For as many positions as it says there is one.

    That there is none for more is certain for all but odd swarms, in which only one of hundreds of
    orders of peers makes a route.
    """

    def __init__(self, peers: Iterable[Announcement], blocks: Span) -> None:
        self._parts = _parts(peers, blocks)
        self._blocks = blocks

    def fits(self, positions: int) -> bool:
        """Whether idle peers make a route for so many positions."""
        holders = [
            holder
            for span, held in self._parts.items()
            for holder in _enough(held, span, positions)
        ]
        if not _reach(holders, self._blocks):
            return False
        return _Orders(holders, self._blocks.end).cover_from(self._blocks.start)

    def below(self, too_many: int) -> int:
        """Return the most positions that fit, when so many do not."""
        fits = 0
        while too_many - fits > 1:
            middle = (fits + too_many) // 2
            if self.fits(middle):
                fits = middle
            else:
                too_many = middle
        return fits


def _parts(peers: Iterable[Announcement], blocks: Span) -> _Parts:
    parts: defaultdict[Span, list[Announcement]] = defaultdict(list)
    for peer in peers:
        start, end = max(peer.span.start, blocks.start), min(peer.span.end, blocks.end)
        if start < end:
            parts[Span(start, end)].append(peer)
    for held in parts.values():
        held.sort(key=_capacity, reverse=True)
    return parts


def _capacity(peer: Announcement) -> float:
    """Return how many positions fit a peer that computes one block of them."""
    if not peer.kv_bytes_per_token:
        return inf
    return peer.kv_total_bytes * len(peer.span) / peer.kv_bytes_per_token


def _enough(held: Sequence[Announcement], span: Span, positions: int) -> Iterable[_Holder]:
    """Yield the roomiest peers of a part that fill it together: no route needs more of them."""
    left = len(span)
    for peer in held:
        room = blocks_with_room(peer, positions, peer.kv_total_bytes)
        if room < 1 or left < 1:
            return
        yield span.start, span.end, room
        left -= room


def _reach(holders: Sequence[_Holder], blocks: Span) -> bool:
    """Whether the end is reached when a peer may be used over and over."""
    at = blocks.start
    while at < blocks.end:
        furthest = max((min(e, at + room) for s, e, room in holders if s <= at < e), default=at)
        if furthest == at:
            return False
        at = furthest
    return True


class _Orders:
    """Looks for an order of peers, each used once, that gets to the end.

    A peer is left as late as it can: whoever comes next loses nothing by beginning later.
    """

    def __init__(self, holders: Sequence[_Holder], end: int) -> None:
        self._holders = holders
        self._end = end
        self._used: set[int] = set()
        self._tries = MAX_TRIES

    def cover_from(self, at: int) -> bool:
        """Whether peers that are not used yet get from there to the end."""
        if at >= self._end:
            return True
        tried: set[tuple[int, int]] = set()
        for end, lacking, _, number in self._next(at):
            # Of those with the same end and room the one that begins last is of least use later.
            if (end, lacking) not in tried and self._tries > 0:
                tried.add((end, lacking))
                self._tries -= 1
                self._used.add(number)
                if self.cover_from(min(end, at - lacking)):
                    return True
                self._used.remove(number)
        return False

    def _next(self, at: int) -> list[tuple[int, int, int, int]]:
        """Return who can go on from there; first those that are of no use later."""
        return sorted(
            (end, -room, -start, number)
            for number, (start, end, room) in enumerate(self._holders)
            if start <= at < end and number not in self._used
        )

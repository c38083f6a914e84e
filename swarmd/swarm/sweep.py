"""The search of `swarm.paths` in one sweep over the blocks, fast enough for hundreds of offers.

What is a path, and what it costs, is said in `swarm.paths`, whose plain search is the witness of
this one; which offers are worth a look is `swarm.route_index`'s business.

The cost of a hop is linear in its length. Two things follow. Between two neighbours of a cheapest
path the boundary can be shifted, at no loss, to the end of the first one's span or to the start of
the second one's. And of two ways to have entered an offer, the one that is cheaper now stays
cheaper, so that one label per offer is enough.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import hypot, inf

from swarmd.core.peers import Announcement
from swarmd.core.span import Span
from swarmd.swarm.coordinates import UNKNOWN
from swarmd.swarm.paths import Offer, Path, link_ms


@dataclass(slots=True)
class Effort:
    """What searches have cost so far, counted in a way that does not depend on the machine."""

    offers: int = 0
    links: int = 0
    """Ways from one offer to another that were weighed."""


@dataclass(frozen=True, slots=True)
class Limit:
    """What is known before the search: lets it drop ways that come to nothing."""

    cost: float
    """Dearer paths need not be found."""
    to_go: Mapping[int, float]
    """By block, what it costs at least to go on from there."""


def swept_path(
    offers: Sequence[Offer],
    blocks: Span,
    before: Announcement | None = None,
    after: Announcement | None = None,
    repeat: bool = True,
    limit: Limit | None = None,
    effort: Effort | None = None,
) -> Path | None:
    """Return the cheapest path over exactly `blocks`, None if there is none within the limit.

    With `repeat` a peer may come twice, though not twice in a row, and the path is optimal.
    Without, each offer keeps the cheapest way to it that repeats none, and the path is a good one.
    """
    sweep = _Sweep([part for offer in offers for part in _windows(offer)], repeat, limit)
    path = sweep.run(blocks, before, after)
    if effort is not None:
        effort.offers += len(offers)
        effort.links += sweep.links
    return path


def _windows(offer: Offer) -> Iterator[Offer]:
    """Yield offers without a limit of length that allow the same hops as this one with its own."""
    blocks, length = offer.blocks, offer.max_blocks
    if offer.ways == 1:
        yield offer
        return
    for start in range(blocks.start, blocks.end - length + 1):
        yield replace(offer, blocks=Span(start, start + length))


_Label = tuple[int, int, "_Label | None"]
"""A way into an offer: the block at which it is entered, its number, the label before it."""


class _Sweep:
    """The state at one block: for each offer the cheapest way to be within it."""

    def __init__(self, offers: Sequence[Offer], repeat: bool, limit: Limit | None) -> None:
        places = [offer.peer.coordinate or UNKNOWN for offer in offers]
        self.links = 0
        self._offers = offers
        self._repeat = repeat
        self._limit = limit
        self._peers = [offer.peer.peer_id for offer in offers]
        self._ends = [offer.blocks.end for offer in offers]
        self._home: list[float] = []
        self._has_solid = any(offer.solid for offer in offers)
        self._x = [place[0] / 2 for place in places]
        self._y = [place[1] / 2 for place in places]
        # Each link is paid with half of both heights, so a hop between two others pays its own.
        self._height = [place[2] / 2 for place in places]
        self._entry = [
            offer.fixed_cost + 2 * height
            for offer, height in zip(offers, self._height, strict=True)
        ]
        self._slope = [offer.block_cost for offer in offers]
        self._base = [inf] * len(offers)
        """Cost of the cheapest way to stand at block x within an offer, less slope times x."""
        self._label: list[_Label | None] = [None] * len(offers)

    def run(
        self, blocks: Span, before: Announcement | None, after: Announcement | None
    ) -> Path | None:
        """Go through the boundaries in order: only there a hop begins or ends."""
        starting, ending = defaultdict(list), defaultdict(list)
        for number, offer in enumerate(self._offers):
            starting[offer.blocks.start].append(number)
            ending[offer.blocks.end].append(number)
        self._home = self._ways_home(after)
        self._begin(starting[blocks.start], blocks.start, before)
        running = set(starting[blocks.start])
        for at in sorted({*starting, *ending}):
            if blocks.start < at < blocks.end:
                standing = self._standing(running, at)
                self._enter_at_start(starting[at], standing, at)
                running.difference_update(ending[at])
                leaving = [(cost, i) for cost, i in standing if self._ends[i] == at]
                self._enter_within(running, leaving, at)
                running.update(starting[at])
        return self._finish(running, blocks.end)

    def _ways_home(self, after: Announcement | None) -> list[float]:
        """Return the last link from each offer, less what has been paid for it in advance."""
        if after is None:
            return [-height for height in self._height]
        x, y, height = (value / 2 for value in after.coordinate or UNKNOWN)
        ways = [hypot(a - x, b - y) + height for a, b in zip(self._x, self._y, strict=True)]
        for i, peer_id in enumerate(self._peers):
            if peer_id == after.peer_id:
                ways[i] = -self._height[i]
        return ways

    def _begin(self, numbers: Sequence[int], at: int, before: Announcement | None) -> None:
        for i in numbers:
            if self._may_cross(i, at):
                link = link_ms(before, self._offers[i].peer) - self._height[i]
                self._enter(i, at, link + self._entry[i], None)

    def _finish(self, running: set[int], at: int) -> Path | None:
        """Return the path of the cheapest way out."""
        costs = [(cost + self._home[i], i) for cost, i in self._standing(running, at)]
        return self._path(min(costs)[1], at) if costs else None

    def _standing(self, running: set[int], at: int) -> list[tuple[float, int]]:
        """Return what it costs to be at a block, and in which offer, where it may be left there."""
        base, slope, home, most = self._base, self._slope, self._home, self._most(at)
        ways = [
            (base[i] + slope[i] * at, i)
            for i in running
            if base[i] + slope[i] * at + home[i] <= most
        ]
        if self._has_solid:
            ways = [way for way in ways if self._may_cross(way[1], at)]
        return sorted(ways)

    def _most(self, at: int) -> float:
        """Return what a way to a block may cost."""
        if self._limit is None:
            return sys.float_info.max
        return min(sys.float_info.max, self._limit.cost - self._limit.to_go[at])

    def _may_cross(self, i: int, at: int) -> bool:
        return not self._has_solid or at not in self._offers[i].solid

    def _enter_at_start(
        self, numbers: Sequence[int], standing: Sequence[tuple[float, int]], at: int
    ) -> None:
        most = self._most(at)
        for i in numbers:
            if self._may_cross(i, at):
                self._enter_from(i, standing, at, most - self._home[i])

    def _enter_within(
        self, running: set[int], leaving: Sequence[tuple[float, int]], at: int
    ) -> None:
        if not leaving:
            return
        cheapest, most = leaving[0][0], self._most(at)
        base, slope, entry, home = self._base, self._slope, self._entry, self._home
        for i in running:
            bar = min(most - home[i], base[i] + slope[i] * at - entry[i])
            if cheapest < bar and self._may_cross(i, at):
                self._enter_from(i, leaving, at, bar)

    def _enter_from(self, i: int, ways: Sequence[tuple[float, int]], at: int, bar: float) -> None:
        """Enter an offer from where that costs least, if it costs less than `bar`."""
        x, y, peer = self._x, self._y, self._peers[i]
        my_x, my_y = x[i], y[i]
        best = weighed = -1
        for cost, j in ways:
            if cost >= bar:
                break
            weighed += 1
            cost += hypot(x[j] - my_x, y[j] - my_y)
            if cost < bar and not self._forbidden(peer, j):
                bar, best = cost, j
        self.links += weighed + 1
        if best >= 0:
            self._enter(i, at, bar + self._entry[i], self._label[best])

    def _enter(self, i: int, at: int, cost: float, before: _Label | None) -> None:
        self._base[i] = cost - self._slope[i] * at
        self._label[i] = (at, i, before)

    def _forbidden(self, peer: str, j: int) -> bool:
        """Whether going from offer `j` to one of that peer would use the peer twice."""
        if self._repeat:
            return self._peers[j] == peer
        label = self._label[j]
        while label is not None:
            if self._peers[label[1]] == peer:
                return True
            label = label[2]
        return False

    def _path(self, i: int, end: int) -> Path:
        path: Path = []
        label = self._label[i]
        while label is not None:
            start, number, label = label
            path.append((self._offers[number], Span(start, end)))
            end = start
        return path[::-1]

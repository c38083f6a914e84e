"""Whose turn it is: things in a row, so that those whom they belong to get the same of the cost.

Nobody has a weight. What is chosen of the row, and what a thing costs, is the user's business.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heapreplace
from typing import TypeVar

T = TypeVar("T")
MAX_KNOWN = 1024
"""Owners that are remembered; one that has been forgotten counts as new."""


class Turns:
    """Owners by what they have had while others wanted it too: start-time fair queueing.

    What nobody else wanted is not held against anyone, and who wanted nothing saves nothing up: an
    owner that comes back begins where the others are, `credit` below them at most. Nobody is ever
    thought to have had more than `debt` above the one that has had least.
    """

    def __init__(self, credit: float, debt: float) -> None:
        self._credit = credit
        self._debt = debt
        self._had: OrderedDict[bytes, float] = OrderedDict()
        """In the order in which they were served last."""
        self._least = 0.0
        """What all have had of those who want something now."""
        self._wanting: frozenset[bytes] = frozenset()

    def in_order(
        self, things: Iterable[T], owner: Callable[[T], bytes], cost: Callable[[T], float]
    ) -> list[T]:
        """Return the things in the order in which they are to be served.

        Those of one owner keep their order. Next is always the first one of whoever has had least,
        those before it included; of equals, of the one that has not been served for longest.
        """
        by_owner: dict[bytes, list[T]] = {}
        for thing in things:
            by_owner.setdefault(owner(thing), []).append(thing)
        self._want(by_owner)
        if len(by_owner) < 2:
            return [thing for own in by_owner.values() for thing in own]
        last = {known: place for place, known in enumerate(self._had) if known in by_owner}
        had = [(self._had.get(o, self._least), last.get(o, MAX_KNOWN), o, 0) for o in by_owner]
        heapify(had)
        row: list[T] = []
        while had:
            so_far, place, whose, at = had[0]
            thing = by_owner[whose][at]
            row.append(thing)
            if at + 1 < len(by_owner[whose]):
                heapreplace(had, (so_far + cost(thing), place, whose, at + 1))
            else:
                heappop(had)
        return row

    def serve_alone(self, owner: bytes, cost: float) -> None:
        """Note that an owner has had something that nobody else wanted."""
        before = self._had.get(owner, self._least)
        if owner not in self._wanting:
            before = max(before, self._least - self._credit)
        self._least = max(self._least, before)
        self._had[owner] = before
        self._wanting = frozenset((owner,))
        self.serve(owner, cost)

    def serve(self, owner: bytes, cost: float) -> None:
        """Note that an owner has had something."""
        had = self._had.get(owner, self._least) + cost
        self._had[owner] = min(had, self._least + self._debt)
        self._had.move_to_end(owner)
        if len(self._had) > MAX_KNOWN:
            self._had.popitem(last=False)

    def _want(self, owners: Iterable[bytes]) -> None:
        wanting = frozenset(owners)
        for owner in (wanting - self._wanting) & self._had.keys():
            self._had[owner] = max(self._had[owner], self._least - self._credit)
        least = min((self._had.get(owner, self._least) for owner in wanting), default=0.0)
        self._least = max(self._least, least)
        self._wanting = wanting

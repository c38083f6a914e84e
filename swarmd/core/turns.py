"""Whose turn it is: things in a row so that those whom they belong to alternate.

Nobody has a weight. What is chosen of the row is the user's business.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from itertools import zip_longest
from typing import TypeVar

T = TypeVar("T")
MAX_KNOWN = 1024
"""Owners that are remembered; one that has been forgotten counts as new, and goes first once."""


class Turns:
    """Owners in the order in which they were served last; who never was goes first."""

    def __init__(self) -> None:
        self._served: OrderedDict[bytes, int] = OrderedDict()
        self._count = 0

    def alternate(self, things: Iterable[T], owner: Callable[[T], bytes]) -> list[T]:
        """Return the first thing of each owner, then the second of each, and so on.

        Things of one owner keep their order; owners begin with who has not been served for longest.
        """
        by_owner: dict[bytes, list[T]] = {}
        for thing in things:
            by_owner.setdefault(owner(thing), []).append(thing)
        if len(by_owner) < 2:
            return [thing for own in by_owner.values() for thing in own]
        owners = sorted(by_owner, key=lambda owner: self._served.get(owner, -1))
        rounds = zip_longest(*([(thing,) for thing in by_owner[owner]] for owner in owners))
        return [place[0] for around in rounds for place in around if place]

    def serve(self, owner: bytes) -> None:
        """Note that an owner's turn is over."""
        self._count += 1
        self._served[owner] = self._count
        self._served.move_to_end(owner)
        if len(self._served) > MAX_KNOWN:
            self._served.popitem(last=False)

"""What the hops of a route have answered to the open of one epoch.

What follows from it is the driver's decision.
"""

from __future__ import annotations

from collections.abc import Iterator

from swarmd.core.frames import Opened
from swarmd.core.route import Hop, Route
from swarmd.pipeline.repair import Held


class Answers:
    """The answers of one epoch, by peer id."""

    def __init__(self) -> None:
        self._by_peer: dict[str, Opened] = {}

    def __contains__(self, peer_id: object) -> bool:
        return peer_id in self._by_peer

    def __iter__(self) -> Iterator[tuple[str, Opened]]:
        return iter(self._by_peer.items())

    def add(self, peer_id: str, answer: Opened) -> None:
        """Take an answer."""
        self._by_peer[peer_id] = answer

    def complete(self, route: Route) -> bool:
        """Whether every hop has answered."""
        return len(self._by_peer) == len(route)

    def silent(self, route: Route) -> list[Hop]:
        """The hops that have not answered."""
        return [hop for hop in route if hop.peer_id not in self._by_peer]

    def lengths(self, route: Route) -> list[int]:
        """How many positions each hop holds, in the order of the route."""
        return [self._by_peer[hop.peer_id].kv_length for hop in route]

    def held(self, route: Route) -> list[Held]:
        """What each hop holds and can send on, in the order of the route."""
        answers = (self._by_peer[hop.peer_id] for hop in route)
        return [Held(a.kv_length, a.log_start, a.chunk_exact) for a in answers]

    def copies(self, peer_id: str) -> bool:
        """Whether a hop's KV can be copied."""
        return peer_id in self._by_peer and self._by_peer[peer_id].copies

    @property
    def chunk_exact(self) -> bool:
        """Whether all of them compute the same bits in whatever chunks."""
        return all(answer.chunk_exact for answer in self._by_peer.values())

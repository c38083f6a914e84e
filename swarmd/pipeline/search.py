"""The route of a session, and the search for hops in place of those that it has lost.

Which peers there are is for the answerer of `NeedRoute` to know; when to search is the driver's.
"""

from __future__ import annotations

import enum

from swarmd.core.errors import CoverageError
from swarmd.core.route import Hop, Route, check_route
from swarmd.core.span import Span
from swarmd.pipeline import repair
from swarmd.pipeline.events import NeedRoute


class Reach(enum.IntEnum):
    """Whom a search may find: each step also those of the ones before."""

    OTHERS = 0
    """Peers that are neither avoided nor in the route: nothing that exists is disturbed."""
    HOPS = 1
    """Peers that have a part in the route: they take more blocks and start over."""
    AVOIDED = 2


class RouteSearch:
    """Hops that are there, hops that are gone, and peers that are to be avoided for a while."""

    def __init__(self, num_blocks: int) -> None:
        self.route: Route = ()
        self.reach = Reach.OTHERS
        self.passed_over = False
        """Whether the last question left out peers that were avoided when it was asked."""
        self._num_blocks = num_blocks
        self._gone: set[str] = set()
        self._avoid_until: dict[str, float] = {}
        self._ask = 0

    def hop(self, peer_id: str) -> Hop | None:
        """The peer's part in the route, also after its loss."""
        return next((hop for hop in self.route if hop.peer_id == peer_id), None)

    def kept(self) -> Route:
        """The hops that are there."""
        return tuple(hop for hop in self.route if hop.peer_id not in self._gone)

    def lost(self) -> tuple[Span, ...]:
        """The blocks to be covered anew."""
        if not self.route:
            return (Span(0, self._num_blocks),)
        return repair.lost_spans(self.route, self._gone)

    def take_over(self, route: Route) -> None:
        """Begin with somebody else's route, if it is one."""
        try:
            check_route(route, self._num_blocks)
        except CoverageError:
            return
        self.route = route

    def lose(self, peer_id: str, until: float) -> None:
        """Take a hop out, and do not look for it until some time."""
        self._gone.add(peer_id)
        self.avoid(peer_id, until)

    def avoid(self, peer_id: str, until: float) -> None:
        """Do not look for a peer until some time."""
        self._avoid_until[peer_id] = max(until, self._avoid_until.get(peer_id, until))

    def is_lost(self, peer_id: str) -> bool:
        return peer_id in self._gone

    def start_over(self) -> None:
        """Keep no hop."""
        self.route, self._gone = (), set()

    def avoided(self, now: float) -> frozenset[str]:
        """Who is to be avoided now."""
        return frozenset(peer for peer, until in self._avoid_until.items() if until > now)

    def need(self, now: float) -> NeedRoute:
        """Ask for the lost blocks within the present reach; earlier questions are void."""
        kept = self.kept()
        exclude: frozenset[str] = frozenset()
        if self.reach < Reach.AVOIDED:
            exclude |= self.avoided(now)
        self.passed_over = bool(exclude)
        if self.reach < Reach.HOPS:
            exclude |= {hop.peer_id for hop in kept}
        lost = self.lost()
        return NeedRoute(self.next_ask(), lost, exclude, kept, tuple(map(self._precision, lost)))

    def _precision(self, span: Span) -> str:
        """What a span is computed in, by its own hops or, where that is not known, by others."""
        inside = [hop for hop in self.route if span.start <= hop.blocks.start < span.end]
        return next((hop.precision for hop in (*inside, *self.route) if hop.precision), "")

    def next_ask(self) -> int:
        """Return a number for a question; earlier ones about the route are void."""
        self._ask += 1
        return self._ask

    def substitute(self, peer_id: str, successors: Route) -> None:
        """Put peers in the place of a hop, whose blocks they hold."""
        at = next(i for i, hop in enumerate(self.route) if hop.peer_id == peer_id)
        self.route = (*self.route[:at], *successors, *self.route[at + 1 :])
        self._gone.discard(peer_id)
        self._gone -= {hop.peer_id for hop in successors}

    def need_instead(self, hop: Hop, taken: frozenset[str], now: float) -> NeedRoute:
        """Ask who could take the place of a hop that is there."""
        kept = tuple(other for other in self.route if other is not hop)
        exclude = self.avoided(now) | taken | {other.peer_id for other in self.route}
        return NeedRoute(self.next_ask(), (hop.blocks,), exclude, kept, (hop.precision,), True)

    def answers(self, ask: int) -> bool:
        """Whether that was the last question."""
        return ask == self._ask

    def adopt(self, found: Route) -> Route:
        """Put what was found into the route; return hops that have no part in it any more.

        Raises CoverageError when the blocks are not covered.
        """
        route = repair.splice(self.kept(), found)
        check_route(route, self._num_blocks)
        peers = {hop.peer_id for hop in route}
        dropped = tuple(hop for hop in self.route if hop.peer_id not in peers)
        self.route = route
        self._gone -= peers
        return dropped

"""Routes for a prompt whose beginning some peers have computed: to them, or around them.

Who has computed what, a coordinator knows; the search for each of the two is `swarm.router`'s.

The router weighs what a route takes of the session's own time and of others', which keeps a crowd
from following one peer. For a crowd that begins alike it would take each member for a stranger, and
have the beginning computed wherever the next one is sent, at the expense of all who are there. So
sessions stay with the holders as long as they themselves are done sooner there than elsewhere, and
as long as these have no more than their share of all sessions and a bound on top (Mirrokni, Thorup,
Zadimoghaddam: Consistent Hashing with Bounded Loads, SODA 2018; see `swarm.homes.has_room`). One
that goes elsewhere makes a holder there; others stay until it has done so (`node.prompt_book`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from swarmd.core.peers import Announcement
from swarmd.core.route import Route
from swarmd.core.span import Span
from swarmd.swarm.health import Health
from swarmd.swarm.homes import has_room
from swarmd.swarm.paths import path_cost
from swarmd.swarm.placements import Load
from swarmd.swarm.router import choose_route
from swarmd.swarm.terms import OWN_WAIT, RouteRequest, Terms
from swarmd.swarm.view import View, block_ms, prefill_block_ms

FAR = 2.0
"""What peers measure of their speed moves with what else their machines do. Sessions follow it away
from their prompt only where it makes so much of a difference."""
SURE = 1.1
"""The same for load and links, which are told more exactly."""
LEAST_HIT = 0.5
"""A holder has more than this part of the prompt."""


def choose_among_holders(
    view: View,
    model: str,
    health: Health,
    request: RouteRequest,
    origin: str,
    unseen: Mapping[str, Load],
    *,
    stays: bool = False,
) -> Route:
    """Return the route over the holders of the prompt, unless the session is done sooner elsewhere.

    With `stays` their load counts for nothing. Other arguments and errors are those of
    `choose_route`.
    """
    found = _holders(view, request)
    free = found if stays else [p for p in found if _has_room(p, view.serving(model), unseen)]
    holders = frozenset(peer.peer_id for peer in free)
    full = frozenset(peer.peer_id for peer in found) - holders
    cached = {peer: tokens for peer, tokens in request.cached.items() if peer not in full}
    elsewhere = choose_route(view, model, health, replace(request, cached=cached), origin, unseen)
    if not holders:
        return elsewhere
    near = choose_route(view, model, health, replace(request, prefer=holders), origin, unseen)
    blocks = Span(0, view.find(model).num_blocks)
    share = 0.0 if stays else OWN_WAIT
    terms = Terms(request, blocks, health, view.now, unseen, batched_session=share)
    ways = _Ways(view, terms, origin)
    return elsewhere if ways.is_sooner(elsewhere, near) else near


class _Ways:
    """Two routes, and what a token takes on them."""

    def __init__(self, view: View, terms: Terms, origin: str) -> None:
        self._view = view
        self._terms = terms
        self._end = view.peer(origin)

    def is_sooner(self, elsewhere: Route, near: Route) -> bool:
        """Whether a session is done sooner elsewhere, surely: by load, or by far by speed."""
        gained = self._hit(near) > self._hit(elsewhere)
        if self._token_ms(near) > (FAR if gained else 1.0) * self._token_ms(elsewhere):
            return True
        speed = self._speed(near)
        return self._token_ms(near, speed) > SURE * self._token_ms(elsewhere, speed)

    def _hit(self, route: Route) -> int:
        """Return how much of the prompt all of its hops have."""
        request = self._terms.request
        return min(request.prompt_tokens, *(request.cached.get(h.peer_id, 0) for h in route))

    def _speed(self, route: Route) -> tuple[float, float]:
        """Return the milliseconds of a block, for a step and for a position of a prompt."""
        peers = [peer for hop in route if (peer := self._view.peer(hop.peer_id))]
        steps, prefills = map(block_ms, peers), map(prefill_block_ms, peers)
        return sum(steps) / len(peers), sum(prefills) / len(peers)

    def _token_ms(self, route: Route, speed: tuple[float, float] | None = None) -> float:
        """Return what a token takes, with its part of what is left of the prompt.

        With `speed` as if all peers were so quick.
        """
        terms, path = replace(self._terms, hit=self._hit(route)), []
        for hop in route:
            peer = self._view.peer(hop.peer_id)
            if peer is not None and speed is not None:
                step_ms, prefill_ms = (each * len(peer.span) for each in speed)
                peer = replace(peer, step_ms=step_ms, prefill_ms=prefill_ms)
            offer = terms.offer(peer) if peer else None
            assert offer is not None, "the route was found on these terms"
            path.append((offer, hop.blocks))
        return path_cost(path, self._end, self._end)


def _holders(view: View, request: RouteRequest) -> list[Announcement]:
    """Return the peers that have most of the prompt."""
    least = LEAST_HIT * request.prompt_tokens
    peers = (view.peer(one) for one, tokens in request.cached.items() if tokens > least)
    return [peer for peer in peers if peer is not None]


def _has_room(
    peer: Announcement, serving: Iterable[Announcement], unseen: Mapping[str, Load]
) -> bool:
    """Whether a peer has no more than its share of the sessions over its blocks."""
    mine = peer.span
    could = [o for o in serving if o.span.start < mine.end and mine.start < o.span.end]
    return has_room(peer, could, unseen)

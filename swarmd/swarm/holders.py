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
from swarmd.swarm.view import View

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
    return min((near, elsewhere), key=lambda route: token_ms(view, route, terms, origin))


def token_ms(view: View, route: Route, terms: Terms, origin: str) -> float:
    """Return what a token takes on a route in ms, with its part of what is left of the prompt."""
    request = terms.request
    hit = min(request.cached.get(hop.peer_id, 0) for hop in route)
    terms = replace(terms, hit=min(hit, request.prompt_tokens))
    path = []
    for hop in route:
        peer = view.peer(hop.peer_id)
        offer = terms.offer(peer) if peer else None
        assert offer is not None, "the route was found on these terms"
        path.append((offer, hop.blocks))
    end = view.peer(origin)
    return path_cost(path, end, end)


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

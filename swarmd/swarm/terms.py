"""What one session asks for, and what each peer has to offer it, at what cost.

Costs are estimates of the milliseconds that one token takes, plus what keeps a session off peers
that failed. Which of the offers make the cheapest route is `swarm.router`'s business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from swarmd.core.peers import Announcement
from swarmd.core.span import Span
from swarmd.swarm.health import Health
from swarmd.swarm.paths import Offer
from swarmd.swarm.placements import NOTHING, Load
from swarmd.swarm.room import blocks_with_room
from swarmd.swarm.view import block_ms, prefill_block_ms

HOP_MS = 0.5
"""What a hop costs besides link and blocks: of equal routes the one with fewer hops is taken."""
PENALTY_MS = 500.0
"""Per unit of `Health.penalty`."""
STARVES_MS = 500.0
"""For a hop that gets too little of its machine's time: as for one that has failed lately."""
STRANGER_BLOCK_MS = 1e6
"""Per block on a peer that is not preferred, while preferred ones hold that block."""
OTHER_PRECISION_BLOCK_MS = 1e4
BATCHED_SESSION = 0.25
"""How much of a step a session adds where sessions are batched, for itself and for those that are
there. With a microbatch of 8 a step takes about a third longer than with one, on CPUs; but each of
the others waits for that as well, and prefill is not free at all."""
OWN_WAIT = 0.05
"""How much of a step a session adds for each single one of them, for that reason."""
FULL_KV = 0.5
"""How much of a step it counts that no KV is left: of two equals the one with more is taken."""


@dataclass(frozen=True, slots=True)
class RouteRequest:
    """What a session needs of its route, and what it would rather have."""

    positions: int = 0
    """KV to reserve: prompt and output together."""
    exclude: frozenset[str] = frozenset()
    """Peers that must not be used."""
    prefer: frozenset[str] = frozenset()
    """Peers that hold KV of this session already: used wherever they can be."""
    same_precision: str = ""
    """Peers that compute in another precision are used only where no other is left."""
    prompt_tokens: int = 0
    """Of the positions, those that are computed before the first token is drawn."""
    cached: Mapping[str, int] = field(default_factory=dict)
    """By peer id, how many of the first tokens of the prompt are computed there already."""


@dataclass(frozen=True, slots=True)
class Terms:
    """A request for a route over `blocks`, and what is known besides what peers announce."""

    request: RouteRequest
    blocks: Span
    health: Health
    now: float
    """Of the clock that `health` goes by."""
    unseen: Mapping[str, Load] = field(default_factory=dict)
    """By peer id, what its announcement does not show yet."""
    hit: int = 0
    """Tokens of the prompt that are not computed again: only peers that have them make offers."""
    batched_session: float = BATCHED_SESSION
    """How much of a step each session of a peer counts, where sessions are batched."""

    def offer(self, peer: Announcement) -> Offer | None:
        """Return what a peer offers; None without a wanted block, or without room for its KV."""
        unseen = self.unseen.get(peer.peer_id, NOTHING)
        plain = plain_offer(peer, self.blocks, unseen, self.batched_session)
        return self.applied_to(plain) if plain else None

    def applied_to(self, offer: Offer) -> Offer | None:
        """Return what is left, on these terms, of an offer that a peer makes to anybody.

        It is never cheaper than before: a load that has ended makes no difference to its cost.
        """
        request, peer = self.request, offer.peer
        if peer.peer_id in request.exclude or request.cached.get(peer.peer_id, 0) < self.hit:
            return None
        unseen = self.unseen.get(peer.peer_id, NOTHING)
        room = blocks_with_room(peer, request.positions, peer.kv_free_bytes - unseen.kv_bytes)
        if room < 1:
            return None
        fixed_cost = PENALTY_MS * self.health.penalty(peer.peer_id, self.now) + offer.fixed_cost
        if unseen is not NOTHING:
            loaded = price(peer, unseen, self.batched_session)[1]
            fixed_cost += max(0.0, loaded - offer.fixed_cost)
        block_cost = offer.block_cost + prefill_block_ms(peer) * self._prompt_part()
        if request.prefer and peer.peer_id not in request.prefer:
            block_cost += STRANGER_BLOCK_MS
        if self._is_other_precision(peer):
            block_cost += OTHER_PRECISION_BLOCK_MS
        if (room, block_cost, fixed_cost) == (offer.max_blocks, offer.block_cost, offer.fixed_cost):
            return offer
        return Offer(peer, offer.blocks, room, block_cost, fixed_cost)

    def surcharge(self, before: Offer, after: Offer) -> float:
        """Return by how much at least a route through a peer is dearer on these terms.

        That strangers cost more is left out: where peers are preferred, all others are strangers.
        """
        if after is before:
            return 0.0
        extra = after.fixed_cost - before.fixed_cost
        return extra + (OTHER_PRECISION_BLOCK_MS if self._is_other_precision(after.peer) else 0.0)

    def _prompt_part(self) -> float:
        """Return how many tokens of the prompt are to be computed for each that is drawn."""
        request = self.request
        prefill = max(0, request.prompt_tokens - self.hit)
        return prefill / max(1, request.positions - request.prompt_tokens)

    def _is_other_precision(self, peer: Announcement) -> bool:
        return self.request.same_precision not in ("", peer.precision)


def plain_offer(
    peer: Announcement,
    blocks: Span,
    unseen: Load = NOTHING,
    batched_session: float = BATCHED_SESSION,
) -> Offer | None:
    """Return what a peer offers of these blocks to anybody, as if it had room for anything."""
    start, end = max(peer.span.start, blocks.start), min(peer.span.end, blocks.end)
    if start >= end:
        return None
    return Offer(peer, Span(start, end), len(peer.span), *price(peer, unseen, batched_session))


def price(
    peer: Announcement, unseen: Load = NOTHING, batched_session: float = BATCHED_SESSION
) -> tuple[float, float]:
    """Return what a peer costs per block and for being a hop at all, to anybody whom it serves."""
    block = block_ms(peer)
    share = batched_session if peer.ragged else 1.0
    waiting = share * (peer.queue_depth + max(0, peer.sessions + unseen.sessions))
    if peer.kv_total_bytes > 0:
        free = (peer.kv_free_bytes - unseen.kv_bytes) / peer.kv_total_bytes
        waiting += FULL_KV * min(1.0, max(0.0, 1.0 - free))
    starves = STARVES_MS if peer.starves else 0.0
    return block, HOP_MS + block * len(peer.span) * waiting + starves

"""Which peers a session runs over: the cheapest path through (block, peer), as a pure function.

The view and the peers' health come from outside; opening the session, and finding out that a peer
has less room than it announced, are the pipeline's business.

What peers offer, and at what cost, is `swarm.terms`'s; `swarm.paths` says what a path costs,
`swarm.sweep` searches. Among few peers the route is the cheapest there is. Among many, the search
looks at those through whom `swarm.route_index` expects the cheapest routes, and stops early where
it can prove that the others have nothing better.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from heapq import heappop, heappush
from math import inf

from swarmd.core.errors import CoverageError, KVExhausted, PromptTooLong, SwarmdError
from swarmd.core.peers import Announcement, ModelInfo
from swarmd.core.route import Hop, Route
from swarmd.core.span import Span, missing_blocks
from swarmd.swarm.health import Health
from swarmd.swarm.paths import Offer, Path, cheapest_route, path_cost
from swarmd.swarm.placements import Load
from swarmd.swarm.room import Room
from swarmd.swarm.route_index import RouteIndex
from swarmd.swarm.sweep import Effort, Limit, swept_path
from swarmd.swarm.terms import RouteRequest, Terms, plain_offer, price
from swarmd.swarm.view import View

SMALL_SWARM = 64
"""Up to so many peers all are looked at."""
STAGES = (1_000, 3_000, 8_000)
"""Among many: pairs of offers that share blocks, first for any route, to learn what none need cost,
then for a better one. They are what a search takes its time for."""
DEPTH = 4
"""Offers of each block that are looked at besides, if there is no route over the first ones."""
ROUNDING = 1e-9
SLACK = 0.02
"""Not worth looking for, in a large swarm, when only the cheapest path's use of a peer as two hops
stands in the way of the optimum."""
MAX_HITS = 8
"""Lengths of computed prompts that are tried."""
NONE_PLACED: Mapping[str, Load] = {}


def choose_route(
    view: View,
    model: str,
    health: Health,
    request: RouteRequest,
    origin: str = "",
    unseen: Mapping[str, Load] = NONE_PLACED,
    effort: Effort | None = None,
) -> Route:
    """Return the cheapest route over all blocks of `model` (a name or digest).

    `origin` is the coordinator's peer id: the ids of new tokens come from there and go back there.
    `unseen` is the load that announcements do not show yet (see `swarm.placements`); `effort`
    counts what the search takes. Raises UnknownModel; CoverageError with the missing blocks;
    KVExhausted if only room for the KV is lacking now, PromptTooLong if it always will be.
    """
    info = view.find(model)
    terms = Terms(request, Span(0, info.num_blocks), health, view.now, unseen)
    return _Routing(view, info, terms, (origin, origin), effort).route()


def cover(
    view: View,
    model: str,
    blocks: Span,
    health: Health,
    *,
    exclude: Iterable[str] = (),
    prefer: Iterable[str] = (),
    same_precision: str = "",
    positions: int = 0,
    before: str = "",
    after: str = "",
    unseen: Mapping[str, Load] = NONE_PLACED,
) -> tuple[Hop, ...]:
    """Return hops over exactly `blocks`, to fill a hole in a route; raises as `choose_route` does.

    `before` and `after` are the peers on both sides of the hole. Exclude them and all other hops of
    the route: a peer is one hop of a session at most.
    """
    request = RouteRequest(positions, frozenset(exclude), frozenset(prefer), same_precision)
    terms = Terms(request, blocks, health, view.now, unseen)
    return _Routing(view, view.find(model), terms, (before, after)).route()


class _Routing:
    """One request, over one view."""

    def __init__(
        self,
        view: View,
        info: ModelInfo,
        terms: Terms,
        ends: tuple[str, str],
        effort: Effort | None = None,
    ) -> None:
        self._view = view
        self._info = info
        self._terms = terms
        self._blocks = terms.blocks
        self._ends = view.peer(ends[0]), view.peer(ends[1])
        self._peers = view.serving(info.digest)
        self._search = partial(swept_path, effort=effort)

    def route(self) -> Route:
        """Return the route, or raise why there is none."""
        path = self._cheapest()
        if path is None:
            raise _why_not(self._view, self._info, self._terms)
        return tuple(
            Hop(offer.peer.peer_id, span, offer.peer.address, offer.peer.pid, offer.peer.precision)
            for offer, span in path
        )

    def _cheapest(self) -> Path | None:
        """Return the cheapest path whatever part of the prompt is found computed along it.

        A prefill begins after the shortest hit of its route. So for each length that a peer has,
        and for none, the path is sought among those that have as much.
        """
        plain = [self._cheapest_of_all()]
        cached = map(self._cheapest_of_holders, _hits(self._terms.request))
        paths = [path for path in (*plain, *cached) if path is not None]
        return min(paths, key=lambda path: path_cost(path, *self._ends), default=None)

    def _cheapest_of_all(self) -> Path | None:
        if len(self._peers) > SMALL_SWARM:
            return self._cheapest_of_many()
        offers = [offer for offer in map(self._terms.offer, self._peers) if offer]
        return cheapest_route(offers, self._blocks, *self._ends, self._search)

    def _cheapest_of_holders(self, hit: int) -> Path | None:
        """Return the cheapest path over peers that have so much of the prompt."""
        terms = replace(self._terms, hit=hit)
        holders = [peer for peer in self._peers if peer.peer_id in terms.request.cached]
        offers = [offer for offer in map(terms.offer, holders) if offer]
        slack = 0.0 if len(offers) <= SMALL_SWARM else SLACK
        return cheapest_route(offers, self._blocks, *self._ends, self._search, slack)

    # Of many peers, those that are worth a look ---------------------------------------------

    def _cheapest_of_many(self) -> Path | None:
        request, index = self._terms.request, self._index()
        chosen = _Chosen(len(self._blocks))
        for peer in self._peers:
            plain = plain_offer(peer, self._blocks) if peer.peer_id in request.prefer else None
            if plain and (offer := self._terms.applied_to(plain)):
                chosen.add(offer)
        ranked = self._ranked(index)
        limit, known = Limit(inf, index.to_go), None
        for pairs in STAGES:
            chosen.add_until(pairs, limit.cost, ranked)
            if known is None and pairs < STAGES[-1] and chosen.is_complete:
                known = self._search(chosen.offers, self._blocks, *self._ends, repeat=False)
                if known is not None:
                    limit = Limit(path_cost(known, *self._ends) * (1 + ROUNDING), index.to_go)
        if known is None:
            others = (offer for _, offer in ranked)
            chosen.offers += _of_rare_blocks(chosen.offers, others, self._blocks)
        return self._best(chosen.offers, limit)

    def _best(self, offers: Sequence[Offer], limit: Limit) -> Path | None:
        request = self._terms.request
        # What survivors save is more than any share of what strangers cost.
        slack = 0.0 if request.prefer or request.same_precision else SLACK
        search = partial(self._search, limit=limit)
        return cheapest_route(offers, self._blocks, *self._ends, search, slack)

    def _ranked(self, index: RouteIndex) -> Iterator[tuple[float, Offer]]:
        """Yield the offers of all that are not preferred, the lowest bound first."""
        terms = self._terms
        dearer: list[tuple[float, str, Offer]] = []
        for bound, plain in index:
            while dearer and dearer[0][0] <= bound:
                least, _, offer = heappop(dearer)
                yield least, offer
            found = terms.applied_to(plain)
            if found is None or plain.peer.peer_id in terms.request.prefer:
                continue
            extra = terms.surcharge(plain, found)
            if extra > 0:
                # Such as all nodes of a site that failed: they stand behind others now.
                heappush(dearer, (bound + extra, plain.peer.peer_id, found))
            else:
                yield bound, found
        for least, _, offer in sorted(dearer, key=lambda item: item[:2]):
            yield least, offer

    def _index(self) -> RouteIndex:
        def make() -> RouteIndex:
            return RouteIndex(self._peers, self._blocks, *self._ends, price)

        ends = tuple(end and end.peer_id for end in self._ends)
        return self._view.remember(("routes", self._info.digest, self._blocks, ends), make)


def _hits(request: RouteRequest) -> list[int]:
    """Return how much of a prompt may be found computed: the most common lengths, if too many."""
    lengths = Counter(min(request.prompt_tokens, length) for length in request.cached.values())
    return [length for length, _ in lengths.most_common(MAX_HITS + 1) if length > 0][:MAX_HITS]


@dataclass(slots=True)
class _Chosen:
    """Offers of some of so many blocks."""

    num_blocks: int
    offers: list[Offer] = field(default_factory=list)
    _parts: int = 0
    _length: int = 0
    _held: set[int] = field(default_factory=set)

    @property
    def is_complete(self) -> bool:
        """Whether there is an offer of each block."""
        return len(self._held) == self.num_blocks

    def add(self, offer: Offer) -> None:
        ways = offer.ways
        self.offers.append(offer)
        self._parts += ways
        self._length += ways * min(len(offer.blocks), offer.max_blocks)
        self._held.update(range(offer.blocks.start, offer.blocks.end))

    def add_until(self, pairs: int, ceiling: float, ranked: Iterator[tuple[float, Offer]]) -> None:
        """Add offers, in order, up to a number of pairs or a bound."""
        while self._parts * self._length < pairs * self.num_blocks:
            bound, offer = next(ranked, (inf, None))
            if offer is None or bound >= ceiling:
                return
            self.add(offer)


def _of_rare_blocks(chosen: Sequence[Offer], others: Iterator[Offer], blocks: Span) -> list[Offer]:
    """Return others, in order, that hold blocks of which there are only few offers so far."""
    counts = dict.fromkeys(range(blocks.start, blocks.end), 0)
    for offer in chosen:
        for block in range(offer.blocks.start, offer.blocks.end):
            counts[block] += 1
    rare = {block for block, count in counts.items() if count < DEPTH}
    added: list[Offer] = []
    while rare and (another := next(others, None)) is not None:
        held = range(another.blocks.start, another.blocks.end)
        if not rare.isdisjoint(held):
            added.append(another)
            for block in held:
                counts[block] += 1
            rare = {block for block in rare if counts[block] < DEPTH}
    return added


# Why there is no route ----------------------------------------------------------------------------


def _why_not(view: View, info: ModelInfo, terms: Terms) -> SwarmdError:
    """Return why there is no route. Waiting helps if all peers, idle, would make one."""
    everybody, blocks = view.serving(info.digest), terms.blocks
    gaps = _gaps((p for p in everybody if p.peer_id not in terms.request.exclude), blocks)
    if gaps:
        names = ", ".join(f"{start}:{end}" for start, end in gaps)
        return CoverageError(
            f"no live peer holds blocks {names} of {info.name}; "
            f"`swarmd serve {info.name} --blocks {names.partition(',')[0]}` adds them",
            gaps,
        )
    positions = terms.request.positions
    text = f"{positions} positions of {info.name} need KV on every block of {blocks}"
    room = view.remember(("room", info.digest, blocks), lambda: Room(everybody, blocks))
    if not room.fits(positions):
        return PromptTooLong(
            f"{text}, the peers have room for {room.below(positions)} when idle: "
            "shorten the prompt or ask for fewer tokens"
        )
    total = sum(peer.kv_total_bytes for peer in everybody)
    free = sum(peer.kv_free_bytes for peer in everybody) / max(total, 1)
    return KVExhausted(f"{text}, and {free:.0%} of the peers' KV is free now: try again soon")


def _gaps(peers: Iterable[Announcement], blocks: Span) -> tuple[tuple[int, int], ...]:
    """Return the parts of `blocks` that no peer holds."""
    shifted = (
        Span(max(p.span.start, blocks.start) - blocks.start, p.span.end - blocks.start)
        for p in peers
        if p.span.start < blocks.end and p.span.end > blocks.start
    )
    gaps = missing_blocks(shifted, len(blocks))
    return tuple((start + blocks.start, end + blocks.start) for start, end in gaps)

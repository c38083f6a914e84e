"""Routes for the sessions of this node: the router over the present view, with what failed here.

Which path is cheapest is `swarmd.swarm.router`'s decision; the view is `swarmd.node.presence`'s.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from swarmd.core.clock import Clock
from swarmd.core.peers import Announcement, ModelInfo, NodeState
from swarmd.core.route import Hop, Route
from swarmd.core.span import Span, missing_blocks
from swarmd.pipeline.experience import Speed
from swarmd.swarm.health import Fault, Health
from swarmd.swarm.holders import choose_among_holders
from swarmd.swarm.homes import home_of
from swarmd.swarm.placements import Placements
from swarmd.swarm.router import cover
from swarmd.swarm.terms import RouteRequest
from swarmd.swarm.view import View, block_ms

SUSPECTED_S = 30.0
"""After so long it is the view's business whether a silent peer is there: its lease has ended."""
FORGIVEN_S = 60.0
"""For so long what a process does counts, even if it is started again: some end again and again."""
BACK_S = 3.0
"""What a peer announces so long after its loss shows that it is there: not what was on its way."""
FALLING_SILENT_S = 2.0
"""So long before its links break, a peer that stands still holds sessions up already."""
_WHICHEVER = -1
"""Whatever process comes next, it is another one than that which was lost."""


@dataclass(slots=True)
class _Lost:
    """A peer that was lost."""

    at: float
    pid: int
    """Which process that was."""
    issued_at: float
    """When it had announced itself last."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a session needs of its route, and what speeds it up."""

    positions: int = 0
    """KV to reserve: prompt and output together."""
    prompt_tokens: int = 0
    cached: Mapping[str, int] = field(default_factory=dict)
    """By peer id, how many of the prompt's first positions it should have computed already."""
    stays: bool = False
    """Whether it goes to those who have computed its prompt however busy they are."""
    precisions: Mapping[Span, str] = field(default_factory=dict)
    """What spans were computed in so far: peers of that precision come first."""
    strict: bool = False
    """Whether there are no others for it: what is asked for is worth nothing there."""


class RouteFinder(Protocol):
    """Where routes come from."""

    def find(
        self, spans: Sequence[Span], exclude: frozenset[str], keep: Route, asked: Asked
    ) -> Route:
        """Return hops that cover exactly the spans.

        Raises CoverageError for blocks that nobody holds, another SwarmdError where the peers are
        there and something else is lacking, such as room for the KV.
        """
        ...

    def ended(self, route: Route, positions: int) -> None:
        """Take note that a session has left these hops."""
        ...

    def suspected(self) -> frozenset[str]:
        """Return the peers that have fallen silent lately."""
        ...

    def lagging(self, peer_id: str) -> None:
        """Take note that a peer has held up a session."""
        ...

    def worked(self, route: Route) -> None:
        """Take note that these hops have computed a token together."""
        ...

    def distrusted(self) -> frozenset[str]:
        """Return the peers that others go before."""
        ...

    def starving(self) -> frozenset[str]:
        """Return the peers that say that they get too little time."""
        ...

    def has_better(self, hop: Hop) -> bool:
        """Whether others would take less time for what a hop computes, that starves."""
        ...

    def speed(self, peer_id: str) -> Speed:
        """Return what a peer announces of its stage."""
        ...

    async def refresh(self) -> None:
        """Look at the swarm again."""
        ...


class Routes:
    """Finds routes for one model, seen from one node."""

    def __init__(
        self,
        own_id: str,
        model: ModelInfo,
        view: Callable[[], View],
        look_again: Callable[[], Awaitable[None]],
        clock: Clock,
    ) -> None:
        self._own_id = own_id
        self._model = model
        self._view = view
        self._look_again = look_again
        self._clock = clock
        self.health = Health()
        self._silent_since: dict[str, float] = {}
        self._lost: dict[str, _Lost] = {}
        self._forgiven_at: dict[str, float] = {}
        self._lagged_at: dict[str, float] = {}
        self._placements = Placements()

    def find(
        self, spans: Sequence[Span], exclude: frozenset[str], keep: Route, asked: Asked
    ) -> Route:
        """Return hops that cover exactly `spans`, in order.

        `keep` are the hops that stay; one may come up again unless it is excluded, and then takes
        over the blocks next to its own. Raises CoverageError with the missing blocks, or
        CapacityError when only room for the KV is lacking.
        """
        route = self._find(spans, exclude, keep, asked)
        self._placements.add(route, asked.positions, self._view(), self._clock.wall())
        return route

    def ended(self, route: Route, positions: int) -> None:
        """Note that a session of so many positions has left these hops."""
        self._placements.end(route, positions, self._view(), self._clock.wall())

    async def refresh(self) -> None:
        """Look at the swarm again."""
        await self._look_again()

    def look(self) -> None:
        """Take note of the view: a process that was started anew has not failed yet.

        Nor is one that stood still, or could not be heard, to be avoided when it speaks again.
        """
        if not self._lost:
            return
        view, now = self._view(), self._clock.monotonic()
        for peer_id, lost in list(self._lost.items()):
            peer = view.peer(peer_id)
            if peer_id not in self.health:
                del self._lost[peer_id]
            elif peer is None or peer.state is NodeState.LOADING:
                lost.pid = _WHICHEVER
            elif peer.state is NodeState.SERVING and _is_back(peer, lost, now):
                del self._lost[peer_id]
                self._forgive(peer_id, now)

    def _forgive(self, peer_id: str, now: float) -> None:
        since = now - FORGIVEN_S
        self._forgiven_at = {p: at for p, at in self._forgiven_at.items() if at > since}
        if peer_id not in self._forgiven_at:
            self._forgiven_at[peer_id] = now
            self._silent_since.pop(peer_id, None)
            self.health.restarted(peer_id, self._clock.wall())

    @property
    def has_choice(self) -> bool:
        """Whether several peers hold the first blocks, so that prompts can miss each other."""
        return len(self._first_hops()) > 1

    @property
    def has_well_first_hop(self) -> bool:
        """Whether some peer that holds the first blocks does not starve."""
        peers = self._view().serving(self._model.digest)
        return any(peer.span.start == 0 and not peer.starves for peer in peers)

    def first_hop(self) -> Hop:
        """Return where a new session should begin; one sent elsewhere counts as placed.

        Raises as `find` does.
        """
        route = self._find((Span(0, self._model.num_blocks),), frozenset(), (), Asked())
        if route[0].peer_id != self._own_id:
            self._placements.add(route, 0, self._view(), self._clock.wall())
        return route[0]

    def home(self, key: bytes) -> Hop | None:
        """Return where prompts meet that begin alike; a session sent elsewhere counts as placed.

        `key` names how a prompt begins (`core.prefix.first_key`). None: no holder of the first
        blocks has room for more of them.
        """
        view, now = self._view(), self._clock.wall()
        peer = home_of(key, self._first_hops(), self._placements.unseen(view, now))
        if peer is None:
            return None
        hop = Hop(peer.peer_id, peer.span, peer.address, peer.pid, peer.precision)
        if hop.peer_id != self._own_id:
            self._placements.add((hop,), 0, view, now)
        return hop

    def _first_hops(self) -> list[Announcement]:
        self.look()
        view = self._view()
        return [
            peer
            for peer in view.serving(self._model.digest)
            if peer.span.start == 0
            and not peer.starves
            and self.health.penalty(peer.peer_id, view.now) < 1
        ]

    def failed(self, peer_id: str) -> None:
        """Note that the link to a peer broke: prefer others for a while.

        That it cannot be dialled either, until it is heard of again, is the same loss.
        """
        self._placements.forget(peer_id)
        self.health.forget(self._clock.wall())
        self.look()
        if peer_id not in self.suspected():
            self.health.report(peer_id, Fault.FAILED, self._clock.wall())
        peer, now = self._view().peer(peer_id), self._clock.monotonic()
        if now - self._lagged_at.pop(peer_id, -math.inf) < FALLING_SILENT_S:
            self.health.lost_after_all(peer_id, Fault.LAGGED, self._clock.wall())
        self._silent_since[peer_id] = now
        if peer is None or peer.state is NodeState.LOADING:
            self._lost[peer_id] = _Lost(now, _WHICHEVER, 0.0)
            return
        before = self._lost.get(peer_id)
        self._lost[peer_id] = _Lost(now, before.pid if before else peer.pid, peer.issued_at)

    def heard(self, peer_id: str) -> None:
        """Note that a peer answers."""
        self._silent_since.pop(peer_id, None)

    def lagging(self, peer_id: str) -> None:
        """Note that a peer has held up a session: prefer others for a while.

        What its other sessions say of the same time is no further fault.
        """
        if peer_id not in self.distrusted():
            now = self._clock.monotonic()
            since = now - FALLING_SILENT_S
            self._lagged_at = {p: at for p, at in self._lagged_at.items() if at > since}
            self._lagged_at[peer_id] = now
            self.health.report(peer_id, Fault.LAGGED, self._clock.wall())

    def worked(self, route: Route) -> None:
        """Note that these hops have computed a token together: what was lost is there again."""
        for hop in route:
            self.health.succeeded(hop.peer_id, self._clock.wall())

    def speed(self, peer_id: str) -> Speed:
        """Return what a peer announces of its stage."""
        peer = self._view().peer(peer_id)
        return Speed(peer.prefill_ms / 1000, peer.step_ms / 1000) if peer else Speed()

    def distrusted(self) -> frozenset[str]:
        """Return the peers that are trusted so little that others go before them."""
        return self.health.distrusted(self._clock.wall())

    def starving(self) -> frozenset[str]:
        """Return the peers that say that they get too little time."""
        peers = self._view().serving(self._model.digest)
        return frozenset(peer.peer_id for peer in peers if peer.starves)

    def has_better(self, hop: Hop) -> bool:
        """Whether others would take less time for what a hop computes, that starves.

        Of its lateness a token feels about as much again, as it comes and goes.
        """
        view, avoided = self._view(), self.distrusted() | self.starving() | {hop.peer_id}
        slow = view.peer(hop.peer_id)
        if slow is None:
            return False
        most = block_ms(slow) + 2 * slow.lag_ms / len(hop.blocks)
        peers = view.serving(self._model.digest)
        able = [p.span for p in peers if p.peer_id not in avoided and block_ms(p) <= most]
        gaps = missing_blocks(able, self._model.num_blocks)
        return not any(hop.blocks.meets(Span(*gap)) for gap in gaps)

    def demoted(self) -> int:
        """Return how many these are."""
        return len(self.distrusted())

    def suspected(self) -> frozenset[str]:
        """Return the peers whose link broke lately and that have not been heard of since."""
        since = self._clock.monotonic() - SUSPECTED_S
        self._silent_since = {p: at for p, at in self._silent_since.items() if at > since}
        return frozenset(self._silent_since)

    def _find(
        self, spans: Sequence[Span], exclude: frozenset[str], keep: Route, asked: Asked
    ) -> Route:
        self.look()
        if keep or spans != (Span(0, self._model.num_blocks),):
            return tuple(hop for span in spans for hop in self._cover(span, exclude, keep, asked))
        view = self._view()
        unseen = self._placements.unseen(view, self._clock.wall())
        request = RouteRequest(
            positions=asked.positions,
            exclude=exclude,
            same_precision=asked.precisions.get(spans[0], ""),
            prompt_tokens=asked.prompt_tokens,
            cached=asked.cached,
        )
        digest = self._model.digest
        return choose_among_holders(
            view, digest, self.health, request, self._own_id, unseen, stays=asked.stays
        )

    def _cover(
        self, span: Span, exclude: frozenset[str], keep: Route, asked: Asked
    ) -> tuple[Hop, ...]:
        """Fill one hole; a peer of the same precision first, so that a replay gives the same."""
        view, precision = self._view(), asked.precisions.get(span, "")
        if asked.strict and precision:
            peers = view.serving(self._model.digest)
            exclude |= {p.peer_id for p in peers if p.precision not in ("", precision)}
        before = [hop for hop in keep if hop.blocks.end <= span.start]
        after = [hop for hop in keep if hop.blocks.start >= span.end]
        return cover(
            view,
            self._model.digest,
            span,
            self.health,
            exclude=exclude,
            same_precision=precision,
            positions=asked.positions,
            before=before[-1].peer_id if before else self._own_id,
            after=after[0].peer_id if after else self._own_id,
            unseen=self._placements.unseen(view, self._clock.wall()),
        )


def _is_back(peer: Announcement, lost: _Lost, now: float) -> bool:
    """Whether it was started anew, or has announced itself since it was lost."""
    if peer.pid != lost.pid:
        return True
    if now - lost.at < BACK_S:
        lost.issued_at = peer.issued_at
    return peer.issued_at > lost.issued_at

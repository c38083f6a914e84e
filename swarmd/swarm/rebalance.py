"""Whether a node that serves should move to other blocks, and where: a decision over a view.

When it asks, what it announces meanwhile and when it goes is `swarm.mover`'s; where a node that
starts should serve is `swarm.placement`'s.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import median

from swarmd.core.peers import Announcement, NodeState
from swarmd.core.span import Span
from swarmd.swarm.placement import MOVE_GAIN, edges, pieces_left
from swarmd.swarm.view import DEFAULT_BLOCK_MS, View, block_ms

WATCHERS = 3
"""How many nodes that could step in look after one peer."""
MAX_WATCHED = 16


class Reason(enum.IntEnum):
    """Why a node should move; the lower, the more urgent."""

    GAP = 0
    """Blocks that nobody serves."""
    THIN = 1
    """Blocks that are served much more slowly than they could be."""


@dataclass(frozen=True, slots=True)
class Move:
    """What a node should do."""

    span: Span
    reason: Reason


def better_place(
    view: View,
    model: str,
    own: Announcement,
    room: int,
    *,
    gone: frozenset[str] = frozenset(),
    yields: bool = True,
    only: Span | None = None,
) -> Move | None:
    """Return where a node that serves should move, None if it should stay.

    It never leaves a block that nobody else serves and means to go on serving. Beyond that it moves
    into a gap, or where the slowest of the blocks that the move changes get `MOVE_GAIN` times
    faster, those that it leaves included: so each move raises the swarm from below, and moves come
    to an end. Where no node can close a gap by itself, those between the gap and where there is
    more than is needed shift by a few blocks each, one after the other.

    `room` is how many blocks fit this node; `gone` are peers that cannot be reached, whatever they
    announce. Of nodes that serve and plan to move, those with lower ids count as if they had, those
    with higher ids as if they would stay, unless this node `yields` to all of them. With `only`
    the question is whether that span is still as good a reason to move as any.
    """
    return _Places(view, model, own, room, gone, yields).better(only)


class _Places:
    """Who holds which blocks, as far as one node's decision needs it."""

    def __init__(
        self,
        view: View,
        model: str,
        own: Announcement,
        room: int,
        gone: frozenset[str],
        yields: bool,
    ) -> None:
        self.own = own
        self.blocks = own.model.num_blocks
        self.length = min(room, self.blocks)
        placed = view.placed(model)
        self._typical = _typical_block_ms(placed)
        others = [p for p in placed if p.peer_id not in gone and p.peer_id != own.peer_id]
        self.spans = {p.peer_id: _place(p, own, yields) for p in others}
        self.movable = [p for p in others if p.moves and _rests(p)]
        self.totals = [0.0] * self.blocks
        for peer in others:
            self._add(self.totals, self.spans[peer.peer_id], block_ms(peer, self._typical))
        kept = (_kept(p, self.spans[p.peer_id]) for p in others)
        self.holders = _holders(filter(None, kept), self.blocks)
        """For each block how many others serve it and mean to go on."""

    def better(self, only: Span | None = None) -> Move | None:
        """See `better_place`."""
        now = self._with_own(self.own.span)
        windows = [only] if only else [*self._windows()]
        closing = [w for w in windows if self._may_leave(w) and _closes(now, w)]
        if closing:
            return Move(self._best_for_gap(now, closing), Reason.GAP)
        if min(now) == 0:
            shifted = self._shifted()
            return Move(shifted, Reason.GAP) if shifted and only in (None, shifted) else None
        raising = [w for w in windows if self._may_leave(w) and self._raises(now, w)]
        return Move(self._leveled(raising), Reason.THIN) if raising else None

    def _windows(self) -> Iterable[Span]:
        starts = range(self.blocks - self.length + 1)
        spans = (Span(start, start + self.length) for start in starts)
        return (span for span in spans if span != self.own.span)

    def _may_leave(self, window: Span) -> bool:
        """Whether others serve all that this node would not hold any more."""
        span = self.own.span
        return all(self.holders[b] for b in range(span.start, span.end) if b not in window)

    def _raises(self, now: Sequence[float], window: Span) -> bool:
        """Whether the slowest of all blocks that the move changes get clearly faster."""
        after, span = self._with_own(window), self.own.span
        changed = [b for b in range(self.blocks) if (b in window) != (b in span)]
        before = min((now[b] for b in changed), default=0.0)
        return 0 < MOVE_GAIN * before < min((after[b] for b in changed), default=0.0)

    def _best_for_gap(self, now: Sequence[float], windows: Sequence[Span]) -> Span:
        """What remains missing should be little, and in few pieces; then as in `_leveled`."""
        missing = list(accumulate((value == 0 for value in now), initial=0))
        left = {
            w: (missing[w.start] - missing[w.end], pieces_left(now, w) if missing[-1] else 0)
            for w in windows
        }
        least = min(left.values())
        return self._leveled([w for w in windows if left[w] == least])

    def _leveled(self, windows: Sequence[Span]) -> Span:
        """Return the window that raises the slowest blocks most, then the second slowest, etc."""
        ranked = {w: sorted(round(v, 6) for v in self._with_own(w)) for w in windows}
        best = max(ranked.values())
        equal = [w for w in windows if ranked[w] == best]
        ends = edges(self.totals)
        choice = [w for w in equal if w.start in ends or w.end in ends] or equal
        return choice[int(self.own.peer_id, 16) % len(choice)]

    def _with_own(self, window: Span) -> list[float]:
        totals = list(self.totals)
        self._add(totals, window, block_ms(self.own, self._typical))
        return totals

    def _add(self, totals: list[float], span: Span, milliseconds: float) -> None:
        more = 1000 / (milliseconds * len(span))
        for block in range(span.start, span.end):
            totals[block] += more

    # Where no node can close a gap by itself.

    def _shifted(self) -> Span | None:
        """Return this node's place once all have shifted, if it may go there and others wait."""
        everybody = [*self.movable, self.own]
        if any(self._can_close(peer) for peer in self.movable):
            return None
        shiftable = {peer.peer_id for peer in everybody}
        spans = {**self.spans, self.own.peer_id: self.own.span}
        places = sorted((span, peer_id, peer_id in shiftable) for peer_id, span in spans.items())
        targets = _shift([(span, moves) for span, _, moves in places], self.blocks)
        for (span, peer_id, _), start in zip(places, targets, strict=True):
            if peer_id == self.own.peer_id and start != span.start:
                target = Span(start, start + len(span))
                return target if self._may_leave(target) else None
        return None

    def _can_close(self, peer: Announcement) -> bool:
        """Whether another node could close some of a gap and leave nothing uncovered."""
        now = self._with_own(self.own.span)
        span = peer.span
        held = [n + (b in self.own.span) - (b in span) for b, n in enumerate(self.holders)]
        alone = [b for b in range(span.start, span.end) if not held[b]]
        first = max(alone) + 1 - len(span) if alone else 0
        last = min(alone) if alone else self.blocks - len(span)
        reach = range(max(0, first), min(last + len(span), self.blocks))
        return any(now[b] == 0 for b in reach) and first <= last


def _shift(places: Sequence[tuple[Span, bool]], blocks: int) -> list[int]:
    """Return starts that cover all blocks, each as near to the present one as the order allows.

    `places` are spans, the first ones first, and whether they can be shifted. Where they do not
    suffice, or one that cannot be shifted is in the way, all stay.
    """
    stay = [span.start for span, _ in places]
    earliest, needed = [0] * len(places), blocks
    for i in range(len(places) - 1, -1, -1):
        span, moves = places[i]
        earliest[i] = min(max(0, needed - len(span)), blocks - len(span)) if moves else span.start
        if earliest[i] + len(span) >= needed:
            needed = min(needed, earliest[i])
    starts, reached = [], 0
    for (span, moves), least in zip(places, earliest, strict=True):
        latest = min(reached, blocks - len(span))
        start = min(max(span.start, least), latest) if moves else span.start
        if start > reached or start < 0:
            return stay
        starts.append(start)
        reached = max(reached, start + len(span))
    return starts if reached >= blocks and needed == 0 else stay


def _closes(now: Sequence[float], window: Span) -> bool:
    return any(now[b] == 0 for b in range(window.start, window.end))


def _holders(spans: Iterable[Span], blocks: int) -> list[int]:
    counts = [0] * blocks
    for span in spans:
        for block in range(span.start, span.end):
            counts[block] += 1
    return counts


def _kept(peer: Announcement, place: Span) -> Span | None:
    """The blocks that it serves now and will serve where it counts; none if it is about to go."""
    if peer.state is not NodeState.SERVING or peer.leaves:
        return None
    start, end = max(peer.span.start, place.start), min(peer.span.end, place.end)
    return Span(start, end) if start < end else None


def _rests(peer: Announcement) -> bool:
    return peer.state is NodeState.SERVING and peer.plan is None


def _place(peer: Announcement, own: Announcement, yields: bool) -> Span:
    """Where another node counts."""
    undecided = peer.state is NodeState.SERVING and peer.plan is not None
    return (
        peer.span if undecided and not yields and peer.peer_id > own.peer_id else peer.destination
    )


def _typical_block_ms(peers: Iterable[Announcement]) -> float:
    """What is taken for peers that have measured nothing yet: what those that have say."""
    measured = [block_ms(peer) for peer in peers if peer.step_ms > 0]
    return median(measured) if measured else DEFAULT_BLOCK_MS


def watched_by(view: View, model: str, own: Announcement) -> tuple[Announcement, ...]:
    """Return the peers whose loss this node should notice, as it could step in; the thinnest first.

    Each peer is looked after by the `WATCHERS` that are nearest to it by XOR of ids, of the nodes
    that could move and hold no block alone. A directory forgets a peer only when its lease ends.
    """
    serving = view.serving(model)
    counts = _holders((peer.span for peer in serving), own.model.num_blocks)

    def fewest(peer: Announcement) -> int:
        return min(counts[peer.span.start : peer.span.end])

    spare = [peer for peer in serving if peer.moves and fewest(peer) > 1]
    if own.peer_id not in {peer.peer_id for peer in spare}:
        return ()

    def looks_after(peer: Announcement) -> bool:
        key = int(peer.peer_id, 16)
        near = sorted(
            (int(other.peer_id, 16) ^ key, other.peer_id) for other in spare if other is not peer
        )
        return own.peer_id in {peer_id for _, peer_id in near[:WATCHERS]}

    found = [p for p in serving if p.peer_id != own.peer_id and looks_after(p)]
    return tuple(sorted(found, key=lambda p: (fewest(p), p.peer_id))[:MAX_WATCHED])

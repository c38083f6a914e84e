"""When a node that serves moves to other blocks: from a wish over an announced plan to going.

A state machine over views: it says what to announce and when to go. Where to is decided by
`swarm.rebalance`; draining, loading and announcing are the node's business.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from swarmd.core.peers import Announcement
from swarmd.core.span import Span
from swarmd.swarm.rebalance import Move, Reason, better_place
from swarmd.swarm.view import View

JITTER_S = {Reason.GAP: 2.0, Reason.THIN: 30.0}
"""A wish is kept for a while before it is announced, up to so much at random: one goes first."""
PATIENCE_S = {Reason.GAP: 0.0, Reason.THIN: 30.0}
"""What is slow for a moment only is left alone: the wish must have been there for so long."""
SETTLE_S = 1.5
"""How long a plan is announced before the node goes: others that plan the same see it."""
REST_S = {Reason.GAP: 10.0, Reason.THIN: 300.0}
"""At least between two moves of one node, or after one that was given up."""


@dataclass(frozen=True, slots=True)
class _Wish:
    move: Move
    due: float
    """When it becomes a plan."""


@dataclass(frozen=True, slots=True)
class _Plan:
    move: Move
    since: float


class Mover:
    """Decides for one node. `now` is seconds of a monotonic clock, `jitter` is in [0, 1)."""

    def __init__(self, room: int) -> None:
        """`room` is how many blocks fit the node."""
        self._room = room
        self._state: _Wish | _Plan | None = None
        self._rested_at = float("-inf")

    @property
    def plan(self) -> Span | None:
        """What to announce."""
        return self._state.move.span if isinstance(self._state, _Plan) else None

    @property
    def at_rest(self) -> bool:
        """Whether it would do the same again as long as the view and `gone` are the same."""
        return self._state is None

    def look(
        self,
        view: View,
        own: Announcement,
        now: float,
        jitter: float,
        gone: frozenset[str] = frozenset(),
    ) -> Move | None:
        """Look at the swarm, some times a second; return a move that is to be made now.

        After that, `ended` says how it went; until then there is nothing to look for.
        """
        state = self._state
        if isinstance(state, _Plan):
            if not self.confirm(view, own, gone):
                self._state = None
            return state.move if self._state and now >= state.since + SETTLE_S else None
        move = better_place(view, own.model.digest, own, self._room, gone=gone)
        if move is None:
            self._state = None
        elif state is None or state.move.reason is not move.reason:
            self._state = _Wish(move, self._due(own, move.reason, now, jitter))
        elif now >= state.due:
            self._state = _Plan(move, now)
        return None

    def confirm(self, view: View, own: Announcement, gone: frozenset[str] = frozenset()) -> bool:
        """Whether what is planned is still right; to be asked again when it cannot be put off."""
        assert isinstance(self._state, _Plan)
        return self._reason(self._state, view, own, gone) is self._state.move.reason

    def fills_gap(self, view: View, own: Announcement, gone: frozenset[str] = frozenset()) -> bool:
        """Whether blocks are missing where it goes by now; that is why it goes from then on.

        To be asked when it has begun to go: others count on it already.
        """
        assert isinstance(self._state, _Plan)
        reason = self._reason(self._state, view, own, gone)
        if reason is Reason.GAP:
            self._state = replace(self._state, move=replace(self._state.move, reason=reason))
        return reason is Reason.GAP

    def _reason(
        self, plan: _Plan, view: View, own: Announcement, gone: frozenset[str]
    ) -> Reason | None:
        """Why it should do as planned now, if it should."""
        span, model = plan.move.span, own.model.digest
        move = better_place(view, model, own, self._room, gone=gone, yields=False, only=span)
        return None if move is None else move.reason

    def ended(self, now: float) -> None:
        """Take note that a move was made, or was given up."""
        self._state, self._rested_at = None, now

    def _due(self, own: Announcement, reason: Reason, now: float, jitter: float) -> float:
        # Who has sessions lets those go first that have none.
        wait = PATIENCE_S[reason] + (jitter + (own.sessions > 0)) * JITTER_S[reason]
        return max(now + wait, self._rested_at + REST_S[reason])

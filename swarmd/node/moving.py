"""A serving node's wish to be where the swarm needs it: watches, announces a plan, says when to go.

Decisions are `swarmd.swarm.mover`'s; draining and loading are `swarmd.node.moves`'s.
"""

from __future__ import annotations

import asyncio
import logging
import random

from swarmd.core.clock import Clock
from swarmd.core.peers import Announcement, NodeState
from swarmd.core.span import Span
from swarmd.node.membership import Membership
from swarmd.node.patrol import ROUND_S, Patrol
from swarmd.node.status import NodeStats
from swarmd.swarm.mover import Mover
from swarmd.swarm.rebalance import MAX_WATCHED, Move, watched_by
from swarmd.swarm.view import View

log = logging.getLogger(__name__)

LOOK_S = 0.5


class Moving:
    """Looks for a better place for one node, forever; `next_move` returns when it should go."""

    def __init__(self, membership: Membership, room: int, clock: Clock, stats: NodeStats) -> None:
        """`room` is how many blocks fit this node."""
        self._stats = stats
        self._membership = membership
        self._presence = membership.presence
        self._mover = Mover(room)
        self._patrol = Patrol(membership.own_id, membership.ask)
        self._clock = clock

    async def keep_watch(self) -> None:
        """Look after others, forever."""
        while True:
            own = self._presence.view.peer(self._membership.own_id)
            if own is not None and own.state is NodeState.SERVING:
                await self._patrol.go_round(watched_by(self._presence.view, own.model.digest, own))
            await asyncio.sleep(ROUND_S * random.uniform(0.75, 1.25))

    async def next_move(self) -> Move:
        """Wait until this node should move. After that, call `confirm` and `ended`."""
        while True:
            own, view = self._membership.announcement(), self._presence.view
            if own.state is NodeState.SERVING and (move := self._look(own, view)) is not None:
                log.info("moving blocks=%s to=%s reason=%s", own.span, move.span, move.reason.name)
                return move
            await asyncio.sleep(LOOK_S)

    def _look(self, own: Announcement, view: View) -> Move | None:
        now, gone = self._clock.monotonic(), self._patrol.gone(view.peers)
        move = self._mover.look(view, own, now, random.random(), gone)
        self._announce_plan()
        return move

    async def confirm(self) -> bool:
        """Whether to go, as the swarm is now: those who stay behind are asked whether they live."""
        await self._presence.look_again()
        own, view = self._membership.announcement(), self._presence.view
        others = (p for p in view.serving(own.model.digest) if p.peer_id != own.peer_id)
        behind = [p for p in others if any(block in own.span for block in _blocks(p.span))]
        await self._patrol.go_round(behind[:MAX_WATCHED])
        return self._mover.confirm(view, own, self._patrol.gone(view.peers))

    async def fills_gap(self) -> bool:
        """Whether blocks have come to be missing where it goes, though that was not why it does."""
        await self._presence.look_again()
        own, view, plan = self._membership.announcement(), self._presence.view, self._mover.plan
        others = (p for p in view.serving(own.model.digest) if p.peer_id != own.peer_id)
        there = [p for p in others if plan is not None and p.span.meets(plan)]
        await self._patrol.go_round(there[:MAX_WATCHED])
        return self._mover.fills_gap(view, own, self._patrol.gone(view.peers))

    def ended(self, *, moved: bool) -> None:
        """Take note of how a move went."""
        self._stats.moves += moved
        self._stats.moves_given_up += not moved
        self._mover.ended(self._clock.monotonic())
        self._announce_plan()

    def _announce_plan(self) -> None:
        description = self._membership.description
        if description is not None and description.plan != self._mover.plan:
            description.plan = self._mover.plan
            self._presence.changed()


def _blocks(span: Span) -> range:
    return range(span.start, span.end)

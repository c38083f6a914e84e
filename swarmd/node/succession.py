"""A node that leaves and is the last holder of some blocks: whether it is waited for by others.

It stays while nobody else serves them and somebody is there who could, or for whom its sessions
run. An idle node for which nobody could step in goes at once: it would only be back the later. Of
a swarm that ends as a whole nobody waits for anybody. How a node leaves is `swarmd.node.life`'s.
"""

from __future__ import annotations

import asyncio
import logging

from swarmd.core.peers import Announcement, NodeState
from swarmd.node.dismissal import held_by_nobody_else
from swarmd.node.membership import Membership
from swarmd.node.patrol import ROUND_S, Patrol
from swarmd.swarm.rebalance import MAX_WATCHED
from swarmd.swarm.view import View

log = logging.getLogger(__name__)


class Succession:
    """What one node waits for, besides its sessions. Lives on the event loop."""

    def __init__(self, membership: Membership, *, holds: bool) -> None:
        """`holds` says whether its blocks are there; between two stages it has none to leave."""
        self._presence = membership.presence
        self._own = membership.announcement()
        self._holds = holds
        self._patrol = Patrol(membership.own_id, membership.ask)
        self._has_asked = False
        """Whether those who hold its blocks, as they announce, have been asked if they live."""
        self._waits_for = ""
        """The blocks for which another holder is waited for."""
        self._looked_at: tuple[View, bool] | None = None
        """That view need not be looked at again, by a node that was idle or not."""

    def is_awaited(self, seconds: float, *, idle: bool) -> bool:
        """Whether the node should stay for so many seconds yet; says when that begins and ends.

        `idle` is whether no session runs through it, or by it.
        """
        if not self._holds:
            return False
        seen = self._presence.view, idle
        if self._looked_at != seen:
            self._looked_at = seen
            self._look(*seen, seconds)
        return bool(self._waits_for) or not self._has_asked

    def timed_out(self) -> None:
        """The time is up: say so, if another holder is still waited for."""
        if self._waits_for:
            log.warning("no other holder came in time blocks=%s", self._waits_for)

    async def keep_asking(self) -> None:
        """Ask those on whom it counts, or on whose account it waits, for a sign of life, forever.

        Announcements outlive nodes.
        """
        while True:
            others = self._others(self._presence.view)
            if not self._waits_for:
                others = [peer for peer in others if peer.span.meets(self._own.span)]
            await self._patrol.go_round(others[:MAX_WATCHED])
            self._has_asked, self._looked_at = True, None
            await asyncio.sleep(ROUND_S)

    def _look(self, view: View, idle: bool, seconds: float) -> None:
        alone = held_by_nobody_else(view, self._own, self._patrol.gone(view.peers))
        blocks = ", ".join(f"{start}:{end}" for start, end in alone)
        others = self._others(view)
        if idle:
            others = [p for p in others if p.moves or p.plan or p.state is NodeState.LOADING]
        before, self._waits_for = self._waits_for, blocks if others else ""
        if self._waits_for and not before:
            log.warning("waits for another holder blocks=%s seconds=%.0f", blocks, seconds)
        elif before and not alone:
            log.info("another holder serves them blocks=%s", before)
        elif before and not self._waits_for:
            log.warning("nobody is left who could serve them blocks=%s", blocks)

    def _others(self, view: View) -> list[Announcement]:
        """Those who stay, elsewhere perhaps: they could take the blocks, or need them."""
        gone = self._patrol.gone(view.peers) | {self._own.peer_id}
        return [p for p in view.placed(self._own.model.digest) if p.peer_id not in gone]

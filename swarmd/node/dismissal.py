"""A node is told or advised to leave: whether it may, so that no block goes with it.

Of several that are told so at one moment each sees the others still serve. So a node says first
that it is about to leave, looks again once others can have seen that, and asks those on whom it
counts whether they live. How a node leaves is `swarmd.node.life`'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from swarmd.core.errors import DirectoryError, UsageError
from swarmd.core.peers import Announcement
from swarmd.core.span import missing_blocks
from swarmd.node.membership import Membership
from swarmd.node.patrol import Patrol
from swarmd.swarm.rebalance import MAX_WATCHED
from swarmd.swarm.view import View

log = logging.getLogger(__name__)

SETTLE_S = 1.5
"""How long a node that may leave tells others so before it does: twice what an announcement takes
to be seen, as who has not seen it yet must be heard of."""
LOOK_S = 2.0
DECIDE_S = 8.0
"""Less than whoever asks waits for the answer."""


class Dismissal:
    """Takes `swarmd drain` and a cloud's advice for one node. Lives on the event loop."""

    def __init__(
        self, membership: Membership, accepts: Callable[[], bool], start_drain: Callable[[], None]
    ) -> None:
        """`accepts` says whether the node has not begun to leave."""
        self._membership = membership
        self._presence = membership.presence
        self._accepts = accepts
        self._start_drain = start_drain
        self._deciding = asyncio.Lock()
        self._refusal: UsageError | DirectoryError | None = None
        """Why it may not go, as was found when that was last asked."""

    async def ask(self, *, force: bool) -> None:
        """Begin to drain, or to stop if it drains. Raises UsageError for the last holder of blocks.

        With `force` nothing holds it back. Who asks while another one is being answered gets the
        same answer.
        """
        if force:
            self._start_drain()
            return
        together = self._deciding.locked()
        async with self._deciding:
            if together and self._refusal is not None:
                raise self._refusal
            drains = not self._accepts()
            if together and drains:
                return
            await self._decide()
            if drains or self._accepts():  # a signal may have come meanwhile
                self._start_drain()

    async def may_go(self) -> bool:
        """Whether it may follow advice to leave, now that others have been told that it does."""
        try:
            async with self._deciding:
                await self._decide()
        except (UsageError, DirectoryError) as error:
            log.info("stays error=%s", error)
            return False
        return True

    async def _decide(self) -> None:
        try:
            async with asyncio.timeout(DECIDE_S):
                await self._look(self._patrol())
                await self._tell_and_look()
            self._refusal = None
        except TimeoutError:
            self._refusal = DirectoryError(
                f"whether others hold these blocks is not known after {DECIDE_S:.0f} s: try again, "
                "or add --force"
            )
            raise self._refusal from None
        except (UsageError, DirectoryError) as error:
            self._refusal = error
            raise

    def _patrol(self) -> Patrol:
        return Patrol(self._membership.own_id, self._membership.ask)

    async def _tell_and_look(self) -> None:
        self._membership.leaves = True
        try:
            await self._presence.announce()
            patrol, others = self._patrol(), self._counted_on()
            await asyncio.gather(patrol.go_round(others), asyncio.sleep(SETTLE_S))
            await self._look(patrol)
            asked = {(peer.peer_id, peer.pid) for peer in others}
            new = [p for p in self._counted_on() if (p.peer_id, p.pid) not in asked]
            if new:  # nobody has asked yet whether they live
                await patrol.go_round(new)
                await self._look(patrol)
        finally:
            self._membership.leaves = False
            self._presence.changed()

    async def _look(self, patrol: Patrol) -> None:
        """Refuse for the last holder of blocks, by a fresh view: an old one will not do."""
        try:
            async with asyncio.timeout(LOOK_S):
                await self._presence.refresh()
        except (DirectoryError, TimeoutError) as error:
            raise DirectoryError(
                "who else holds this node's blocks is not known, as its directory does not answer: "
                "try again, or add --force"
            ) from error
        self._refuse_if_last(patrol.gone(self._presence.view.peers))

    def _counted_on(self) -> list[Announcement]:
        """Return others with blocks of its own: so many of them as can be asked."""
        own = self._membership.announcement()
        first, end = own.span.start, own.span.end
        others = staying(self._presence.view, own.model.digest, own.peer_id)
        return [p for p in others if p.span.start < end and first < p.span.end][:MAX_WATCHED]

    def _refuse_if_last(self, gone: frozenset[str]) -> None:
        own = self._membership.announcement()
        if alone := held_by_nobody_else(self._presence.view, own, gone):
            blocks = ", ".join(f"{start}:{end}" for start, end in alone)
            raise UsageError(
                f"nobody else holds blocks {blocks}: the model would be gone; start another node "
                "with them first, or add --force"
            )


def staying(view: View, model: str, peer_id: str) -> list[Announcement]:
    """Return the other peers that serve a model, and do not leave before this one.

    Of those that are about to, the one with the lowest id stays.
    """
    others = (peer for peer in view.serving(model) if peer.peer_id != peer_id)
    return [peer for peer in others if not peer.leaves or peer.peer_id < peer_id]


def held_by_nobody_else(
    view: View, own: Announcement, gone: frozenset[str]
) -> tuple[tuple[int, int], ...]:
    """Return the blocks of which this peer is the last holder that stays; `gone` are others."""
    others = staying(view, own.model.digest, own.peer_id)
    gaps = missing_blocks([p.span for p in others if p.peer_id not in gone], own.model.num_blocks)
    cut = ((max(a, own.span.start), min(b, own.span.end)) for a, b in gaps)
    return tuple((a, b) for a, b in cut if a < b)

"""Looks after the peers in whose place this node could step: their announcements outlive them.

Which they are is `swarmd.swarm.rebalance`'s decision; what follows from a loss is `swarm.mover`'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable

from swarmd.core.errors import ConfigError, PeerError
from swarmd.core.peers import Announcement
from swarmd.v1 import peer_pb2 as pb

log = logging.getLogger(__name__)

ROUND_S = 1.5
AGAIN_S = 0.5
"""After no answer: the second time a peer counts as gone."""
ANSWER_S = 1.5
MAX_SILENT = 256
"""Of those that did not answer so many are remembered; whoever fell silent first is forgotten."""


class Patrol:
    """Asks peers for a sign of life."""

    def __init__(
        self, own_id: str, ask: Callable[[str, str], Awaitable[pb.IntroduceReply]]
    ) -> None:
        """`ask` has the door at an address introduce itself to a node of this id."""
        self._own_id = own_id
        self._ask_door = ask
        self._silent: dict[tuple[str, int], int] = {}
        """By peer and process, how often in a row there was no answer."""

    def gone(self, peers: Iterable[Announcement]) -> frozenset[str]:
        """Return the ids of those that do not answer; one that was started anew has a new pid."""
        return frozenset(p.peer_id for p in peers if self._silent.get((p.peer_id, p.pid), 0) > 1)

    async def go_round(self, peers: Iterable[Announcement]) -> None:
        """Ask all of them at once; those that do not answer a second time."""
        silent = await self._ask(peers)
        if silent:
            await asyncio.sleep(AGAIN_S)
            await self._ask(silent)

    async def _ask(self, peers: Iterable[Announcement]) -> list[Announcement]:
        asked = list(peers)
        answers = await asyncio.gather(*map(self._answers, asked))
        for peer, answered in zip(asked, answers, strict=True):
            key = (peer.peer_id, peer.pid)
            if answered:
                self._silent.pop(key, None)
            else:
                self._silent[key] = self._silent.get(key, 0) + 1
                while len(self._silent) > MAX_SILENT:
                    del self._silent[next(iter(self._silent))]
                if self._silent[key] == 2:
                    log.info("no sign of life peer=%s blocks=%s", peer.peer_id[:8], peer.span)
        return [peer for peer, yes in zip(asked, answers, strict=True) if not yes]

    async def _answers(self, peer: Announcement) -> bool:
        try:
            async with asyncio.timeout(ANSWER_S):
                return (await self._ask_door(peer.address, self._own_id)).peer_id == peer.peer_id
        except (PeerError, ConfigError, TimeoutError):  # an address may be none
            return False

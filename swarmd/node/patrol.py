"""Looks after the peers in whose place this node could step: their announcements outlive them.

A process that is started in place of another one answers long before its blocks are loaded, and
before it is heard of: that is no sign of life of the one whose announcement is still valid.

Which they are is `swarmd.swarm.rebalance`'s decision; what follows from a loss is `swarm.mover`'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from swarmd.core.errors import ConfigError, PeerError
from swarmd.core.peers import Announcement
from swarmd.v1 import peer_pb2 as pb

log = logging.getLogger(__name__)

ROUND_S = 1.5
AGAIN_S = 0.5
"""After no answer: the second time a peer counts as gone."""
ANSWER_S = 1.5
MAX_SILENT = 256
"""Of those that did not answer so many are remembered; whoever fell silent first is forgotten.
Of those that did, as well."""


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
        self._since: dict[str, float] = {}
        """By peer, when the process that answers there first announced itself."""

    def gone(self, peers: Iterable[Announcement]) -> frozenset[str]:
        """Return the ids of those that do not answer, or in whose place another process does."""
        return frozenset(p.peer_id for p in peers if self._is_gone(p))

    def _is_gone(self, peer: Announcement) -> bool:
        """Whether it is; in a container one that was started anew has the pid of before."""
        silent = self._silent.get((peer.peer_id, peer.pid), 0)
        return silent > 1 or peer.issued_at < self._since.get(peer.peer_id, 0.0)

    async def go_round(self, peers: Iterable[Announcement]) -> None:
        """Ask all of them at once; those that do not answer a second time."""
        silent = await self._ask(peers)
        if silent:
            await asyncio.sleep(AGAIN_S)
            await self._ask(silent)

    async def _ask(self, peers: Iterable[Announcement]) -> list[Announcement]:
        asked = list(peers)
        answers = await asyncio.gather(*map(self._answer, asked))
        for peer, answer in zip(asked, answers, strict=True):
            key = (peer.peer_id, peer.pid)
            if answer is not None:
                self._silent.pop(key, None)
                self._hear(peer, answer.announced_since_s)
            else:
                self._silent[key] = self._silent.get(key, 0) + 1
                _forget(self._silent)
                if self._silent[key] == 2:
                    log.info("no sign of life peer=%s blocks=%s", peer.peer_id[:8], peer.span)
        return [peer for peer, answer in zip(asked, answers, strict=True) if answer is None]

    def _hear(self, peer: Announcement, since: float) -> None:
        before = self._since.pop(peer.peer_id, 0.0)
        self._since[peer.peer_id] = since
        _forget(self._since)
        if before <= peer.issued_at < since:
            log.info("was started anew peer=%s blocks=%s", peer.peer_id[:8], peer.span)

    async def _answer(self, peer: Announcement) -> pb.IntroduceReply | None:
        try:
            async with asyncio.timeout(ANSWER_S):
                reply = await self._ask_door(peer.address, self._own_id)
        except (PeerError, ConfigError, TimeoutError):  # an address may be none
            return None
        return reply if reply.peer_id == peer.peer_id else None


def _forget(notes: dict[Any, Any]) -> None:
    while len(notes) > MAX_SILENT:
        del notes[next(iter(notes))]

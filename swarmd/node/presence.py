"""This node among others: announces itself, keeps the view fresh, joins through peers.

The directory carries announcements (`swarmd.swarm.dht`), `swarmd.swarm.announcer` says when to
publish; what follows from a view is decided elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Sequence

from swarmd.core.clock import Clock
from swarmd.core.errors import DirectoryError, PeerError
from swarmd.core.peers import Announcement, NodeState
from swarmd.node.peering import introduce
from swarmd.swarm import coordinates
from swarmd.swarm.coordinates import Coordinate
from swarmd.swarm.directory import Directory
from swarmd.swarm.view import View
from swarmd.wire.link import RttSample

log = logging.getLogger(__name__)

REFRESH_S = 0.5
"""How old a view may be: an announcement is seen elsewhere within this and a lookup."""
JOIN_RETRY_S = (0.5, 10.0)


class Presence:
    """Keeps one node and its picture of the swarm up to date.

    `describe` gives the present announcement, or None while there is nothing to announce;
    `on_change` is called when the view's routes may differ.
    """

    def __init__(
        self,
        own_id: str,
        directory: Directory,
        seeds: Iterable[str],
        lease: float,
        clock: Clock,
        describe: Callable[[], Announcement | None],
        on_change: Callable[[], None],
    ) -> None:
        self.own_id = own_id
        self.view = View((), clock.wall())
        self.joined = asyncio.Event()
        self._directory = directory
        self._seeds = tuple(seeds)
        self._lease = lease
        self._clock = clock
        self._describe = describe
        self._on_change = on_change
        self._changed = asyncio.Event()
        self._coordinate = Coordinate()
        if not self._seeds:
            self.joined.set()

    # What others ask ----------------------------------------------------------------------

    @property
    def own(self) -> Announcement | None:
        """This node's own announcement as it is now."""
        return self._describe()

    @property
    def coordinate(self) -> tuple[float, ...]:
        """This node's network coordinate."""
        return self._coordinate.announced

    def address_of(self, peer_id: str) -> str | None:
        """Return where a peer of the view can be dialled."""
        peer = self.view.peer(peer_id)
        return peer.address if peer else None

    def peer_addresses(self) -> Sequence[str]:
        """Return the gRPC addresses of all known nodes."""
        return [peer.address for peer in self.view.peers]

    def directory_addresses(self) -> Sequence[str]:
        """Return where the directory can be joined."""
        return self._directory.addresses()

    def on_rtt(self, peer_id: str, sample: RttSample) -> None:
        """Move this node's coordinate by a measured round trip."""
        self._coordinate = coordinates.update(
            self._coordinate,
            sample.coordinate,
            sample.seconds * 1000,
            angle=random.uniform(0.0, 6.283),
        )

    # Announcing -----------------------------------------------------------------------------

    def changed(self) -> None:
        """Announce the present state at once."""
        self._changed.set()

    async def announce(self) -> None:
        """Publish now, and see it."""
        own = self._describe()
        if own is not None:
            await self._directory.publish(own)
            await self.refresh()

    async def keep_announced(self) -> None:
        """Publish at every change, and well before the lease ends."""
        while True:
            try:
                await self.announce()
            except DirectoryError as error:
                log.warning("announcement not published error=%s", error)
            self._changed.clear()
            pause = self._lease / 3 * random.uniform(0.8, 1.0)
            try:
                async with asyncio.timeout(pause):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def leave(self) -> None:
        """Tell everybody that this node is gone."""
        try:
            async with asyncio.timeout(2.0):
                await self._directory.withdraw(self.own_id)
        except (DirectoryError, TimeoutError) as error:
            log.warning("tombstone not written error=%s", error)

    # Seeing ---------------------------------------------------------------------------------

    async def refresh(self) -> None:
        """Look again at everybody's announcements. Raises DirectoryError."""
        found = await self._directory.announcements()
        before, self.view = self.view, View(found, self._clock.wall())
        if _routes(before) != _routes(self.view):
            self._on_change()

    async def keep_fresh(self) -> None:
        """Refresh the view forever."""
        while True:
            try:
                await self.refresh()
            except DirectoryError as error:
                # The old view goes on to serve, less what has expired.
                self.view = View(self.view.peers, self._clock.wall())
                log.warning("view not refreshed error=%s", error)
            await asyncio.sleep(REFRESH_S * random.uniform(0.8, 1.2))

    # Joining --------------------------------------------------------------------------------

    async def join(self) -> None:
        """Ask the seeds for the directory until one has answered; the others once more each."""
        pause = JOIN_RETRY_S[0]
        waiting = set(self._seeds)
        while waiting:
            for seed in sorted(waiting):
                if await self._join_through(seed):
                    waiting.discard(seed)
            if waiting:
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(JOIN_RETRY_S[1], pause * 1.5)

    async def _join_through(self, seed: str) -> bool:
        try:
            reply = await introduce(seed, self.own_id)
            if reply.peer_id != self.own_id:
                await self._directory.join(reply.directory_addresses)
                await self.announce()
                log.info("joined through=%s", seed)
        except (PeerError, DirectoryError) as error:
            log.info("seed does not answer yet address=%s error=%s", seed, error)
            return False
        self.joined.set()
        return True


def _routes(view: View) -> set[tuple[str, str, int, int, NodeState]]:
    """What routes depend on, of a view."""
    return {(p.peer_id, p.address, p.span.start, p.span.end, p.state) for p in view.peers}

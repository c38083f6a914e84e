"""This node among others: announces itself, keeps the view fresh, joins through peers.

The directory carries announcements (`swarmd.swarm.dht`), `swarmd.swarm.announcer` says when to
publish; what follows from a view is decided elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path

from swarmd.core.clock import Clock, ahead
from swarmd.core.errors import ConfigError, DirectoryError, PeerError
from swarmd.core.peers import Announcement, NodeState
from swarmd.node.peering import introduce
from swarmd.swarm import coordinates
from swarmd.swarm.announcer import Announcer
from swarmd.swarm.coordinates import Coordinate
from swarmd.swarm.directory import Directory
from swarmd.swarm.remembered import RememberedPeers
from swarmd.swarm.view import View
from swarmd.v1 import peer_pb2 as pb
from swarmd.wire.link import RttSample

log = logging.getLogger(__name__)

PATIENCE_S = 4.0
"""How old a view may get while nobody announces anything new."""
RETRY_S = 0.5
JOIN_RETRY_S = (0.5, 10.0)
REMEMBER_S = (2.0, 60.0)
"""How often the file of known peers is written at most, when there are new ones and when not."""
CLOCKS_DIFFER_S = 2.0
"""From 3 s on hivemind refuses to join, from 10 s on announcements are not believed."""
ANNOUNCE_S = 5.0
"""When it is looked whether there is something to announce, if nobody says that there may be; well
before a short lease ends."""
LEAVE_TIMEOUT_S = 2.0
LOOK_TIMEOUT_S = 1.0
APPEARS_S = 3.0
"""A peer that others know already is in this node's view within so many seconds, or not soon."""


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
        state_dir: Path,
        clock: Clock,
        describe: Callable[[], Announcement | None],
        on_change: Callable[[], None],
        ask: Callable[[str, str], Awaitable[pb.IntroduceReply]] = introduce,
    ) -> None:
        """`ask` has a door, by its address, introduce this node to the directory."""
        self.own_id = own_id
        self.view = View((), clock.wall())
        self.joined = asyncio.Event()
        """Set once a door has answered, or when there was none to try."""
        self._directory = directory
        self._seeds = tuple(seeds)
        self._announcer = Announcer(lease, random.random())
        self._announce_s = min(ANNOUNCE_S, lease / 6)
        self._state_dir = state_dir
        self._remembered = RememberedPeers.load(state_dir)
        self._remember_at = 0.0
        self._clock = clock
        self._describe = describe
        self._on_change = on_change
        self._ask = ask
        self._looking = asyncio.Lock()
        self._looks = self._looked = 0
        """How many looks have begun, and which was the last to end."""
        self._changed = asyncio.Event()
        self._seen = asyncio.Event()
        self._coordinate = Coordinate()
        if not self._seeds and not self._remembered.grpc:
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

    def announced_since(self) -> float:
        """Return when this process first announced the node, or now: no older one is its own."""
        return self._announcer.since(self._clock.wall())

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
        """Look at once whether there is something new to announce."""
        self._changed.set()

    async def announce(self) -> None:
        """Publish if it is due. Raises DirectoryError."""
        own = self._describe()
        due = self._announcer.due(own, self._clock.wall()) if own is not None else None
        if due is not None:
            await self._directory.publish(due)

    async def keep_announced(self) -> None:
        """Publish at every change, and well before the lease ends."""
        while True:
            try:
                await self.announce()
            except DirectoryError as error:
                log.warning("announcement not published error=%s", error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._announce_s):
                    await self._changed.wait()
            self._changed.clear()

    async def leave(self) -> None:
        """Tell everybody that this node is gone."""
        gone = self._announcer.leave(self._clock.wall())
        if gone is None:
            return
        try:
            async with asyncio.timeout(LEAVE_TIMEOUT_S):
                await self._directory.publish(gone)
        except (DirectoryError, ConfigError, TimeoutError) as error:
            log.warning("tombstone not written error=%s", error or "no answer in time")

    # Seeing ---------------------------------------------------------------------------------

    async def refresh(self, patience: float = 0.0) -> None:
        """Look again at everybody's announcements, for as long as they are the same as before.

        Raises DirectoryError.
        """
        found = await self._directory.announcements(patience)
        before, self.view = self.view, View(found, self._clock.wall())
        if _routes(before) != _routes(self.view):
            self._seen.set()
            self._on_change()
        self._remember()

    async def see(self) -> None:
        """Refresh the view now, however long the directory takes to answer."""
        while True:
            try:
                return await self.refresh()
            except DirectoryError as error:
                log.warning("view not refreshed error=%s", error)
                await asyncio.sleep(RETRY_S)

    async def look_again(self) -> None:
        """Refresh the view now; the old one stays when the directory does not answer soon.

        Who asks while somebody looks gets the next look, with all others who do: of a crowd that
        has lost the same peer, not everybody asks the directory.
        """
        asked = self._looks
        async with self._looking:
            if self._looked > asked:
                return
            self._looks = number = self._looks + 1
            with contextlib.suppress(DirectoryError, TimeoutError):
                async with asyncio.timeout(LOOK_TIMEOUT_S):
                    await self.refresh()
            self._looked = number

    async def appears(self, peer_id: str) -> str | None:
        """Return where a peer can be dialled; wait a little if the view does not show it yet.

        Who names it has heard of it already, from where this node will hear of it.
        """
        await self.look_again()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(APPEARS_S):
                while self.address_of(peer_id) is None:
                    self._seen.clear()
                    await self._seen.wait()
        return self.address_of(peer_id)

    async def keep_fresh(self) -> None:
        """Refresh the view forever."""
        while True:
            try:
                await self.refresh(PATIENCE_S)
            except DirectoryError as error:
                # The old view goes on to serve, less what has expired.
                self.view = View(self.view.peers, self._clock.wall())
                log.warning("view not refreshed error=%s", error)
                await asyncio.sleep(RETRY_S)

    def _remember(self) -> None:
        """Keep on disk whom this node has seen: doors for a swarm whose bootstraps are gone."""
        now = self._clock.wall()
        others = [peer.address for peer in self.view.peers if peer.peer_id != self.own_id]
        known = set(others) <= self._remembered.grpc.keys()
        if not others or now - self._remember_at < REMEMBER_S[known]:
            return
        self._remember_at = now
        self._remembered = self._remembered.seen(now, others)
        try:
            self._remembered.save(self._state_dir)
        except ConfigError as error:
            log.warning("known peers not written error=%s", error)

    # Joining --------------------------------------------------------------------------------

    async def join(self) -> None:
        """Ask seeds and remembered peers for the directory, until every seed has answered once."""
        pause = JOIN_RETRY_S[0]
        waiting = set(self._seeds)
        doors = [*self._seeds, *(d for d in self._remembered.grpc if d not in waiting)]
        while doors:
            answers = await asyncio.gather(*map(self._join_through, doors))
            waiting.difference_update(d for d, yes in zip(doors, answers, strict=True) if yes)
            # One door is enough; but a seed that has not answered may be where others are.
            doors = sorted(waiting) if any(answers) or self.joined.is_set() else doors
            await asyncio.sleep(pause * random.uniform(0.5, 1.0) if doors else 0)
            pause = min(JOIN_RETRY_S[1], pause * 1.5)

    async def _join_through(self, door: str) -> bool:
        try:
            sent = self._clock.wall()
            reply = await self._ask(door, self.own_id)
            self._compare_clocks(door, ahead(sent, reply.wall_time_s or sent, self._clock.wall()))
            if reply.peer_id == self.own_id:
                return True
            await self._directory.join(reply.directory_addresses)
            await self.announce()
            await self.refresh()
        except (PeerError, DirectoryError, ConfigError) as error:  # an address may be none
            log.info("no answer yet address=%s error=%s", door, error)
            return False
        log.info("joined through=%s peer=%s", door, reply.peer_id[:8])
        self.joined.set()
        return True

    def _compare_clocks(self, door: str, ahead_s: float) -> None:
        """Say why nodes may not see each other: announcements are believed by the clock."""
        if abs(ahead_s) > CLOCKS_DIFFER_S:
            log.warning(
                "this machine's clock is %.1f s %s that of the node at %s: nodes whose clocks "
                "differ do not find or believe each other; set both, as by NTP",
                abs(ahead_s),
                "ahead of" if ahead_s > 0 else "behind",
                door,
            )


def _routes(view: View) -> set[tuple[str, str, int, int, NodeState, int]]:
    """What routes depend on, of a view."""
    return {(p.peer_id, p.address, p.span.start, p.span.end, p.state, p.pid) for p in view.peers}

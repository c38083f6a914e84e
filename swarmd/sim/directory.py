"""The directory of a simulated swarm: announcements that reach each observer in its own time.

Its promises are those of `swarm.directory.Directory`; its checks of time are `swarm.records`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
from collections.abc import Callable, Iterable
from dataclasses import replace

from swarmd.core.clock import Clock
from swarmd.core.errors import DirectoryError
from swarmd.core.peers import Announcement, NodeState
from swarmd.sim.timeline import Timeline
from swarmd.swarm.records import CLOCK_SKEW_S

EPOCH = 1_000_000.0
"""Wall time at the beginning."""


class Ledger:
    """What has been announced, by whomever has joined."""

    def __init__(
        self, timeline: Timeline, draw: random.Random, view_delay: tuple[float, float]
    ) -> None:
        self._timeline = timeline
        self._random = draw
        self._view_delay = view_delay
        self._held: dict[str, Announcement] = {}
        self._members: list[SimDirectory] = []
        self.at: dict[str, SimDirectory] = {}
        """By address, who can be joined."""

    def publish(self, announcement: Announcement) -> None:
        """Let every member hear of it, unless what is held lives longer."""
        held = self._held.get(announcement.peer_id)
        now = EPOCH + self._timeline.now
        if announcement.issued_at > now + CLOCK_SKEW_S or announcement.expires_at <= now:
            return  # nobody else takes it
        if held is not None and now < held.expires_at >= announcement.expires_at:
            return
        self._held[announcement.peer_id] = announcement
        for member in self._members:
            self._tell(member, announcement)

    def join(self, member: SimDirectory) -> None:
        """Let a process take part: it will hear of all, and be heard."""
        if member not in self._members:
            self._members.append(member)
            for announcement in self._held.values():
                self._tell(member, announcement)

    def appeared(self, newcomer: SimDirectory) -> None:
        """Those who have known somebody at that address will ask there again."""
        self.at[newcomer.address] = newcomer
        for other in self.at.values():
            if newcomer.address in other.known:
                seconds = self._random.uniform(1.0, 8.0)
                self._timeline.after(seconds, functools.partial(self._ask_again, other, newcomer))

    def _ask_again(self, one: SimDirectory, other: SimDirectory) -> None:
        if all(self.at.get(peer.address) is peer for peer in (one, other)):
            one.found_others()
            other.found_others()

    def leave(self, member: SimDirectory) -> None:
        """A process is gone; what it announced stays until it expires."""
        if member in self._members:
            self._members.remove(member)
        if self.at.get(member.address) is member:
            del self.at[member.address]

    def _tell(self, member: SimDirectory, announcement: Announcement) -> None:
        at = max(self._timeline.now, member.deaf_until) + self._random.uniform(*self._view_delay)
        self._timeline.at(at, functools.partial(member.hear, announcement))


class SimDirectory:
    """One process's part of the directory."""

    def __init__(
        self,
        ledger: Ledger,
        address: str,
        clock: Clock,
        timeline: Timeline,
        do: Callable[[Callable[[], None]], None],
    ) -> None:
        """`do` acts within the process, if that lives."""
        self.deaf_until = 0.0
        """Until then nothing new is heard of."""
        self.away_until = 0.0
        """Until then it does not answer: its process is being started again."""
        self.joined = False
        self.address = address
        self._ledger = ledger
        self._clock = clock
        self._timeline = timeline
        self._do = do
        self._own: Announcement | None = None
        self._held: dict[str, Announcement] = {}
        self._returned: list[Announcement] = []
        self._news = asyncio.Event()
        self.known: set[str] = set()
        """Addresses that somebody has, or had."""
        ledger.appeared(self)

    async def publish(self, announcement: Announcement) -> None:
        """Make it visible; once the directory is back, where it is away."""
        self._own = announcement
        self._publish_own()

    def _publish_own(self) -> None:
        if self._timeline.now < self.away_until:
            self._timeline.at(self.away_until, lambda: self._do(self._publish_own))
        elif self._own is not None:
            self._held[self._own.peer_id] = self._own
            self._do(self._news.set)
            if self.joined:
                self._ledger.publish(self._own)

    async def withdraw(self, peer_id: str) -> None:
        """Replace what was published by a tombstone."""
        if self._own is not None and self._own.peer_id == peer_id:
            own, later = self._own, 1e-3
            await self.publish(
                replace(
                    own,
                    state=NodeState.GONE,
                    issued_at=own.issued_at + later,
                    expires_at=own.expires_at + later,
                )
            )

    async def announcements(self, wait_s: float = 0.0) -> list[Announcement]:
        """Return what has been heard of and is valid by this machine's clock."""
        if self._timeline.now < self.away_until:
            raise DirectoryError("the directory's process is being started again")
        if wait_s and self._valid() == self._returned:
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._news.wait()
        self._returned = self._valid()
        return self._returned

    def _valid(self) -> list[Announcement]:
        now = self._clock.wall()
        return [
            a
            for a in self._held.values()
            if a.expires_at > now and a.issued_at <= now + CLOCK_SKEW_S
        ]

    async def join(self, addresses: Iterable[str]) -> None:
        """Join through others' addresses, any of which will do."""
        for address in addresses:
            self.known.add(address)  # whether it answers now or not, as hivemind's peers do
            other = self._ledger.at.get(address)
            if other is not None and other is not self:
                self.found_others()
                other.found_others()

    def found_others(self) -> None:
        """Be part of the swarm from now on."""
        if not self.joined:
            self.joined = True
            self._ledger.join(self)
            self._publish_own()

    def addresses(self) -> list[str]:
        return [self.address]

    async def close(self) -> None:
        self._ledger.leave(self)

    def hear(self, announcement: Announcement) -> None:
        """Take an announcement that has come here."""
        if self._timeline.now < self.deaf_until:
            self._timeline.at(self.deaf_until, functools.partial(self.hear, announcement))
            return
        held = self._held.get(announcement.peer_id)
        if held is None or not announcement.expires_at <= held.expires_at > self._clock.wall():
            self._held[announcement.peer_id] = announcement
            self.known.add(announcement.address)
            self._do(self._news.set)

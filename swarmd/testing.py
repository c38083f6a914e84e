"""Fakes that ship with swarmd, for tests of swarmd and of what is built on it.

No room imports this file. Each fake keeps the promises of what it stands for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from swarmd.core.clock import Clock
from swarmd.core.peers import Announcement, NodeState
from swarmd.lossy_links import LossyLinks, Weather
from swarmd.simulation import Swarm
from swarmd.toys import ToyAccount, ToyStage, toy_model, toy_oracle

__all__ = [
    "FakeClock",
    "LossyLinks",
    "MemoryDirectory",
    "Swarm",
    "ToyAccount",
    "ToyStage",
    "Weather",
    "toy_model",
    "toy_oracle",
]


class FakeClock:
    """A `Clock` that moves only when told to."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now

    def advance(self, seconds: float) -> float:
        """Move on and return the new time."""
        self.now += seconds
        return self.now


class MemoryDirectory:
    """A `Directory` within one process; what it is made from is what all nodes of a swarm share.

    `MemoryDirectory(clock)` is a new swarm; `MemoryDirectory(clock, other)` joins `other`'s.
    """

    def __init__(self, clock: Clock, other: MemoryDirectory | None = None) -> None:
        self._clock = clock
        self._held: dict[str, Announcement] = other._held if other else {}

    async def publish(self, announcement: Announcement) -> None:
        held = self._held.get(announcement.peer_id)
        if held is None or held.expires_at < announcement.expires_at:
            self._held[announcement.peer_id] = announcement

    async def withdraw(self, peer_id: str) -> None:
        held = self._held.get(peer_id)
        if held is not None:
            now = max(self._clock.wall(), held.issued_at + 1e-3)
            expires_at = held.expires_at + 1e-3
            gone = replace(held, state=NodeState.GONE, issued_at=now, expires_at=expires_at)
            self._held[peer_id] = gone

    async def announcements(self, wait_s: float = 0.0) -> list[Announcement]:
        """Does not wait: nothing happens here while somebody does."""
        now = self._clock.wall()
        return [a for a in self._held.values() if a.expires_at > now]

    async def join(self, addresses: Iterable[str]) -> None:
        """There is nobody else to join."""

    def addresses(self) -> list[str]:
        return ["memory"]

    async def close(self) -> None:
        """Nothing runs here."""

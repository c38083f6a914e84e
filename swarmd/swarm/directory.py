"""The directory as every other room sees it: publish oneself, find the others.

Two implementations: `swarm.dht.DhtDirectory`, and `swarmd.testing.MemoryDirectory`. What comes out
is a hint; `swarm.view` makes a picture of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from swarmd.core.peers import Announcement


@dataclass(slots=True)
class DirectoryStats:
    """What has become of announcements, for metrics."""

    restarts: int = 0
    """Of the directory's process."""
    sent: int = 0
    """This node's announcements that some peer has taken."""
    failed: int = 0
    """Those that could not be stored at once, as the directory was away or did not answer: that is
    done when it is back."""
    refused: int = 0
    """Those that no peer has taken."""
    records_refused: int = 0
    """Records of others that were not taken here: forged, malformed, or not of now."""


class Directory(Protocol):
    """Where nodes announce themselves. All methods may raise DirectoryError."""

    async def publish(self, announcement: Announcement) -> None:
        """Make the announcement visible; it replaces the one before and is kept until it expires.

        Never fails because the directory is away for a moment: it is stored once that is back.
        """
        ...

    async def withdraw(self, peer_id: str) -> None:
        """Replace what this node published under `peer_id` by a tombstone."""
        ...

    async def announcements(self, wait_s: float = 0.0) -> list[Announcement]:
        """Return everybody's valid announcements, tombstones (`NodeState.GONE`) among them.

        With `wait_s`, once they differ from those returned last, or after so many seconds.
        """
        ...

    async def join(self, addresses: Iterable[str]) -> None:
        """Try to join through these directory addresses too, now and in the background."""
        ...

    def addresses(self) -> list[str]:
        """Return the directory addresses under which this node's part can be joined."""
        ...

    async def close(self) -> None:
        """Leave; nothing of the directory runs afterwards."""
        ...

"""When a driver gives up waiting, tries again, or avoids a peer: one value, and the arithmetic.

The numbers are defaults; `swarmd.core.config` has those that an operator may set.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DriverPolicy:
    """Limits of a driver. Times are in seconds."""

    open_timeout: float = 1.5
    """A hop that has not answered an open by then counts as lost."""
    step_timeout: float = 20.0
    """Without an answer for so long, plus `position_timeout` for each position, all is reopened."""
    position_timeout: float = 0.1
    new_wait: float = 1.5
    """How long a session that has never run looks for peers that can be reached."""
    gap_wait: float = 30.0
    """How long a session that has run waits for a peer that holds the missing blocks."""
    gap_poll: float = 0.25
    """How often it looks."""
    admission_wait: float = 30.0
    """How long a session that has never run waits for KV."""
    repair_budget: int = 20
    """Repairs without a new token in between."""
    backoff: float = 0.05
    """Before the second repair without progress; doubles each time."""
    backoff_cap: float = 2.0
    lost_for: float = 10.0
    """How long a peer whose link broke is avoided."""
    avoid_for: float = 3.0
    """How long a peer that refused, or that others cannot reach, is avoided."""
    keep_every: float = 2.5
    """Between signs of life to the hops: a quarter of their grace."""
    window: int = 64
    """Steps under way at once."""
    replay_step: int = 256
    """One-token chunks in one replayed step."""

    def pause(self, strikes: int, jitter: float) -> float:
        """Seconds to wait before repair number `strikes` in a row. `jitter` is in [0, 1)."""
        if strikes <= 1:
            return 0.0
        return float(min(self.backoff_cap, self.backoff * 2 ** (strikes - 2)) * (1 + jitter))


class Avoided:
    """Peers that are not to be asked for some time."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def add(self, peer_id: str, until: float) -> None:
        self._until[peer_id] = max(until, self._until.get(peer_id, until))

    def at(self, now: float) -> frozenset[str]:
        """Who is to be avoided now."""
        return frozenset(peer for peer, until in self._until.items() if until > now)

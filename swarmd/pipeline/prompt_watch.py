"""Over all that a session computes before its next token: which hop is stuck with it.

Asking the hops, and going round one of them, is `driver.Driver`'s business; over tokens that come
one by one watches `watch.Watch`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from swarmd.core.frames import Polled
from swarmd.pipeline.experience import Speed


@dataclass(frozen=True, slots=True)
class PromptPolicy:
    """When a hop is stuck. Times in seconds."""

    every: float = 2.5
    """Between questions how far the hops are."""
    factor: float = 4.0
    """Stuck is a stage whose microbatch runs so many times as long as it should ..."""
    least: float = 5.0
    """... and so long at least."""
    rows: int = 1024
    """Positions that a stage may compute at once, whoever they belong to ..."""
    ones: int = 256
    """... and so many of them one by one, where outputs are replayed."""
    again: float = 10.0
    """Before the same hop is found to be stuck once more."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a hop has answered."""

    at: float
    computed: int
    busy_s: float


class PromptWatch:
    """Watches what is under way, of which the hops themselves say how far it is.

    How many sessions a stage computes before this one does not matter, nor how long that takes
    altogether: as long as microbatches end, it is busy. One that does not end is what a stage is
    stuck with. It should take what peers announce of a prompt's positions, or what earlier ones
    have taken on that hop.
    """

    def __init__(
        self,
        announced: Callable[[str], Speed],
        chunk: int,
        unknown: float,
        policy: PromptPolicy | None = None,
    ) -> None:
        """`announced` says what a peer announces of itself, `chunk` is how a prompt is cut;
        `unknown` is how long a microbatch may run where nothing tells how long it should."""
        self.policy = policy or PromptPolicy()
        self.due: float | None = None
        """When to ask."""
        self._announced = announced
        self._rows = max(self.policy.rows, chunk)
        self._ones = 0
        self._unknown = unknown
        self._seen: dict[str, _Seen] = {}
        self._longest: dict[str, float] = {}
        """By peer, the longest microbatch that has ended: its time is not more than this."""
        self._idle_since: dict[str, float] = {}
        """By peer, since when it has something of this session and computes nothing."""
        self._told_at: dict[str, float] = {}

    def begin(self, ones: int, now: float) -> None:
        """Much is under way; nothing has been computed of it yet.

        Of its steps one may have so many positions that are computed one by one.
        """
        self.due, self._ones = now + self.policy.every, ones
        self._seen.clear()
        self._idle_since.clear()

    def rest(self) -> None:
        """Tokens come one by one."""
        self.due = None

    def asked(self, now: float) -> None:
        """The hops are asked."""
        assert self.due is not None
        if now - self.due > self.policy.every:  # this node stood still, with answers unread
            self._seen.clear()
            self._idle_since.clear()
        self.due = now + self.policy.every

    def answer(self, peer_id: str, answer: Polled, now: float) -> bool:
        """A hop says how far it is; return whether it is stuck."""
        if self.due is None:
            return False
        busy_s = answer.busy_us / 1e6
        self._learn(peer_id, _Seen(now, answer.computed, busy_s))
        if answer.accepted <= answer.computed:  # nothing of this session is there to compute
            self._idle_since.pop(peer_id, None)
            return False
        if busy_s > 0:
            self._idle_since.pop(peer_id, None)
            stuck = busy_s >= self._limit(peer_id, waits=answer.waits)
        else:
            stuck = now - self._idle_since.setdefault(peer_id, now) >= self._unknown
        if not stuck or now - self._told_at.get(peer_id, -self.policy.again) < self.policy.again:
            return False
        self._told_at[peer_id] = now
        return True

    def _learn(self, peer_id: str, seen: _Seen) -> None:
        before, self._seen[peer_id] = self._seen.get(peer_id), seen
        if before is None or seen.busy_s >= seen.at - before.at:
            return  # what it computed then, it may compute yet
        if before.busy_s > 0 or seen.computed != before.computed:
            took = before.busy_s + seen.at - before.at - seen.busy_s
            self._longest[peer_id] = max(took, self._longest.get(peer_id, 0.0))

    def _limit(self, peer_id: str, *, waits: bool) -> float:
        """What a microbatch may take; one that this session `waits` for is of any size."""
        policy, speed = self.policy, self._announced(peer_id)
        ones = max(self._ones, policy.ones) if waits else self._ones
        longest = min(self._unknown, policy.factor * self._longest.get(peer_id, 0.0))
        if speed.position_s and (speed.token_s or not ones):
            should = self._rows * speed.position_s + ones * speed.token_s
            return max(policy.least, policy.factor * should, longest)
        return max(policy.least, self._unknown if waits or not longest else longest)

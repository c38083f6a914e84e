"""Over one session's tokens: how long they take, when one is late, and which hop holds it up.

Asking the hops, and going round one of them, is `driver.Driver`'s business.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from dataclasses import dataclass

from swarmd.core.frames import Polled
from swarmd.core.route import Hop, Route


@dataclass(frozen=True, slots=True)
class WatchPolicy:
    """When a token is late, and how often a session may leave a hop for that. Times in seconds."""

    factor: float = 4.0
    """Late is what takes so many times the p95 ..."""
    least: float = 0.5
    """... and so long at least."""
    at_first: float = 5.0
    """While fewer than `enough` tokens have been measured, late is what takes so long."""
    enough: int = 16
    window: int = 128
    """Tokens that are remembered."""
    switches: int = 2
    """Hops that a session leaves for being slow within `per`."""
    per: float = 60.0
    avoid_for: float = 30.0
    """How long it does not come back to one."""


class StepClock:
    """The time of a token that only decodes, less what it waited for its turn on stages."""

    def __init__(self, policy: WatchPolicy) -> None:
        self._policy = policy
        self._latest: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, seconds: float) -> None:
        """Take note of one."""
        if len(self._latest) == self._policy.window:
            self._sorted.remove(self._latest.popleft())
        self._latest.append(seconds)
        insort(self._sorted, seconds)

    @property
    def p95(self) -> float:
        """What 95 of 100 stay below; 0 if there are none."""
        return self._sorted[len(self._sorted) * 95 // 100] if self._sorted else 0.0

    @property
    def limit(self) -> float:
        """What takes longer is late."""
        policy = self._policy
        if len(self._latest) < policy.enough:
            return policy.at_first
        return max(policy.least, policy.factor * self.p95)


class Watch:
    """Watches the one token that is under way. Times are in seconds of one monotonic clock.

    Halfway to its limit the hops are asked how far they are; at the limit their answers say who is
    to blame. A hop that keeps a session waiting while it computes for others is busy, not slow, as
    long as it gets on with those.
    """

    def __init__(self, policy: WatchPolicy | None = None) -> None:
        self.policy = policy or WatchPolicy()
        self.clock = StepClock(self.policy)
        self.due: float | None = None
        """When to call `look`."""
        self._since = 0.0
        self._waited_us = 0
        self._known = 0
        self._limit = 0.0
        self._polled = False
        self._answers: dict[str, Polled] = {}
        self._left_at: deque[float] = deque()

    def begin(self, known: int, waited_us: int, now: float) -> None:
        """The step that gives the token for position `known` was sent; nothing else is on its way.

        `waited_us` is how long the session has waited for stages in all its life.
        """
        self._known, self._waited_us = known, waited_us
        self._measure(now)

    def _measure(self, now: float) -> None:
        self._since, self._limit = now, self.clock.limit
        self._polled = False
        self.due = now + self._limit / 2

    def rest(self) -> None:
        """What is under way is not one token: it says nothing about how long one takes."""
        self.due = None

    def token(self, waited_us: int, now: float) -> None:
        """The token has come."""
        if self.due is not None:
            waited = max(0, waited_us - self._waited_us) / 1e6
            self.clock.add(max(0.0, now - self._since - waited))
            self.due = None

    def look(self, now: float) -> bool:
        """Time is up; return whether to ask the hops. If not, `blamed` may know whom to leave."""
        assert self.due is not None
        late = now - self.due
        if late > self._limit / 4:
            # This node stood still itself: nobody else is to be blamed for that time.
            self._measure(now)
            return False
        if self._polled:
            self.due = now + self._limit
            self._polled = False
            return False
        self._polled = True
        self._answers.clear()
        self.due = now + self._limit / 2
        return True

    def answer(self, peer_id: str, answer: Polled) -> None:
        """A hop says how far it is."""
        self._answers[peer_id] = answer

    def blamed(self, route: Route, now: float) -> Hop | None:
        """Return the hop that holds the token up: the first that is not known to be done with it.

        None while none is to blame, or when the session has left too many hops lately.
        """
        if self.due is None or now - self._since < self._limit or not self.may_switch(now):
            return None
        for hop in route:
            answer = self._answers.get(hop.peer_id)
            if answer is not None and answer.computed >= self._known:
                continue
            return None if answer is not None and self._is_busy(answer) else hop
        return None  # all are done with it: the token is on its way, or lost

    def _is_busy(self, answer: Polled) -> bool:
        gets_on = answer.busy_us < self._limit * 1e6
        return answer.accepted >= self._known and answer.waits and gets_on

    def may_switch(self, now: float) -> bool:
        """Whether the session may leave a hop again."""
        while self._left_at and self._left_at[0] <= now - self.policy.per:
            self._left_at.popleft()
        return len(self._left_at) < self.policy.switches

    def left(self, now: float) -> None:
        """The session leaves a hop."""
        self._left_at.append(now)
        self.rest()

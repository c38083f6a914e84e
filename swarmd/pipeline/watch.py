"""Over one session's tokens: how long they take, when one is late, and which hop holds it up.

Asking the hops, and going round one of them, is `driver.Driver`'s business.
"""

from __future__ import annotations

import enum
from bisect import insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from swarmd.core.frames import Polled
from swarmd.core.route import Hop, Route
from swarmd.pipeline.experience import Experience
from swarmd.pipeline.lag import Lag


@dataclass(frozen=True, slots=True)
class WatchPolicy:
    """When a token is late, and how often a session may leave a hop for that. Times in seconds."""

    factor: float = 4.0
    """Late is what takes so many times the p95 ..."""
    least: float = 0.5
    """... and so long at least."""
    at_first: float = 5.0
    """While fewer than `enough` tokens have been measured, by this session or by others over the
    same hops, late is what takes so long, or `factor` times what slow hops announce."""
    enough: int = 16
    window: int = 128
    """Tokens that are remembered."""
    switches: int = 2
    """Hops that a session leaves for being slow within `per`."""
    per: float = 60.0
    lag_factor: float = 3.0
    """A hop lags that makes tokens take so many times their median ..."""
    lag_least: float = 0.05
    """... and so long at least ..."""
    lag_times: int = 4
    """... so many times ..."""
    lag_of: int = 10
    """... among so many tokens in a row."""
    avoid_for: float = 30.0
    """How long it does not come back to one."""


class StepClock:
    """The time of a token that only decodes, less what it waited for its turn on stages."""

    def __init__(self, policy: WatchPolicy) -> None:
        self._policy = policy
        self._latest: deque[float] = deque()
        self._sorted: list[float] = []
        self._expected = 0
        """So many of the latest have been measured by others."""
        self.announced_s = 0.0
        """What a token takes according to the hops themselves; 0: they do not say."""

    def expect(self, seconds: Sequence[float]) -> None:
        """Begin with what others have measured; each of one's own takes the place of one of it."""
        for each in seconds:
            self.add(each)
        self._expected = len(self._latest)

    def add(self, seconds: float) -> None:
        """Take note of one."""
        if self._expected or len(self._latest) == self._policy.window:
            self._sorted.remove(self._latest.popleft())
            self._expected = max(0, self._expected - 1)
        self._latest.append(seconds)
        insort(self._sorted, seconds)

    def __bool__(self) -> bool:
        return bool(self._latest)

    def limits(self) -> tuple[float, float | None]:
        """Return what takes longer than which is late, and late where it happens again and again.

        The second is None where the first is soon enough. It goes by the median, in which some late
        tokens do not show; the first by what 95 of 100 stay below.
        """
        policy, count = self._policy, len(self._latest)
        if count < policy.enough:
            return max(policy.at_first, policy.factor * self.announced_s), None
        limit = max(policy.least, policy.factor * self._sorted[count * 95 // 100])
        lag_limit = max(policy.lag_least, policy.lag_factor * self._sorted[count // 2])
        return limit, lag_limit if lag_limit + answer_time(lag_limit) < limit else None


def answer_time(lag_limit: float) -> float:
    """Return within which time all hops that are well have answered."""
    return max(0.08, lag_limit / 2)


class _Next(enum.Enum):
    """What is done when time is up."""

    ASK_OF_LAG = enum.auto()
    JUDGE_LAG = enum.auto()
    ASK = enum.auto()
    JUDGE = enum.auto()


class Watch:
    """Watches the one token that is under way. Times are in seconds of one monotonic clock.

    Halfway to its limit the hops are asked how far they are; at the limit their answers say who is
    to blame. A hop that keeps a session waiting while it computes for others is busy, not slow, as
    long as it gets on with those; so is one that has just come to the session itself. Where tokens
    are usually fast, the same is done much sooner: who holds up one token then is blamed for
    nothing, but whoever does it again and again lags.
    """

    def __init__(
        self, policy: WatchPolicy | None = None, experience: Experience | None = None
    ) -> None:
        """`experience` is shared with the other sessions of this node."""
        self.policy = policy or WatchPolicy()
        self.clock = StepClock(self.policy)
        self._experience = Experience() if experience is None else experience
        self._route: Route = ()
        self.due: float | None = None
        """When to call `look`."""
        self._since = 0.0
        self._waited_us = 0
        self._known = 0
        self._limit = 0.0
        self._next = _Next.ASK
        self._lag_limit = 0.0
        self._judges: _Next | None = None
        self._lag = Lag(self.policy.lag_times, self.policy.lag_of)
        self._answers: dict[str, Polled] = {}
        self._left_at: deque[float] = deque()

    def begin(self, known: int, waited_us: int, now: float, route: Route = ()) -> None:
        """The step that gives the token for position `known` was sent; nothing else is on its way.

        `waited_us` is how long the session has waited for stages in all its life. What its first
        token should take is what tokens of other sessions have, that went over the same hops.
        """
        self._known, self._waited_us, self._route = known, waited_us, route
        if not self.clock:
            self.clock.expect(self._experience.of(route, known, self.policy.enough, now))
            announced = (self._experience.announced(hop.peer_id) for hop in route)
            self.clock.announced_s = sum(speed.token_s for speed in announced)
        self._measure(now)

    def _measure(self, now: float) -> None:
        self._since = now
        self._limit, soon = self.clock.limits()
        if soon is None:
            self._next, self.due = _Next.ASK, now + self._limit / 2
        else:
            self._next, self._lag_limit, self.due = _Next.ASK_OF_LAG, soon, now + soon

    def rest(self) -> None:
        """What is under way is not one token: it says nothing about how long one takes."""
        self.due = None

    def token(self, waited_us: int, now: float) -> None:
        """The token has come."""
        if self.due is not None:
            waited = max(0, waited_us - self._waited_us) / 1e6
            seconds = max(0.0, now - self._since - waited)
            self.clock.add(seconds)
            self._experience.note(self._route, self._known, seconds, now)
            self.due = None
            if self._next in (_Next.ASK_OF_LAG, _Next.JUDGE_LAG):
                self._lag.note()

    def look(self, now: float) -> bool:
        """Time is up; return whether to ask the hops. If not, `blamed` may know whom to leave."""
        assert self.due is not None
        late = now - self.due
        if late > self._limit / 4:
            # This node stood still itself: nobody else is to be blamed for that time.
            self._measure(now)
            return False
        step = self._next
        if step is _Next.ASK_OF_LAG:
            self._next = _Next.JUDGE_LAG
            self.due = now + answer_time(self._lag_limit)
        elif step is _Next.JUDGE_LAG:
            self._go_on(now)
        elif step is _Next.ASK:
            self._next, self.due = _Next.JUDGE, now + self._limit / 2
        else:
            self._next, self.due = _Next.ASK, now + self._limit
        if asks := step in (_Next.ASK_OF_LAG, _Next.ASK):
            self._answers.clear()
        else:
            self._judges = step
        return asks

    def _go_on(self, now: float) -> None:
        """Who lags is judged; the limit of all tokens is yet to come."""
        self._next, self.due = _Next.ASK, max(self._since + self._limit / 2, now)

    def answer(self, peer_id: str, answer: Polled, route: Route, now: float) -> Hop | None:
        """A hop says how far it is; return one that lags, once it is known which hop that is."""
        if self.due is None:
            return None  # it was asked about something else
        self._answers[peer_id] = answer
        hop = next((hop for hop in route if not self._is_done(hop)), None)
        if self._next is not _Next.JUDGE_LAG or hop is None or hop.peer_id not in self._answers:
            return None
        self._go_on(now)
        return self._judge_lag(hop, now)

    def blamed(self, route: Route, now: float) -> Hop | None:
        """Return the hop that holds the token up: the first that is not known to be done with it.

        None while none is to blame, or when the session has left too many hops lately.
        """
        judges, self._judges = self._judges, None
        if self.due is None or judges is None:
            return None
        hop = next((hop for hop in route if not self._is_done(hop)), None)
        if hop is None:
            return None  # all are done with it: the token is on its way, or lost
        if judges is _Next.JUDGE_LAG:
            return self._judge_lag(hop, now)
        answer = self._answers.get(hop.peer_id)
        if answer is not None and self._is_busy(answer):
            return None
        return hop if self.may_switch(now) else None

    def _judge_lag(self, hop: Hop, now: float) -> Hop | None:
        """Note whether a hop that holds the token up takes long; return it if it lags."""
        answer = self._answers.get(hop.peer_id)
        self._lag.note(hop.peer_id if answer is None or self._lags(answer) else "")
        return hop if self._lag.is_of(hop.peer_id) and self.may_switch(now) else None

    def _is_done(self, hop: Hop) -> bool:
        answer = self._answers.get(hop.peer_id)
        return answer is not None and answer.computed >= self._known

    def _is_busy(self, answer: Polled) -> bool:
        limit = self._limit if answer.waits else self._limit / 4
        return answer.accepted >= self._known and answer.busy_us < limit * 1e6

    def _lags(self, answer: Polled) -> bool:
        """Whether a hop takes long for one step; not whether there were many before it."""
        limit = self._lag_limit if answer.waits else self._lag_limit / 2
        return answer.accepted >= self._known and answer.busy_us >= limit * 1e6

    def warned_of(self, peer_id: str) -> None:
        """Others find that a peer lags: it takes one late token to be sure of it here."""
        self._lag.suspect(peer_id)

    def may_switch(self, now: float) -> bool:
        """Whether the session may leave a hop again."""
        while self._left_at and self._left_at[0] <= now - self.policy.per:
            self._left_at.popleft()
        return len(self._left_at) < self.policy.switches

    def left(self, now: float) -> None:
        """The session leaves a hop."""
        self._left_at.append(now)
        self._lag.forget()
        self.rest()

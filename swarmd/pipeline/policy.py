"""When a driver gives up waiting, tries again, or avoids a peer: one value, and the arithmetic.

The numbers are defaults; `swarmd.core.config` has those that an operator may set.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from swarmd.core.errors import CapacityError, SwarmdError
from swarmd.pipeline.prompt_watch import PromptPolicy
from swarmd.pipeline.watch import WatchPolicy


@dataclass(frozen=True, slots=True)
class DriverPolicy:
    """Limits of a driver. Times are in seconds."""

    open_timeout: float = 1.5
    """A hop that has not answered an open by then counts as lost."""
    lost_patience: float = 0.25
    """How long a hop is dialled that the client says it has waited for in vain already: enough for
    one that lives, as a broken connection of the client's says little about it."""
    step_timeout: float = 20.0
    """Without an answer for so long, plus `position_timeout` for each position, all is reopened,
    unless a hop says that it works. Hops that say that they are stuck are left before that."""
    position_timeout: float = 0.1
    late: float = 0.5
    """A tick that is so much overdue says that this node stood still: answers may lie unread."""
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
    standby_retry: float = 0.25
    """Before peers are looked for again that could hold a copy of a hop's KV; doubles each time
    that there are none, unless the hop is about to leave."""
    standby_after: float = 1.0
    """After a repair, before a copy is begun that was not there before."""
    standby_lag: int = 256
    """A standby that lacks more positions than that, and gets no nearer from one sign of life to
    the next and the one after, is given up: its link cannot carry what is computed."""
    standby_rest: float = 10.0
    """Before another copy is begun on a peer whose copy was given up; doubles each time, up to 32
    times as long."""
    handoff_lag: int = 16
    """A session pauses for its handoff when no copy lacks more positions than that."""
    handoff_pause: float = 1.0
    """How long it pauses at most; then it goes on, and the copy is made anew."""
    keep_every: float = 2.5
    """Between signs of life to the hops: a quarter of their grace."""
    window: int = 64
    """Steps under way at once."""
    replay_step: int = 256
    """One-token chunks in one replayed step."""
    watch: WatchPolicy = field(default_factory=WatchPolicy)
    """When a hop is left for being slow."""
    prompt: PromptPolicy = field(default_factory=PromptPolicy)
    """When one is left for being stuck with a prompt."""

    def time_for(self, positions: int) -> float:
        """Seconds in which an answer must come when so many positions are under way."""
        return self.step_timeout + self.position_timeout * max(1, positions)

    def pause(self, strikes: int, jitter: float) -> float:
        """Seconds to wait before repair number `strikes` in a row. `jitter` is in [0, 1)."""
        if strikes <= 1:
            return 0.0
        doublings = min(strikes - 2, _MOST_DOUBLINGS)
        return float(min(self.backoff_cap, self.backoff * 2**doublings) * (1 + jitter))


_MOST_DOUBLINGS = 32
"""More than any pause is capped at; a float bears no thousand."""


class Patience:
    """How much a session has put up with since it last made progress."""

    def __init__(self, policy: DriverPolicy, jitter: float) -> None:
        self.strikes = 0
        """Faults."""
        self.stalls = 0
        """Times that nothing came."""
        self.reuse_at = 0.0
        """When peers that are avoided may be turned to again."""
        self._policy = policy
        self._jitter = jitter
        self._since: float | None = None
        self._awake_at = 0.0

    @property
    def is_spent(self) -> bool:
        """Whether there have been more faults than a session is repaired for."""
        return self.strikes > self._policy.repair_budget

    def search(self, now: float) -> None:
        """Begin to look for peers, if that has not begun yet."""
        self._since = now if self._since is None else self._since

    def awake(self, due: float | None, now: float) -> None:
        """Do not count the time in which this node stood still: it would have ticked at `due`."""
        late = now - max(due, self._awake_at) if due is not None else 0.0
        if late > self._policy.late:
            self._awake_at = now
            if self._since is not None:
                self._since += late

    def found(self) -> None:
        """All hops have agreed."""
        self._since = None

    def progress(self) -> None:
        """A token came."""
        self.strikes = self.stalls = 0

    def fault(self, now: float) -> float:
        """Count a fault; return the seconds to wait before something is done about it."""
        self.strikes += 1
        self.search(now)
        self.reuse_at = now + self._policy.pause(self.strikes + 1, self._jitter)
        return self._policy.pause(self.strikes, self._jitter)

    def is_out(self, has_run: bool, error: SwarmdError | None, now: float) -> bool:
        """Whether peers have been looked for long enough, given why they have to be."""
        limit = self._policy.new_wait
        if has_run:
            limit = self._policy.gap_wait
        elif isinstance(error, CapacityError):
            limit = self._policy.admission_wait
        return self._since is not None and now >= self._since + limit

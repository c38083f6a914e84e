"""How many sessions a stage should take into one microbatch, so that the other stages work as well.

If one stage takes all sessions at once, they all wait at the next one, and the stages compute in
turns. So the sessions fall into as many groups as steps of this stage fit into the time that a
token takes to come round. Every stage decides for itself, from what it measures; times are told.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

MAX_GROUPS = 64
_WEIGHT = 0.2
"""Of a new measurement in a moving average."""
_HOLD = 0.15
"""Share of a step for which a microbatch waits for sessions that are about to come back."""
_ROUNDS = 4
"""A session that has not come back for so many rounds does not decode any more."""


class Pace:
    """Watches decodes leave and come back. Times are in seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._left_at: OrderedDict[bytes, float] = OrderedDict()
        """When the sessions that decode here left; those that are here now among them."""
        self._waited: dict[bytes, float] = {}
        """How long those that are away had waited for stages until then."""
        self._away_s = 0.0
        """Time that a token is away, without its waiting for other stages: with fewer groups there
        would be less of that."""
        self._absent_s = 0.0
        """With it."""
        self._step_s = 0.0

    def came(self, session: bytes, waited: float, now: float) -> None:
        """A session's next decode came in, having waited so long for stages in all its life."""
        left_at, before = self._left_at.get(session), self._waited.pop(session, None)
        if left_at is not None and before is not None:
            absent = now - left_at
            away = min(absent, max(0.0, absent - max(0.0, waited - before)))
            self._absent_s = _moved(self._absent_s, absent)
            self._away_s = _moved(self._away_s, away)

    def left(self, sessions: Mapping[bytes, float], began: float, now: float) -> None:
        """A microbatch of decodes is done. `sessions` says how long each has waited in its life."""
        self._step_s = _moved(self._step_s, now - began)
        for session, waited in sessions.items():
            self._left_at[session] = now
            self._left_at.move_to_end(session)
            self._waited[session] = waited
        while self._left_at:
            oldest = next(iter(self._left_at))
            if now - self._left_at[oldest] <= _ROUNDS * (self._absent_s + self._step_s) + 1.0:
                break
            self.gone(oldest)

    def gone(self, session: bytes) -> None:
        """A session has ended."""
        self._left_at.pop(session, None)
        self._waited.pop(session, None)

    @property
    def groups(self) -> int:
        """Into how many microbatches the sessions should fall."""
        if not self._step_s:
            return 1
        return min(MAX_GROUPS, max(1, round(1 + self._away_s / self._step_s)))

    @property
    def limit(self) -> int:
        """Decodes in one microbatch at most."""
        return max(1, -(-len(self._left_at) // self.groups))

    def hold_until(self, ready: int, free_since: float, now: float) -> float:
        """Until when a microbatch of `ready` decodes should wait for more; `now` if it should not.

        `free_since` is when this stage had nothing to compute and something to wait for.
        """
        if not ready or ready >= self.limit:
            return now
        latest = free_since + _HOLD * self._step_s
        expected = (self._left_at[session] + self._absent_s for session in self._waited)
        soon = [at for at in expected if at <= latest]
        return latest if soon and latest > now else now


def _moved(average: float, value: float) -> float:
    return value if not average else (1 - _WEIGHT) * average + _WEIGHT * value

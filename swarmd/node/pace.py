"""How many sessions a stage should take into one microbatch, so that the other stages work as well.

If one stage takes all sessions at once, they all wait at the next one, and the stages compute in
turns. If it takes few, a step costs nearly as much and does less. A token that falls into one of
`g` groups comes round after `away + step(n / g)`, but not before this stage has done all groups:
`g * step(n / g)`. The stage takes the fewest groups with which the longer of the two is about as
short as it can be. Every stage decides for itself, from what it measures; times are told.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

MAX_GROUPS = 64
MIN_ROWS = 64
"""Rows of a prompt that are computed at once at least: fewer cost nearly as much."""
ROW_STEP = 16
_WEIGHT = 0.2
"""Of a new measurement in a moving average."""
_TOLERANCE = 1.03
"""How much longer than the best a round may take with fewer groups."""
_HOLD = 0.15
"""Share of a step for which a microbatch waits for sessions that are about to come back."""
_MEMORY = 0.98
_SHARE = 0.5
LAUNCHED_SHARE = 0.05
"""Of the time of a step, what grows with its sessions, as long as steps of one size say nothing."""
_ROUNDS = 4
"""A session that has not come back for so many rounds does not decode any more."""


class Pace:
    """Watches decodes leave and come back. Times are in seconds of one monotonic clock."""

    def __init__(self, *, launched: bool = False) -> None:
        """`launched`: on an accelerator, where a step takes what it takes to launch it.

        It takes that for any number of sessions, so one microbatch of all of them is worth a wait
        of nearly a step; two that take turns would each make the other wait for a whole one.
        """
        share, self._hold = (LAUNCHED_SHARE, 1.0 - LAUNCHED_SHARE) if launched else (_SHARE, _HOLD)
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
        self._cost = StepCost(share)
        self._groups: int | None = 1
        """None: to be found anew."""

    def came(self, session: bytes, waited: float, now: float) -> None:
        """A session's next decode came in, having waited so long for stages in all its life."""
        left_at, before = self._left_at.get(session), self._waited.pop(session, None)
        if left_at is not None and before is not None:
            absent = now - left_at
            away = min(absent, max(0.0, absent - max(0.0, waited - before)))
            self._absent_s = moved(self._absent_s, absent)
            self._away_s = moved(self._away_s, away)
            self._groups = None

    def left(
        self, sessions: Mapping[bytes, float], began: float, now: float, *, alone: bool = True
    ) -> None:
        """A microbatch with decodes is done. `sessions` says how long each has waited in its life.

        Not `alone`: a part of a prompt was in it as well, so its time says little about decodes.
        """
        if alone or not self._step_s:
            self._step_s = moved(self._step_s, now - began)
            self._cost.add(len(sessions), now - began)
        self._groups = None
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
        self._groups = None
        self._left_at.pop(session, None)
        self._waited.pop(session, None)

    @property
    def step_s(self) -> float:
        """How long a microbatch of decodes takes; 0 while nobody decodes here."""
        return self._cost.of(self.limit) if self._left_at else 0.0

    def cost_of(self, decodes: int) -> float:
        """How long so many decodes take."""
        return self._cost.of(decodes) if decodes else 0.0

    @property
    def groups(self) -> int:
        """Into how many microbatches the sessions should fall."""
        if self._groups is None:
            self._groups = self._best_groups(len(self._left_at))
        return self._groups

    def _best_groups(self, count: int) -> int:
        if count < 2:
            return 1
        rounds = [self._round_s(count, groups) for groups in range(1, min(MAX_GROUPS, count) + 1)]
        good = _TOLERANCE * min(rounds)
        return 1 + next(index for index, took in enumerate(rounds) if took <= good)

    def _round_s(self, count: int, groups: int) -> float:
        """How long a token takes to come round when the sessions fall into so many groups."""
        step = self._cost.of(count / groups)
        return max(self._away_s + step, groups * step)

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
        latest = free_since + self._hold * self._step_s
        expected = (self._left_at[session] + self._absent_s for session in self._waited)
        soon = [at for at in expected if at <= latest]
        return latest if soon and latest > now else now


class StepCost:
    """The time of a step as `fixed + each * sessions`, fitted to the latest ones."""

    def __init__(self, share: float = _SHARE) -> None:
        self._weight = self._sizes = self._times = 0.0
        self._squares = self._products = 0.0
        self._share = share
        """Of `each` in a step of the mean size; kept while all steps are of one size."""

    def add(self, size: int, took: float) -> None:
        """Note a step."""
        self._weight = _MEMORY * self._weight + 1
        self._sizes = _MEMORY * self._sizes + size
        self._times = _MEMORY * self._times + took
        self._squares = _MEMORY * self._squares + size * size
        self._products = _MEMORY * self._products + size * took
        size_mean, time_mean = self._sizes / self._weight, self._times / self._weight
        variance = self._squares / self._weight - size_mean**2
        if variance > 0.05 * size_mean**2:
            slope = (self._products / self._weight - size_mean * time_mean) / variance
            self._share = min(1.0, max(0.0, slope * size_mean / time_mean)) if time_mean else 0.0

    def of(self, size: float) -> float:
        """Return the seconds that a step of so many sessions should take; 0 if none is known."""
        if not self._weight:
            return 0.0
        size_mean, time_mean = self._sizes / self._weight, self._times / self._weight
        return time_mean * (1 - self._share + self._share * size / size_mean)


class ChunkBudget:
    """How much of a prompt goes into a microbatch beside decodes: about as long as they take.

    So decodes never fall below half of their speed while a prompt is computed, and the prompt is
    not held up more than it holds up others.
    """

    def __init__(self) -> None:
        self._row_s = 0.0

    def note(self, rows: int, seconds: float) -> None:
        """Note what rows of prompts have taken, decodes in the same microbatch not counted."""
        if rows >= MIN_ROWS:
            self._row_s = moved(self._row_s, max(0.0, seconds) / rows)

    def rows(self, step_s: float) -> int | None:
        """Return how many rows may go with decodes that take `step_s`; None for any number."""
        if not step_s or not self._row_s:
            return None
        return max(MIN_ROWS, int(step_s / self._row_s) // ROW_STEP * ROW_STEP)


def moved(average: float, value: float) -> float:
    """Return a moving average (0: there is none yet) after a new measurement."""
    return value if not average else (1 - _WEIGHT) * average + _WEIGHT * value

"""The replay log: what a hop computed and sent on, kept so that a successor can be fed with it.

When something is replayed is the hop table's business.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from swarmd.core.errors import SessionError
from swarmd.core.frames import Step
from swarmd.pipeline.steps import cut

ENTRY_OVERHEAD = 400
"""Bytes of Python objects per logged step, beside its payload."""


def _cost(step: Step) -> int:
    return ENTRY_OVERHEAD + (step.hidden.nbytes if step.hidden is not None else 0)


class ReplayBudget:
    """The bytes that all replay logs of a hop table may hold together."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def enforce(self, logs: Iterable[ReplayLog]) -> int:
        """Drop the oldest positions of the longest log until all fit; return how many."""
        dropped = 0
        if self.used > self.limit:
            candidates = list(logs)
            while self.used > self.limit:
                dropped += max(candidates, key=lambda log: log.nbytes).drop_oldest()
        return dropped


class ReplayLog:
    """Outputs of one session on one hop for the contiguous positions `[start, end)`."""

    def __init__(self, budget: ReplayBudget) -> None:
        self._budget = budget
        self._steps: deque[Step] = deque()
        self.start = 0
        self.end = 0
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._steps)

    def append(self, step: Step) -> None:
        """Add the output that follows the last one. Raises SessionError for any other."""
        if step.position != self.end:
            raise SessionError(f"the replay log ends at {self.end}, not at {step.position}")
        self._steps.append(step)
        self.end = step.end
        self._account(_cost(step))

    def truncate(self, length: int) -> None:
        """Forget positions at and above `length`."""
        while self._steps and self._steps[-1].end > length:
            last = self._steps.pop()
            self._account(-_cost(last))
            if last.position < length:
                kept = cut(last, last.position, length)
                self._steps.append(kept)
                self._account(_cost(kept))
        self.end = min(self.end, length)
        self.start = min(self.start, self.end)

    def since(self, position: int) -> Iterator[Step]:
        """The outputs at and above `position`, as far as they are still here."""
        for step in self._steps:
            if step.end > position:
                yield cut(step, position, step.end)

    def drop_oldest(self) -> int:
        """Forget the oldest step; return the number of its positions."""
        first = self._steps.popleft()
        self._account(-_cost(first))
        self.start = first.end
        return first.length

    def _account(self, nbytes: int) -> None:
        self.nbytes += nbytes
        self._budget.used += nbytes

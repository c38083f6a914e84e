"""The replay log: what a hop computed and sent on, kept so that a successor can be fed with it.

When something is replayed is the hop table's business.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import accumulate

from swarmd.core.errors import SessionError
from swarmd.core.frames import Step
from swarmd.pipeline.steps import cut, stack

ENTRY_OVERHEAD = 400
"""Bytes of Python objects per logged step, beside its payload."""


def _is_edge(step: Step, position: int) -> bool:
    """Whether a chunk of the step begins at that position."""
    return position in accumulate(step.chunks, initial=step.position)


class ReplayBudget:
    """The bytes that all replay logs of a hop table may hold together."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    @property
    def is_exceeded(self) -> bool:
        return self.used > self.limit

    def enforce(self, logs: Iterable[ReplayLog]) -> int:
        """Drop the oldest positions of the longest log until all fit; return how many."""
        dropped = 0
        candidates = list(logs)
        while self.is_exceeded:
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
        self._shared = 0
        """Steps that end here or before lie in memory that is counted elsewhere."""

    def __len__(self) -> int:
        return len(self._steps)

    def append(self, step: Step) -> None:
        """Add the output that follows the last one. Raises SessionError for any other."""
        if step.position != self.end:
            raise SessionError(f"the replay log ends at {self.end}, not at {step.position}")
        self._steps.append(step)
        self.end = step.end
        self._account(self._cost(step))

    def adopt(self, step: Step) -> None:
        """Add an output that another session computed: its memory is counted elsewhere."""
        self._shared = step.end
        self.append(step)

    def fork(self, other: ReplayLog, session: bytes, length: int) -> None:
        """Begin, while empty, with what another session's log holds below `length`.

        What is counted elsewhere there is so here, too.
        """
        self.start = self.end = min(other.start, length)
        self._shared = min(other._shared, length)
        for step in other._steps:
            if step.position < length:
                part = cut(step, step.position, length)
                self.append(replace(part, session=session, epoch=0, wants=()))

    def share(self, position: int) -> None:
        """Count no longer what lies below `position`: another session may use it from now on."""
        for step in self._steps:
            if step.end > position:
                break
            if step.end > self._shared and step.hidden is not None:
                self._account(-step.hidden.nbytes)
        self._shared = max(self._shared, position)

    def truncate(self, length: int) -> None:
        """Forget positions at and above `length`."""
        while self._steps and self._steps[-1].end > length:
            last = self._steps.pop()
            self._account(-self._cost(last))
            if last.position < length:
                kept = cut(last, last.position, length)
                self._steps.append(kept)
                self._account(self._cost(kept))
        self._shared = min(self._shared, length)
        self.end = min(self.end, length)
        self.start = min(self.start, self.end)

    def skip(self, position: int) -> None:
        """Forget everything, and begin at `position`: what lies below was computed elsewhere."""
        self.truncate(0)
        self.start = self.end = position

    def since(self, position: int) -> Iterator[Step]:
        """The outputs at and above `position`, as far as they are still here."""
        for step in self._steps:
            if step.end > position:
                yield cut(step, position, step.end)

    def chunk(self, start: int, end: int, *, exact: bool = False) -> Step | None:
        """The output of this chunk; None if it is not here, or was computed in other chunks.

        With `exact` it does not matter in which.
        """
        if exact:
            return self._joined(start, end)
        for step in self._steps:
            if step.position <= start and end <= step.end:
                part = cut(step, start, end)
                return part if part.chunks == (end - start,) and _is_edge(step, start) else None
        return None

    def _joined(self, start: int, end: int) -> Step | None:
        parts = [
            cut(step, start, end)
            for step in self._steps
            if step.position < end and step.end > start
        ]
        if sum(part.length for part in parts) != end - start:
            return None
        hidden = stack(part.hidden for part in parts if part.hidden is not None)
        return replace(parts[0], chunks=(end - start,), hidden=hidden)

    def drop_oldest(self) -> int:
        """Forget the oldest step; return the number of its positions."""
        first = self._steps.popleft()
        self._account(-self._cost(first))
        self.start = first.end
        return first.length

    def _cost(self, step: Step) -> int:
        counted = step.hidden is not None and step.end > self._shared
        return ENTRY_OVERHEAD + (step.hidden.nbytes if step.hidden and counted else 0)

    def _account(self, nbytes: int) -> None:
        self.nbytes += nbytes
        self._budget.used += nbytes

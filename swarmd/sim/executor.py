"""What `node.executor.Executor` does, with a toy stage: microbatches that take fake time.

Operations are taken in between microbatches, those of one session in order; of several sessions
some steps, in any order, make a microbatch, whose results come together.
"""

from __future__ import annotations

import functools
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence

from swarmd.node.compute_log import ComputeStats
from swarmd.node.executor import Result
from swarmd.pipeline import events as ev
from swarmd.sim.timeline import ProcessLoop
from swarmd.toys import ToyStage


class SimExecutor:
    """Runs one toy stage."""

    def __init__(
        self,
        stage: ToyStage,
        loop: ProcessLoop,
        draw: random.Random,
        seconds: Callable[[], float],
        failures: float,
        deliver: Callable[[Sequence[Result]], None],
        before: SimExecutor | None = None,
    ) -> None:
        """`seconds` draws how long a microbatch takes; `failures` is the chance of one."""
        self.stats: ComputeStats = before.stats if before else ComputeStats()
        self.most_queued = 0
        self.worked_at = 0.0
        """When something was computed last."""
        self._stage = stage
        self._loop = loop
        self._random = draw
        self._seconds = seconds
        self._failures = failures
        self._deliver = deliver
        self._inbox: deque[ev.Operation] = deque()
        self._lanes: OrderedDict[bytes, deque[ev.Submit | ev.Truncate | ev.Import]] = OrderedDict()
        self._broken: set[bytes] = set()
        """Sessions with a step that failed: nothing is computed for them until they are freed."""
        self._busy = False
        self._stopped = False
        self._running: tuple[float, frozenset[bytes]] | None = None

    def start(self) -> None:
        """It works whenever there is something to do."""

    def stop(self) -> None:
        """Compute nothing any more."""
        self._stopped = True

    def computing(self) -> tuple[float, frozenset[bytes]] | None:
        """Since when which sessions are computed; None while none is."""
        return self._running

    @property
    def queue_depth(self) -> int:
        return len(self._inbox) + len(self._lanes)

    def put(self, *operations: ev.Operation) -> None:
        """Queue operations."""
        if self._stopped:
            return
        self._inbox += operations
        self.most_queued = max(self.most_queued, self.queue_depth)
        if not self._busy:
            self._busy = True
            self._loop.call_soon(self._work)

    def _work(self) -> None:
        while self._inbox and not self._stopped:
            self._accept(self._inbox.popleft())
        chosen = [] if self._stopped else self._choose()
        self._busy = bool(chosen)
        self._running = None
        if chosen:
            self._running = self._loop.time(), frozenset(submit.session for submit in chosen)
            self._loop.call_later(self._seconds(), functools.partial(self._compute, chosen))

    def _accept(self, op: ev.Operation) -> None:
        if isinstance(op, ev.Drop):
            self._stage.drop(op.unit)
        elif isinstance(op, ev.Free):
            self._lanes.pop(op.session, None)
            self._broken.discard(op.session)
            self._stage.free(op.session)
        elif isinstance(op, ev.Attach):
            self._stage.attach(op.session, op.units, op.length)
        elif isinstance(op, ev.Freeze):
            self._stage.freeze(op.session, op.unit, op.start, op.end)
        elif isinstance(op, ev.Export):
            self._loop.call_soon(self._deliver, [self._stage.export(op)])
        else:
            self._lanes.setdefault(op.session, deque()).append(op)
            self._settle(op.session)

    def _settle(self, session: bytes) -> None:
        lane = self._lanes[session]
        while lane and not isinstance(op := lane[0], ev.Submit):
            lane.popleft()
            if isinstance(op, ev.Truncate):
                self._stage.truncate(session, op.length)
            else:
                self._loop.call_soon(self._deliver, [self._stage.take_in(op)])
        if not lane:
            del self._lanes[session]

    def _choose(self) -> list[ev.Submit]:
        ready = list(self._lanes)
        count = self._random.randint(1, len(ready)) if ready else 0
        chosen = []
        for session in self._random.sample(ready, count):
            submit = self._lanes[session].popleft()
            assert isinstance(submit, ev.Submit)
            chosen.append(submit)
        return chosen

    def _compute(self, submits: Sequence[ev.Submit]) -> None:
        if self._stopped:
            return
        results = [self._one(submit) for submit in submits if submit.session not in self._broken]
        self.stats.steps += len(results)
        self.worked_at = self._loop.time() if results else self.worked_at
        for submit in submits:
            if submit.session in self._lanes:
                self._settle(submit.session)
        self._work()  # with what has come until now, as the thread does
        self._deliver(results)

    def _one(self, submit: ev.Submit) -> Result:
        if self._failures and self._random.random() < self._failures:
            self._broken.add(submit.session)
            return ev.ComputeFailed(submit.session, submit.ticket, "bad luck")
        return self._stage.compute(submit)

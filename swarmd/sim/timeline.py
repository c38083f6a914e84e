"""All that is to come in a simulated swarm, in order, and the event loops of its processes.

What a process does with its loop is production code's business.
"""

from __future__ import annotations

import asyncio
import functools
from asyncio import _get_running_loop, _set_running_loop
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import Context, copy_context
from heapq import heappop, heappush
from typing import Any

MAX_EVENTS = 500_000
"""A run with more events than this goes in circles."""

Act = Callable[[], object]


class EndlessRun(AssertionError):
    """Something went on and on without getting anywhere."""


class Timeline:
    """Time, and what happens in it. What is due at one moment happens in the order of asking."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events = 0
        self._heap: list[tuple[float, int, Act]] = []
        self._count = 0

    def at(self, when: float, act: Act) -> None:
        """Let something happen at a time, after what was to happen then already."""
        self._count += 1
        now = self.now
        heappush(self._heap, (when if when > now else now, self._count, act))

    def after(self, seconds: float, act: Act) -> None:
        """Let something happen in a while."""
        self.at(self.now + seconds, act)

    def run(self, until: float, while_true: Callable[[], bool] | None = None) -> None:
        """Let everything happen that is due before `until`, while a condition holds.

        Raises EndlessRun, and what any of the events raises.
        """
        heap = self._heap
        while heap and heap[0][0] <= until and (while_true is None or while_true()):
            self.now, _, act = heappop(heap)
            self.events += 1
            if self.events > MAX_EVENTS:
                raise EndlessRun(f"{self.events} events by {self.now:.1f} s: something spins")
            act()
        if while_true is None or while_true():
            self.now = max(self.now, until)


class _Handle(asyncio.TimerHandle):
    """What is to be called on a process's loop, at once or later.

    As asyncio's, without what that does for debuggers: this is made for most events of a run.
    """

    __slots__ = ()
    _loop: ProcessLoop

    def __init__(
        self,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        loop: ProcessLoop,
        context: Context | None,
        when: float,
    ) -> None:
        self._context = copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False
        self._when = when

    def __repr__(self) -> str:
        return f"<{self._callback} at {self._when}>"

    def cancel(self) -> None:
        """It stays where it is until its time."""
        self._cancelled = True
        self._callback = self._args = None  # type: ignore[assignment]

    def fire(self) -> None:
        """Call, unless that was cancelled: now, or when the process is no longer frozen."""
        if self._cancelled:
            return
        loop = self._loop
        timeline = loop._timeline
        if timeline.now < loop.frozen_until:
            timeline.at(loop.frozen_until, self.fire)
        elif loop.alive:
            loop.act(self._call)

    def _call(self) -> None:
        try:
            self._context.run(self._callback, *self._args)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._loop.failed(error)


class ProcessLoop(asyncio.AbstractEventLoop):
    """The event loop of one simulated process.

    It stands still while the process is frozen, and for good once it is dead. What a callback
    raises ends the simulation.
    """

    def __init__(self, timeline: Timeline, check: Act = lambda: None) -> None:
        """`check` is called after every event of this process."""
        self.alive = True
        self.frozen_until = 0.0
        self._timeline = timeline
        self._check = check
        self._error: BaseException | None = None
        self._tasks: dict[asyncio.Task[Any], None] = {}
        """In the order of their beginning, in which they end: that of a set is one of addresses."""

    @property
    def frozen(self) -> bool:
        return self._timeline.now < self.frozen_until

    @contextmanager
    def running(self) -> Iterator[None]:
        """Be the running loop for a while; raise what went wrong meanwhile."""
        outer = _get_running_loop()
        _set_running_loop(self)
        try:
            yield
        finally:
            _set_running_loop(outer)
        self._raise()

    def do(self, act: Act) -> None:
        """Act now, or when the process is no longer frozen, unless it is dead."""
        if self._timeline.now < self.frozen_until:
            self._timeline.at(self.frozen_until, functools.partial(self.do, act))
            return
        if self.alive:
            self.act(act)

    def act(self, act: Act) -> None:
        """Act within this process. As `running`, without its generator: time goes here."""
        outer = _get_running_loop()
        if outer is self:
            act()
        else:
            _set_running_loop(self)
            try:
                act()
            finally:
                _set_running_loop(outer)
        if self._error is not None:
            self._raise()
        self._check()

    def failed(self, error: BaseException) -> None:
        """A callback has raised this, which ends the simulation."""
        if self._error is None:
            self._error = error

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start a task that lives no longer than the process."""
        task = asyncio.Task(work, loop=self)
        self._tasks[task] = None
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._error = error

    @property
    def tasks(self) -> int:
        return len(self._tasks)

    def kill(self) -> None:
        """Nothing of this process happens any more."""
        self.alive = False
        with self.running():
            for task in list(self._tasks):
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                task.remove_done_callback(self._done)
                coroutine = task.get_coro()
                assert coroutine is not None
                coroutine.close()  # here and now, not whenever memory is collected
        self._tasks.clear()

    # What asyncio wants of a loop.

    def time(self) -> float:
        return self._timeline.now

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        timeline = self._timeline
        handle = _Handle(callback, args, self, context, timeline.now)
        timeline.at(timeline.now, handle.fire)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        handle = _Handle(callback, args, self, context, when)
        self._timeline.at(when, handle.fire)
        return handle

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self._timeline.now + delay, callback, *args, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, **rest: Any) -> asyncio.Task[Any]:
        return self.spawn(coro)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return not self.alive

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, BaseException):
            self.failed(error)

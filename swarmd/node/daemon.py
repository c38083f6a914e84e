"""The node: what `swarmd serve` runs, started, watched and ended.

Its place in the swarm is `membership`'s, what it does once it is loaded `service`'s. Here stands
only what happens when.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

import uvloop

from swarmd.core.clock import SystemClock
from swarmd.core.config import NodeConfig
from swarmd.core.errors import SwarmdError
from swarmd.engine.stage import Stage
from swarmd.node import loading, preemption, starvation
from swarmd.node.background import in_background
from swarmd.node.inference import InferenceService, Parts
from swarmd.node.life import Life
from swarmd.node.lifecycle import Event, State
from swarmd.node.loading import Progress
from swarmd.node.loop_lag import LoopLag
from swarmd.node.membership import Membership
from swarmd.node.metrics import show_metrics
from swarmd.node.metrics_door import MetricsDoor
from swarmd.node.moves import Moves
from swarmd.node.notices import Notice
from swarmd.node.ready import Ready, ready_of
from swarmd.node.server import Server
from swarmd.node.service import Service
from swarmd.node.systemd import Notifier
from swarmd.node.warming import Warming
from swarmd.swarm.identity import Identity

log = logging.getLogger(__name__)

T = TypeVar("T")

STOP_GRACE_S = 1.0


def run(
    config: NodeConfig,
    *,
    say: Callable[[Ready], None] = print,
    progress: Progress | None = None,
) -> int:
    """Run a node until it is told to stop; returns the exit code.

    `say` gets what is to be said when it serves; `progress` what loading has done. Raises
    SwarmdError when the node cannot start.
    """
    logging.basicConfig(
        level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    code: int = uvloop.run(Node(config, say, progress).main())
    return code


class Node:
    """One daemon."""

    def __init__(
        self, config: NodeConfig, say: Callable[[Ready], None], progress: Progress | None
    ) -> None:
        self._config = config
        self._say = say
        self._progress = progress
        self._life = Life(config.drain_timeout)
        self._lifecycle = self._life.lifecycle
        self._notifier = Notifier()
        self._clock = SystemClock()
        self._owned: set[asyncio.Task[Any]] = set()
        self._noticed = False
        """Whether it drains as its machine is about to go."""

    async def main(self) -> int:
        """Start, serve, drain and stop."""
        config = self._config
        preemption.check(config.preemption)
        self._identity = Identity.load_or_create(config.state_dir)
        self._server = Server(config.listen)
        try:
            async with MetricsDoor(config.metrics) as self._metrics, asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                self._catch_signals()
                await self._live()
                for task in self._owned:
                    task.cancel()
        except* SwarmdError as errors:
            raise _first(errors) from None
        finally:
            self._lifecycle.handle(Event.STOP)
        return 1 if self._life.failed else 0

    async def _live(self) -> None:
        # In the group: a model that cannot be opened ends the start at once.
        opening = self._spawn(in_background(loading.open_model, self._config, self._report))
        membership = await Membership.join(
            self._config,
            self._identity,
            self._config.announce or self._server.address,
            self._clock,
            lambda: self._lifecycle.announced,
            self._spawn,
        )
        try:
            await self._take_part(membership, opening)
        finally:
            await membership.leave(STOP_GRACE_S)
            await self._server.stop(STOP_GRACE_S)
            await membership.directory.close()

    async def _take_part(self, membership: Membership, opening: Awaitable[loading.Opened]) -> None:
        presence, notifier = membership.presence, self._notifier
        warming = Warming(presence, self._clock, self._drain, lambda: notifier.told)
        inference = InferenceService(presence, warming)
        await self._server.start(inference, membership.peering)
        membership.keep_up()
        loaded = await self._life.unless_told(self._spawn(self._load(membership, opening)))
        if loaded is None:
            log.info("stopped while loading; what was downloaded is kept for the next start")
            return
        opened, stage = loaded
        service = Service(
            self._config,
            stage,
            opened.prompts,
            membership,
            self._clock,
            self._spawn,
            self._life.fail,
            self._drain,
        )
        loader = loading.Loader(self._config, opened)
        patience = self._config.drain_timeout
        moves = Moves(loader, patience, membership, service, self._clock, self._lifecycle)
        try:
            await self._serve(service, membership, inference, moves)
        finally:
            await service.close()

    async def _load(
        self, membership: Membership, opening: Awaitable[loading.Opened]
    ) -> tuple[loading.Opened, Stage]:
        opened = await opening
        span = await membership.choose_span(opened)
        await in_background(loading.check_memory, self._config, opened, span)
        stage = await in_background(loading.load, self._config, opened, span, self._report)
        return opened, stage

    async def _serve(
        self,
        service: Service,
        membership: Membership,
        inference: InferenceService,
        moves: Moves,
    ) -> None:
        """Serve until a drain begins, then until the last session has ended or time is up."""
        presence, executor = membership.presence, service.executor
        lag = LoopLag()
        service.on_late = lag.noticed
        show_metrics(self._metrics, service.report, executor, presence, membership.directory, lag)
        await self._life.begin_to_serve(membership)
        parts = service.parts(lambda: self._life.accepts, lambda: self._life.serves)
        inference.parts = parts
        await self._server.serving(True)
        ready = ready_of(service.stage, membership)
        self._say(ready)
        self._notifier.ready(str(ready))
        self._spawn(self._notifier.keep_alive(lambda: service.is_alive))
        if membership.moves:
            self._spawn(moves.keep_watch())
            self._spawn(moves.keep_moving(self._life.fail))
        self._spawn(starvation.keep_watch(membership, service, lag))
        follow = partial(self._on_notice, parts)
        self._spawn(preemption.watch(self._config.preemption, os.environ, follow))
        await self._life.until_told()
        await self._server.serving(False)
        await self._life.depart(service, membership)

    # What ends it ---------------------------------------------------------------------------

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # Started by nohup, it outlives its terminal.
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: int) -> None:
        """The first one drains, the second one leaves; after that nothing is waited for.

        A terminal that goes away, or a session's end, often hangs up twice, or beside a SIGTERM.
        """
        if number == signal.SIGHUP and self._life.is_told:
            return
        if self._lifecycle.state is State.STOPPED:
            log.warning("ended by a signal while leaving")
            os._exit(1)
        if self._noticed and self._lifecycle.state is State.DRAINING:
            # The cloud's own shutdown comes right after its notice: that is no second request.
            self._noticed = False
            log.info("drains already, as its machine is about to go")
            return
        self._drain()

    async def _on_notice(self, parts: Parts, notice: Notice) -> bool:
        """Drain in the time that is left; advice is followed if no block goes with this node."""
        if notice.advice and not await parts.dismissal.may_go():
            return False
        parts.report.node.notices += 1
        seconds = preemption.time_left(notice, self._config.drain_timeout, self._clock)
        self._life.leave_within(seconds)
        log.warning("notice=%s seconds=%.0f", notice.what, seconds)
        if not self._life.is_told:
            self._noticed = True
            self._drain()
        return True

    def _report(self, done: int, total: int, what: str) -> None:
        """Pass progress on; called on the loading thread, which a stop ends here."""
        if self._lifecycle.state is State.STOPPED:
            raise asyncio.CancelledError("the node stopped while it was loading")
        self._notifier.loading(done, total, what)
        if self._progress is not None:
            self._progress(done, total, what)

    def _drain(self) -> None:
        """Begin to leave; the second time, leave at once."""
        self._life.drain()
        log.info("draining state=%s", self._lifecycle.state.value)
        self._notifier.stopping()

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = self._tasks.create_task(work)
        self._owned.add(task)
        task.add_done_callback(self._owned.discard)
        return task


def _first(errors: BaseExceptionGroup[SwarmdError]) -> SwarmdError:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, SwarmdError)
    return error

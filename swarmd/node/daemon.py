"""The node: everything that `swarmd serve` runs, put together, started, watched and ended.

What the parts do is theirs; here stand only who knows whom, and what happens when.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

import uvloop

from swarmd.core import options
from swarmd.core.clock import SystemClock
from swarmd.core.config import NodeConfig
from swarmd.core.errors import SwarmdError
from swarmd.core.peers import Announcement
from swarmd.core.prefix import PREFIX_UNIT
from swarmd.core.span import Span
from swarmd.engine.load import default_threads
from swarmd.engine.stage import Stage
from swarmd.node import loading
from swarmd.node.account import StageAccount
from swarmd.node.background import in_background
from swarmd.node.coordinator import Coordinator, CoordinatorLimits
from swarmd.node.describe import Description
from swarmd.node.exchange import Exchange
from swarmd.node.executor import Executor
from swarmd.node.host import StageHost
from swarmd.node.inference import InferenceService, Parts
from swarmd.node.lifecycle import Event, Lifecycle, State
from swarmd.node.loading import Progress
from swarmd.node.metrics import show_metrics
from swarmd.node.metrics_door import MetricsDoor
from swarmd.node.peering import PeerService
from swarmd.node.presence import Presence
from swarmd.node.routes import Routes
from swarmd.node.server import Server
from swarmd.node.status import StatusReport
from swarmd.node.systemd import Notifier
from swarmd.pipeline import events as ev
from swarmd.pipeline.hop import HopPolicy, HopTable, StageFacts
from swarmd.pipeline.policy import DriverPolicy
from swarmd.swarm.dht import DhtConfig, DhtDirectory
from swarmd.swarm.identity import Identity
from swarmd.swarm.placement import choose_span
from swarmd.wire.assembly_memory import AssemblyMemory
from swarmd.wire.link import LinkSettings
from swarmd.wire.links import Links

log = logging.getLogger(__name__)

T = TypeVar("T")

JOIN_WAIT_S = 10.0
"""How long a node that chooses its own span waits to see the others first."""
READY_WAIT_S = 5.0
"""How long one that is loaded does so before it says that it serves."""
SETTLE_S = 1.5
"""How long it waits to see what others chose at the same moment."""
COMPUTE_STUCK_S = 120.0
STOP_GRACE_S = 1.0


def run(
    config: NodeConfig,
    *,
    say: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> int:
    """Run a node until it is told to stop; returns the exit code.

    `say` gets the line that says that it serves; `progress` what loading has done. Raises
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
        self, config: NodeConfig, say: Callable[[str], None], progress: Progress | None
    ) -> None:
        self._config = config
        self._say = say
        self._progress = progress
        self._lifecycle = Lifecycle()
        self._notifier = Notifier()
        self._clock = SystemClock()
        self._state_changed = asyncio.Event()
        self._description: Description | None = None
        self._failed = False

    async def main(self) -> int:
        """Start, serve, drain and stop."""
        config = self._config
        self._identity = Identity.load_or_create(config.state_dir)
        self._server = Server(config.listen)
        self._address = config.announce or self._server.address
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
        return 1 if self._failed else 0

    async def _live(self) -> None:
        self._owned: set[asyncio.Task[Any]] = set()
        # In the group: a model that cannot be opened ends the start at once.
        opening = self._spawn(in_background(loading.open_model, self._config, self._report))
        await self._join_swarm()
        try:
            loaded = await self._unless_stopped(self._spawn(self._load(opening)))
            if loaded is not None:
                await self._serve(*loaded)
            else:
                log.info("stopped while loading; what was downloaded is kept for the next start")
        finally:
            await self._leave()

    async def _load(self, opening: Awaitable[loading.Opened]) -> tuple[loading.Opened, Stage]:
        opened = await opening
        span = await self._choose_span(opened)
        stage = await in_background(loading.load, self._config, opened, span, self._report)
        return opened, stage

    # Starting -------------------------------------------------------------------------------

    async def _join_swarm(self) -> None:
        """Start the directory and the door for other nodes."""
        host, port = options.split_address(self._config.dht_address)
        dht = DhtConfig(
            state_dir=self._config.state_dir,
            host=await _address_of(host),
            port=port,
            announce_host=options.split_address(self._address)[0],
        )
        self._directory = await DhtDirectory.start(dht, self._identity, self._clock)
        self._presence = Presence(
            self._identity.peer_id,
            self._directory,
            self._config.peers,
            self._config.lease,
            self._config.state_dir,
            self._clock,
            self._describe,
            self._on_view_changed,
        )
        self._exchange = Exchange(self._presence)
        self._links = Links(
            self._identity.peer_id,
            self._address,
            self._exchange,
            self._presence.address_of,
            self._spawn,
            LinkSettings(timeout=self._config.link_timeout),
            AssemblyMemory(self._config.link_memory),
        )
        self._exchange.links = self._links
        self._inference = InferenceService(self._presence)
        peering = PeerService(
            self._identity.peer_id,
            self._links,
            self._presence.directory_addresses,
            lambda: [self._address, *self._presence.peer_addresses()],
        )
        await self._server.start(self._inference, peering)
        for loop in (self._presence.join, self._presence.keep_fresh, self._presence.keep_announced):
            self._spawn(loop())

    async def _choose_span(self, opened: loading.Opened) -> Span:
        """Take the span of the configuration, or the one that the swarm needs most."""
        if self._config.blocks != "auto":
            span = Span.parse(self._config.blocks, opened.info.num_blocks)
            await self._plan(opened, span)
            return span
        await self._see_others(JOIN_WAIT_S)
        span = self._best_span(opened, None)
        while True:
            await self._plan(opened, span)
            await asyncio.sleep(SETTLE_S)
            await self._presence.refresh()
            better = self._best_span(opened, span)
            if better == span:
                return span
            log.info("span chosen anew span=%s instead_of=%s", better, span)
            span = better

    async def _see_others(self, patience: float) -> None:
        """Have a fresh view, after the first door has answered if that is soon."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._presence.joined.wait()
        await self._presence.refresh()

    def _best_span(self, opened: loading.Opened, current: Span | None) -> Span:
        info = opened.info
        return choose_span(
            self._presence.view,
            info.digest,
            info.num_blocks,
            opened.max_blocks,
            self._identity.peer_id,
            current,
        )

    async def _plan(self, opened: loading.Opened, span: Span) -> None:
        """Let others see what is being loaded here."""
        self._description = Description(
            self._identity.peer_id,
            self._address,
            opened.info,
            span,
            opened.dtype,
            self._config.device,
        )
        await self._presence.announce()

    # Serving --------------------------------------------------------------------------------

    async def _serve(self, opened: loading.Opened, stage: Stage) -> None:
        executor, host = self._start_stage(stage)
        routes = Routes(
            self._identity.peer_id,
            stage.info,
            lambda: self._presence.view,
            self._presence.look_again,
            self._clock,
        )
        coordinator = Coordinator(
            self._identity.peer_id,
            stage.info,
            self._exchange.send,
            routes,
            DriverPolicy(gap_wait=self._config.gap_wait, keep_every=self._config.orphan_grace / 4),
            CoordinatorLimits(
                self._config.max_sessions, self._chunk_size(stage), self._prefix_unit(stage)
            ),
            self._spawn,
        )
        self._exchange.open(host, coordinator, routes)
        self._host, self._coordinator = host, coordinator
        report = StatusReport(
            self._presence,
            coordinator,
            host,
            executor,
            self._exchange,
            stage.budget,
            self._drain,
        )
        show_metrics(self._metrics, report, executor, self._presence, self._directory)
        self._lifecycle.handle(Event.READY)
        await self._presence.announce()
        await self._see_others(READY_WAIT_S)
        self._inference.parts = Parts(
            lambda: self._announcement(),
            coordinator,
            routes,
            opened.prompts,
            report,
            lambda: self._lifecycle.state is State.SERVING,
        )
        await self._server.serving(True)
        line = self._ready_line(stage)
        self._say(line)
        self._notifier.ready(line)
        self._spawn(self._feed_watchdog(executor))
        try:
            await self._until_drained()
        finally:
            host.close()
            executor.stop()
            opened.prompts.close()

    def _chunk_size(self, stage: Stage) -> int:
        """Some recurrent families compute the chunks after the first row by row: one chunk then."""
        return self._config.chunk_size if stage.chunked_prefill else stage.info.max_model_len

    def _prefix_unit(self, stage: Stage) -> int:
        shares = stage.shares_prefixes and not self._config.no_prefix_cache
        return PREFIX_UNIT if shares else 0

    def _start_stage(self, stage: Stage) -> tuple[Executor, StageHost]:
        loop = asyncio.get_running_loop()

        def deliver(results: Sequence[ev.Computed | ev.ComputeFailed]) -> None:
            # The loop may be gone by the time the last microbatch is done.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(host.on_computed, results)

        def died() -> None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._fail)

        threads = self._config.threads or default_threads().count
        executor = Executor(stage, threads, deliver, died)
        account = StageAccount(stage)
        own = self._announcement()
        facts = StageFacts(
            stage.info,
            stage.span,
            pid=own.pid,
            chunk_exact=stage.chunk_exact,
            rewinds=stage.ragged,
        )
        policy = HopPolicy(
            orphan_grace=self._config.orphan_grace,
            max_sessions=self._config.max_sessions,
            replay_log_bytes=self._config.replay_memory,
            prefix_unit=self._prefix_unit(stage),
        )
        host = StageHost(HopTable(facts, account, policy), executor, self._exchange.send)
        assert self._description is not None
        self._description.loaded(stage, executor, host)
        executor.start()
        return executor, host

    def _ready_line(self, stage: Stage) -> str:
        info, view = stage.info, self._presence.view
        covered = sum(count > 0 for count in view.replicas(info.digest))
        peers = len(view.of_model(info.digest)) - 1
        budget = stage.budget.total_bytes
        per_token = stage.kv_bytes_per_token
        room = f"{budget // per_token:,} tokens" if per_token else "sessions of any length"
        return (
            f"serving {info.name} blocks {stage.span} of {info.num_blocks} at {self._address} "
            f"({str(stage.dtype).removeprefix('torch.')} on {stage.device}, "
            f"KV {_short_size(budget)} = {room}); "
            f"{peers} other {'peer' if peers == 1 else 'peers'}, "
            f"{covered} of {info.num_blocks} blocks covered"
        )

    async def _feed_watchdog(self, executor: Executor) -> None:
        """Tell systemd that loop and compute thread are alive: a stuck one stops the feeding."""
        if not self._notifier.watchdog_s:
            return
        while True:
            silent = time.monotonic() - executor.stats.alive_at
            if executor.running and silent < COMPUTE_STUCK_S:
                self._notifier.alive()
            await asyncio.sleep(self._notifier.watchdog_s / 3)

    # Ending ---------------------------------------------------------------------------------

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        """The first one drains, the second one leaves; after that nothing is waited for."""
        if self._lifecycle.state is State.STOPPED:
            log.warning("ended by a signal while leaving")
            os._exit(1)
        self._drain()

    def _report(self, done: int, total: int, what: str) -> None:
        """Pass progress on; called on the loading thread, which a stop ends here."""
        if self._lifecycle.state is State.STOPPED:
            raise asyncio.CancelledError("the node stopped while it was loading")
        if self._progress is not None:
            self._progress(done, total, what)

    def _drain(self) -> None:
        """Begin to leave; the second time, leave at once."""
        self._lifecycle.handle(Event.DRAIN)
        log.info("draining state=%s", self._lifecycle.state.value)
        self._notifier.stopping()
        self._state_changed.set()

    def _fail(self) -> None:
        """End at once, as something that the node cannot do without is gone."""
        self._failed = True
        self._lifecycle.handle(Event.FAIL)
        self._state_changed.set()

    async def _until_drained(self) -> None:
        """Serve until a drain begins, then until the last session has ended or time is up."""
        await self._state_changed.wait()
        await self._server.serving(False)
        self._host.handle(ev.Drain())
        self._presence.changed()
        deadline = time.monotonic() + self._config.drain_timeout
        while self._lifecycle.state is State.DRAINING and time.monotonic() < deadline:
            if not self._host.table.sessions and not len(self._coordinator):
                break
            await asyncio.sleep(0.05)
        self._lifecycle.handle(Event.DRAINED)

    async def _unless_stopped(self, work: asyncio.Task[T]) -> T | None:
        """Wait for work; None when the node is to stop before it is done."""
        stopped = asyncio.create_task(self._state_changed.wait())
        await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not stopped.done():
            stopped.cancel()
            return work.result()
        work.cancel()
        return None

    async def _leave(self) -> None:
        await self._presence.leave()
        await self._links.close(STOP_GRACE_S)
        await self._server.stop(STOP_GRACE_S)
        await self._directory.close()

    # Helpers --------------------------------------------------------------------------------

    def _announcement(self) -> Announcement:
        own = self._describe()
        assert own is not None
        return own

    def _describe(self) -> Announcement | None:
        if self._description is None:
            return None
        return self._description.now(self._lifecycle.announced, self._presence.coordinate)

    def _on_view_changed(self) -> None:
        self._exchange.on_view_changed()

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = self._tasks.create_task(work)
        self._owned.add(task)
        task.add_done_callback(self._owned.discard)
        return task


def _short_size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


async def _address_of(host: str) -> str:
    """Look a name up: libp2p listens on addresses only. IPv4 where there is the choice."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return str(min(found, key=lambda entry: entry[0] != socket.AF_INET)[4][0])


def _first(errors: BaseExceptionGroup[SwarmdError]) -> SwarmdError:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, SwarmdError)
    return error

"""A loaded stage at work: its compute thread, its part in others' sessions, and its own clients'.

Only who knows whom stands here. When a node serves and when it ends is `daemon`'s business.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import asdict
from typing import Any

from swarmd.core.clock import Clock
from swarmd.core.config import NodeConfig
from swarmd.core.prefix import PREFIX_UNIT
from swarmd.engine.stage import Stage
from swarmd.node.account import StageAccount
from swarmd.node.background import in_background
from swarmd.node.coordinator import Coordinator, CoordinatorLimits
from swarmd.node.dismissal import Dismissal
from swarmd.node.executor import Executor, Result
from swarmd.node.host import StageHost
from swarmd.node.inference import Parts
from swarmd.node.loading import threads_of
from swarmd.node.loop_lag import LATE_S
from swarmd.node.membership import Membership
from swarmd.node.prompts import Prompts
from swarmd.node.routes import Routes
from swarmd.node.status import StatusReport
from swarmd.pipeline import events as ev
from swarmd.pipeline.hop import HopPolicy, HopTable, KVAccount, StageFacts
from swarmd.pipeline.hop_values import longest_step
from swarmd.pipeline.policy import DriverPolicy

log = logging.getLogger(__name__)


class Service:
    """What a node does once its blocks are loaded."""

    def __init__(
        self,
        config: NodeConfig,
        stage: Stage,
        prompts: Prompts,
        membership: Membership,
        clock: Clock,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        on_death: Callable[[], None],
        start_drain: Callable[[], None],
    ) -> None:
        """`on_death` is called on the event loop when the compute thread ends by an error."""
        self.stage = stage
        self.executor: Executor
        self._host: StageHost
        self._config = config
        self._prompts = prompts
        self._membership = membership
        self._on_death = on_death
        self._start_drain = start_drain
        self._changes_stage = False
        self.on_late: Callable[[float], None] = lambda late: None
        """Called when results have waited for the loop, with the seconds if these are many."""
        self._start_stage(None)
        self._routes = self._new_routes(clock)
        self._coordinator = Coordinator(
            membership.own_id,
            stage.info,
            membership.exchange.send,
            self._routes,
            membership.exchange.knocks,
            self._driver_policy(),
            self._limits(),
            spawn,
        )
        membership.exchange.open(self._host, self._coordinator, self._routes)
        self.report = StatusReport(
            membership.presence,
            self._coordinator,
            self._host,
            self.executor,
            membership.exchange,
            stage.budget,
            self._routes,
        )

    def parts(self, accepts: Callable[[], bool], serves: Callable[[], bool]) -> Parts:
        """Return what serves clients.

        `accepts` says whether new generations may begin here, `serves` whether its blocks are
        there for them.
        """
        return Parts(
            self._membership.announcement,
            self._coordinator,
            self._routes,
            self._prompts,
            self.report,
            accepts,
            serves,
            Dismissal(self._membership, accepts, self._start_drain),
            self._config.standby,
            shares=self._prefix_unit() > 0,
        )

    @property
    def is_alive(self) -> bool:
        """Whether the compute thread runs, and is not stuck; while there is none, it is well."""
        return self._changes_stage or self.executor.is_well

    @property
    def holds_blocks(self) -> bool:
        """Whether its blocks are there: between two stages it has none."""
        return not self._changes_stage

    @property
    def is_idle(self) -> bool:
        """Whether no session runs through this node, or by it."""
        return not self._host.table.sessions and not len(self._coordinator)

    @property
    def is_empty(self) -> bool:
        """Whether no session runs through this node; it may coordinate some."""
        return not self._host.table.sessions

    @property
    def steps(self) -> int:
        """How many steps of sessions have been computed here."""
        return self.executor.stats.steps

    def drain(self) -> None:
        """Take no new sessions, and have those that run through this node move to others."""
        self._host.handle(ev.Drain())

    def hand_over(self) -> None:
        """Let other nodes go on with the sessions that this one coordinates."""
        self._coordinator.hand_over()

    def ease(self) -> None:
        """Let other nodes go on with sessions that would be quicker there."""
        self._coordinator.ease()

    def go_round(self, peers: Collection[str]) -> None:
        """Have sessions leave hops that say that they are slow."""
        self._coordinator.go_round(peers)

    def stay(self) -> None:
        """Take new sessions again."""
        self._host.handle(ev.Drain(on=False))

    async def unload(self) -> None:
        """End what still runs through this node and free the stage; coordinating goes on.

        Opens are refused until `change_stage`.
        """
        self._changes_stage = True
        self._host.handle(ev.Drain(), *(_not_here(key) for key in self._host.table.sessions))
        await self._end_executor()
        self.stage.unload()

    def change_stage(self, stage: Stage) -> None:
        """Serve other blocks from now on, after `unload`. Counters go on."""
        self._host.close()
        self.stage = stage
        self._start_stage(self._host)
        self._membership.exchange.open(self._host, self._coordinator, self._routes)
        self.report.serve_from(self._host, self.executor, stage.budget)
        self._changes_stage = False

    async def close(self) -> None:
        """End all sessions, the helpers for prompts and, when it has computed, its thread."""
        self._host.close()
        self._prompts.close()
        await self._end_executor()

    def _start_stage(self, before: StageHost | None) -> None:
        """`before` is what ran the stage that this one replaces."""
        loop, stage = asyncio.get_running_loop(), self.stage

        def deliver(results: Sequence[Result]) -> None:
            # The loop may be gone by the time the last microbatch is done, and this stage too:
            # the one that came after it counts its tickets from the beginning again.
            try:
                loop.call_soon_threadsafe(taken, results, time.monotonic())
            except RuntimeError:
                log.debug("results came after the end")

        def taken(results: Sequence[Result], since: float) -> None:
            if (late := time.monotonic() - since) >= LATE_S:
                self.on_late(late)
            host.on_computed(results)

        def died() -> None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._died, stage)

        self.executor = self._new_executor(deliver, died, self.executor if before else None)
        exchange = self._membership.exchange
        account, policy = self._new_account(), self._hop_policy()
        table = HopTable(self._facts(), account, policy, exchange.pending)
        table.polls.stage = self.executor
        if before is not None:
            for name, count in asdict(before.table.counters).items():
                setattr(table.counters, name, count)  # they go on
        self._host = host = StageHost(table, self.executor, exchange.send)
        host.on_sessions = self._membership.presence.changed
        assert self._membership.description is not None
        self._membership.description.loaded(stage, self.executor, self._host)
        self.executor.start()

    def _died(self, stage: Stage) -> None:
        """End the node, unless it serves another stage by now."""
        if stage is self.stage:
            self._on_death()

    # What a simulated node has others of -----------------------------------------------------

    def _new_executor(
        self,
        deliver: Callable[[Sequence[Result]], None],
        died: Callable[[], None],
        before: Executor | None,
    ) -> Executor:
        return Executor(self.stage, threads_of(self._config), deliver, died, before)

    async def _end_executor(self) -> None:
        await in_background(self.executor.stop)

    def _new_account(self) -> KVAccount:
        return StageAccount(self.stage)

    def _new_routes(self, clock: Clock) -> Routes:
        own_id, presence = self._membership.own_id, self._membership.presence
        info = self.stage.info
        return Routes(own_id, info, lambda: presence.view, presence.look_again, clock)

    # Limits, as the configuration and the stage give them -------------------------------------

    def _driver_policy(self) -> DriverPolicy:
        config = self._config
        return DriverPolicy(gap_wait=config.gap_wait, keep_every=config.orphan_grace / 4)

    def _limits(self) -> CoordinatorLimits:
        return CoordinatorLimits(
            self._config.max_sessions, self._chunk_size(), self._prefix_unit(), self._keep_limit()
        )

    def _facts(self) -> StageFacts:
        stage, pid = self.stage, self._membership.announcement().pid
        return StageFacts(
            stage.info, stage.span, pid=pid, chunk_exact=stage.chunk_exact, rewinds=stage.ragged
        )

    def _hop_policy(self) -> HopPolicy:
        return HopPolicy(
            orphan_grace=self._config.orphan_grace,
            max_sessions=self._config.max_sessions,
            replay_log_bytes=self._config.replay_memory,
            prefix_unit=self._prefix_unit(),
            keep_bytes=self._keep_bytes(),
            keep_limit=self._config.keep_alive_limit,
        )

    def _keep_bytes(self) -> int:
        """Not all of the budget, or agents that think would leave others no room."""
        asked, total = self._config.keep_memory, self.stage.budget.total_bytes
        return min(total // 2 if asked is None else asked, total)

    def _keep_limit(self) -> float:
        """Caches that cannot be frozen cannot be kept for several."""
        return self._config.keep_alive_limit if self.stage.shares_prefixes else 0.0

    def _chunk_size(self) -> int:
        """Some recurrent families compute the chunks after the first row by row: one chunk then."""
        if not self.stage.chunked_prefill:
            return self.stage.info.max_model_len
        asked, most = self._config.chunk_size, longest_step(self.stage.info)
        if asked > most:
            log.warning("chunks of %d positions are too large for links: %d instead", asked, most)
        return min(asked, most)

    def _prefix_unit(self) -> int:
        shares = self.stage.shares_prefixes and not self._config.no_prefix_cache
        return PREFIX_UNIT if shares else 0


def _not_here(session: bytes) -> ev.ComputeFailed:
    """What ends a session here at once, and tells its coordinator to look for another hop."""
    return ev.ComputeFailed(session, sys.maxsize, "this node goes to other blocks")

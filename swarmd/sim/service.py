"""What stands behind a simulated node instead of weights, compute thread and gRPC.

The classes of `swarmd.node` run as they are; each of these replaces only what they are built on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from swarmd.core.clock import Clock
from swarmd.core.errors import WeightsError
from swarmd.core.span import Span
from swarmd.engine.kv_cache import KVBudget
from swarmd.engine.stage import Stage
from swarmd.node.coordinator import Coordinator, CoordinatorLimits
from swarmd.node.executor import Executor, Result
from swarmd.node.host import StageHost
from swarmd.node.loading import Loader, Opened, Progress
from swarmd.node.membership import Membership
from swarmd.node.moves import Moves
from swarmd.node.prompts import Prompts
from swarmd.node.routes import Routes
from swarmd.node.service import Service
from swarmd.pipeline.hop import HopPolicy, KVAccount
from swarmd.pipeline.policy import DriverPolicy
from swarmd.sim.executor import SimExecutor
from swarmd.sim.links import SimLinks
from swarmd.sim.random_routes import RandomRoutes
from swarmd.swarm.dht import DhtDirectory
from swarmd.swarm.mover import _Plan, _Wish
from swarmd.swarm.rebalance import Reason
from swarmd.toys import ToyAccount, ToyStage
from swarmd.wire.links import Links

if TYPE_CHECKING:
    from swarmd.sim.node import Process


class SimStage(ToyStage):
    """A toy stage with what a node asks of `engine.stage.Stage`."""

    device = "toy"
    precision = "float32"
    replay_exact = True
    chunked_prefill = True

    def __init__(self, process: Process, span: Span) -> None:
        world = process.world
        super().__init__(world.model, chunk_exact=world.chunk_exact)
        self.info = world.model
        self.span = span
        self.ragged = self.shares_prefixes = world.rewinds
        self.account = ToyAccount(process.machine.kv_bytes)
        self.kv_bytes_per_token = len(span)

    @property
    def budget(self) -> KVBudget:
        return cast(KVBudget, self.account)

    def unload(self) -> None:
        """There are no weights."""


class SimLoader(Loader):
    """Makes stages, which takes a while and needs the machine's disk."""

    def __init__(self, process: Process) -> None:
        machine, nothing = process.machine, cast(Any, None)
        self._process = process
        self.opened = Opened(nothing, process.world.model, nothing, machine.room, "float32")

    async def load(self, span: Span, progress: Progress) -> Stage:
        """Raises WeightsError while the disk does not work."""
        world = self._process.world
        await asyncio.sleep(world.draw(world.loading))
        progress(1, 1, "weights")
        if not self._process.machine.disk.works:
            raise WeightsError("the disk does not work")
        return cast(Stage, SimStage(self._process, span))

    async def fits_beside(self, span: Span) -> bool:
        """Every other machine has room for two stages."""
        return self._process.machine.is_roomy

    def size_kv(self, stage: Stage) -> None:
        """The budget is that of the machine already."""


class SimMembership(Membership):
    """Sees others through a simulated directory, over simulated links."""

    def __init__(self, process: Process) -> None:
        machine = process.machine
        self._process = process
        super().__init__(
            process.config,
            machine.peer_id,
            machine.address,
            cast(DhtDirectory, process.directory),
            machine.clock,
            lambda: process.life.lifecycle.announced,
            process.loop.spawn,
            process.doors.ask,
            machine.boots,
        )

    def _new_links(self) -> Links:
        process = self._process
        self.links = SimLinks(
            process.world.network,
            self.own_id,
            self.address,
            self.exchange,
            self.presence.address_of,
            process.loop,
        )
        return cast(Links, self.links)


class SimService(Service):
    """Runs a toy stage. What it has is not private here, as what must hold is held against it."""

    def __init__(self, process: Process, stage: Stage) -> None:
        self._process = process
        super().__init__(
            process.config,
            stage,
            cast(Prompts, _NoPrompts()),
            process.membership,
            process.machine.clock,
            process.loop.spawn,
            process.life.fail,
            process.life.drain,
        )

    @property
    def host(self) -> StageHost:
        return self._host

    @property
    def coordinator(self) -> Coordinator:
        return self._coordinator

    @property
    def routes(self) -> Routes:
        return self._routes

    async def unload(self) -> None:
        self._process.world.invariants.handoffs.leaving(self._process)
        await super().unload()

    def change_stage(self, stage: Stage) -> None:
        """The machine keeps these blocks on its disk."""
        super().change_stage(stage)
        self._process.moved_to(stage.span)

    def _start_stage(self, before: StageHost | None) -> None:
        super()._start_stage(before)
        self._process.follow(self._host.table, cast(SimStage, self.stage))

    def _new_executor(
        self,
        deliver: Callable[[Sequence[Result]], None],
        died: Callable[[], None],
        before: Executor | None,
    ) -> Executor:
        process, world = self._process, self._process.world
        executor = SimExecutor(
            cast(SimStage, self.stage),
            process.loop,
            world.random,
            process.compute_seconds,
            world.climate.compute_failures,
            deliver,
            cast(SimExecutor | None, before),
        )
        executor.stats.step_ms = 1000 * sum(world.climate.compute) / 2
        return cast(Executor, executor)

    async def _end_executor(self) -> None:
        self.executor.stop()

    def _new_account(self) -> KVAccount:
        return cast(SimStage, self.stage).account

    def _new_routes(self, clock: Clock) -> Routes:
        world, presence = self._process.world, self._membership.presence
        kind = RandomRoutes if world.random_routes else Routes
        routes = kind(
            self._membership.own_id,
            world.model,
            lambda: presence.view,
            presence.look_again,
            clock,
        )
        if isinstance(routes, RandomRoutes):
            routes.random = world.random
        return routes

    def _hop_policy(self) -> HopPolicy:
        return self._process.world.hop_policy

    def _driver_policy(self) -> DriverPolicy:
        return self._process.world.driver_policy

    def _limits(self) -> CoordinatorLimits:
        machine, policy = self._process.machine, self._process.world.hop_policy
        keep_limit = policy.keep_limit if policy.keep_bytes else 0.0
        return CoordinatorLimits(64, machine.chunk_size, policy.prefix_unit, keep_limit)


class SimMoves(Moves):
    """Moves, of which more can be seen from outside."""

    @property
    def wishes(self) -> bool:
        """Whether the node wishes to go, and waits yet."""
        return isinstance(self._moving._mover._state, _Wish)

    def hurry(self, now: float) -> None:
        """Let it wait no longer than until now."""
        state = self._moving._mover._state
        assert isinstance(state, _Wish)
        self._moving._mover._state = replace(state, due=now)

    @property
    def reason(self) -> Reason:
        """Why it goes now."""
        state = self._moving._mover._state
        assert isinstance(state, _Plan)
        return state.move.reason


class _NoPrompts:
    """Clients of simulated nodes send ids."""

    def close(self) -> None:
        """Nothing runs."""

"""A simulated process: the production parts of a node, as `node.daemon` ties them together.

What they are built on is `service`'s; what its machine keeps is `machine`'s. It lives until it is
killed or has drained, and another one may be started after it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from swarmd.core.config import NodeConfig
from swarmd.core.errors import DirectoryError, SwarmdError, UsageError
from swarmd.core.span import Span
from swarmd.engine.stage import Stage
from swarmd.node.coordinator import Coordinator
from swarmd.node.dismissal import Dismissal
from swarmd.node.exchange import Exchange
from swarmd.node.life import Life
from swarmd.node.presence import Presence
from swarmd.node.routes import Routes
from swarmd.node.starvation import LOOK_S, go_round
from swarmd.pipeline.hop import HopTable
from swarmd.sim.directory import SimDirectory
from swarmd.sim.doors import Doors
from swarmd.sim.executor import SimExecutor
from swarmd.sim.links import SimLinks
from swarmd.sim.service import SimLoader, SimMembership, SimMoves, SimService, SimStage
from swarmd.sim.timeline import ProcessLoop
from swarmd.toys import ToyAccount

if TYPE_CHECKING:
    from swarmd.sim.machine import Machine

DRAIN_TIMEOUT_S = 30.0


class Process:
    """One `swarmd serve`."""

    def __init__(self, machine: Machine, founder: bool) -> None:
        world = self.world = machine.world
        self.machine = machine
        self.loop = ProcessLoop(world.timeline, self._check)  # type: ignore[abstract]
        self.doors = Doors(self)
        self.service: SimService | None = None
        """Once its blocks are loaded."""
        self.table: HopTable
        self.stage: SimStage
        self.account: ToyAccount
        self.moves: SimMoves | None = None
        self.dismissal: Dismissal | None = None
        self.open = False
        """Whether clients are served."""
        self.life = Life(DRAIN_TIMEOUT_S)
        self.config = self._config()
        self.left_behind = 0
        """Sessions that ended here as it went to other blocks."""
        self.held = 0
        """Sessions and units, when the account was last looked at."""
        self.directory: SimDirectory = SimDirectory(
            world.ledger, machine.address, machine.clock, world.timeline, self.loop.do
        )
        if founder:
            self.directory.found_others()
        with self.loop.running():
            self.membership: SimMembership = SimMembership(self)
            world.network.listen(self.membership.links)
            self.membership.keep_up()
            self.loop.spawn(self._live())

    def _config(self) -> NodeConfig:
        machine, world = self.machine, self.world
        return NodeConfig(
            model="toy",
            blocks="auto" if machine.movable else f"{machine.span}",
            peers=tuple(seed for seed in world.seeds if seed != machine.address),
            lease=world.lease,
            state_dir=machine.disk.state_dir,
        )

    # Its parts --------------------------------------------------------------------------------

    @property
    def loaded(self) -> bool:
        return self.service is not None

    @property
    def parts(self) -> SimService:
        """What a loaded stage is served by."""
        assert self.service is not None
        return self.service

    def follow(self, table: HopTable, stage: SimStage) -> None:
        """Sessions run here from now on."""
        self.table, self.stage, self.account = table, stage, stage.account

    @property
    def executor(self) -> SimExecutor:
        return cast(SimExecutor, self.parts.executor)

    @property
    def coordinator(self) -> Coordinator:
        return self.parts.coordinator

    @property
    def routes(self) -> Routes:
        return self.parts.routes

    @property
    def presence(self) -> Presence:
        return self.membership.presence

    @property
    def exchange(self) -> Exchange:
        return self.membership.exchange

    @property
    def links(self) -> SimLinks:
        return self.membership.links

    def compute_seconds(self) -> float:
        """Draw how long a microbatch takes."""
        return self.world.draw(self.world.climate.compute) * self.machine.slowness

    # Its life, as in `node.daemon` -----------------------------------------------------------

    async def _live(self) -> None:
        loader = SimLoader(self)
        stage = await self.life.unless_told(self.loop.spawn(self._load(loader)))
        if stage is not None:
            service = self.service = SimService(self, stage)
            self.moves = SimMoves(
                loader,
                DRAIN_TIMEOUT_S,
                self.membership,
                service,
                self.machine.clock,
                self.life.lifecycle,
            )
            await self._serve(service, self.moves)
            await service.close()
        await self.membership.leave(1.0)
        await self.directory.close()
        self.world.timeline.after(0.01, self._exit)

    async def _load(self, loader: SimLoader) -> Stage:
        span = await self.membership.choose_span(loader.opened)
        self.moved_to(span)
        while True:
            try:
                return await loader.load(span, lambda *_: None)
            except SwarmdError:  # its machine starts the daemon again and again
                await asyncio.sleep(1.0)

    async def _serve(self, service: SimService, moves: SimMoves) -> None:
        await self.life.begin_to_serve(self.membership)
        self.open = True
        self.dismissal = Dismissal(self.membership, lambda: self.life.accepts, self.life.drain)
        self.loop.spawn(self._watch_time(service))
        if self.membership.moves:
            self.loop.spawn(moves.keep_watch())
            self.loop.spawn(moves.keep_moving(self.life.fail))
        await self.life.until_told()
        await self.life.depart(service, self.membership)

    async def _watch_time(self, service: SimService) -> None:
        """Do as `starvation.keep_watch` does, which goes by clocks of the real machine."""
        while True:
            await asyncio.sleep(LOOK_S)
            about = self.membership.description  # another one, once it has moved
            assert about is not None
            starves = self.loop.time() < self.machine.starves_until
            about.starves = starves
            if starves:
                service.ease()
            self.presence.changed()
            go_round(self.membership, service)

    def _exit(self) -> None:
        self.machine.kill()
        if self.life.failed:  # as systemd does
            self.world.timeline.after(1.0, self.machine.boot)

    def drain(self) -> None:
        """Take SIGTERM: the second time it leaves at once."""
        self.loop.do(self.life.drain)

    def dismiss(self, *, force: bool = False) -> None:
        """Take `swarmd drain`."""
        self.loop.do(lambda: self.loop.spawn(self._dismiss(force)))

    async def _dismiss(self, force: bool) -> None:
        if self.dismissal is None:
            return  # a node that is loading just leaves
        asked = self.world.invariants.dismissals.asked(self)
        try:
            await self.dismissal.ask(force=force)
        except (UsageError, DirectoryError):
            asked.refused()
        else:
            asked.accepted()

    def moved_to(self, span: Span) -> None:
        """Other blocks are served here from now on."""
        self.machine.span = span

    @property
    def accepts(self) -> bool:
        """Whether new generations may begin here."""
        return self.open and self.life.accepts

    @property
    def serves(self) -> bool:
        """Whether its blocks take new sessions."""
        return self.open and self.life.serves

    def directory_gone(self) -> None:
        """The directory's process dies with this one."""
        self.world.ledger.leave(self.directory)

    # What must hold at every moment --------------------------------------------------------------

    def _check(self) -> None:
        if self.service is not None:
            self.world.invariants.at_every_event(self)
            self.world.invariants.dismissals.at_every_event(self)

"""A simulated node: the production parts of one, tied together as `node.daemon` and `service` do.

A `Machine` has an address, a disk and a clock; a `Process` on it lives until it is killed or has
drained, and another one may be started after it.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from swarmd.core.errors import PeerUnreachable, SwarmdError
from swarmd.core.peers import Announcement
from swarmd.core.span import Span
from swarmd.node.coordinator import Coordinator, CoordinatorLimits
from swarmd.node.exchange import Exchange
from swarmd.node.executor import Executor
from swarmd.node.host import StageHost
from swarmd.node.lifecycle import Event, Lifecycle, State
from swarmd.node.presence import Presence
from swarmd.node.requests import Generation
from swarmd.node.routes import Routes
from swarmd.pipeline import events as ev
from swarmd.pipeline.hop import HopTable, StageFacts
from swarmd.sim.directory import EPOCH, SimDirectory
from swarmd.sim.disk import Disk
from swarmd.sim.executor import SimExecutor
from swarmd.sim.network import SimLinks
from swarmd.sim.random_routes import RandomRoutes
from swarmd.sim.timeline import ProcessLoop, Timeline
from swarmd.toys import ToyAccount, ToyStage
from swarmd.v1 import peer_pb2 as pb
from swarmd.wire.links import Links

if TYPE_CHECKING:
    from swarmd.sim.client import Call
    from swarmd.sim.world import World

READY_WAIT_S = 5.0
DRAIN_TIMEOUT_S = 30.0


class SimClock:
    """A machine's clocks. Only the one on the wall can be set wrong."""

    def __init__(self, timeline: Timeline) -> None:
        self.offset = 0.0
        self._timeline = timeline

    def monotonic(self) -> float:
        return self._timeline.now

    def wall(self) -> float:
        return EPOCH + self._timeline.now + self.offset


class Machine:
    """What outlives a process: address, identity, blocks, disk and clock."""

    def __init__(self, world: World, peer_id: str, span: Span, kv_bytes: int) -> None:
        self.world = world
        self.peer_id, self.span, self.kv_bytes = peer_id, span, kv_bytes
        self.address = f"{peer_id}:7420"
        self.clock = SimClock(world.timeline)
        self.disk = Disk(world.place / peer_id)
        self.chunk_size = world.chunk_size
        self.slowness = 1.0
        """By which factor it computes slower than it should."""
        self.process: Process | None = None
        self.boots = 0
        self.lost = False
        """Whether it never comes back."""

    def boot(self, *, founder: bool = False) -> None:
        """Start a process, unless the machine is lost; without its disk, a little later."""
        if self.lost or self.alive:
            return
        if not self.disk.works:  # a node does not start without its key
            self.world.timeline.after(1.0, self.boot)
            return
        self.boots += 1
        self.process = Process(self, founder)

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.loop.alive

    @property
    def running(self) -> Process:
        """The process that lives."""
        assert self.process is not None
        return self.process

    @property
    def serves(self) -> bool:
        """Whether it lives, is awake, and takes new sessions."""
        return self.alive and self.running.accepts and not self.running.loop.frozen

    def kill(self, *, silently: bool = False) -> None:
        """End the process as `kill -9` does; silently: as a power cut does."""
        if self.alive:
            process = self.running
            process.loop.kill()
            self.world.network.died(process.links, silently=silently)
            process.directory_gone()
            for call in list(process.calls):
                call.process_died(silently=silently)


class Process:
    """One `swarmd serve`."""

    def __init__(self, machine: Machine, founder: bool) -> None:
        world = self.world = machine.world
        self.machine = machine
        self.loop = ProcessLoop(world.timeline, self._check)  # type: ignore[abstract]
        self.calls: list[Call] = []
        self.loaded = False
        self.lifecycle = Lifecycle()
        self._drain_asked = asyncio.Event()
        self.held = 0
        """Sessions and units, when the account was last looked at."""
        with self.loop.running():
            self._join(founder)
            self._load()
            for work in (
                self.presence.join,
                self.presence.keep_fresh,
                self.presence.keep_announced,
            ):
                self.loop.spawn(work())
            self.loop.spawn(self._live())

    def _join(self, founder: bool) -> None:
        machine, world = self.machine, self.world
        self.directory = SimDirectory(
            world.ledger, machine.address, machine.clock, world.timeline, self.loop.do
        )
        if founder:
            self.directory.found_others()
        seeds = [seed for seed in world.seeds if seed != machine.address]
        self.presence = Presence(
            machine.peer_id,
            self.directory,
            seeds,
            world.lease,
            machine.disk.state_dir,
            machine.clock,
            self._describe,
            lambda: self.exchange.on_view_changed(),
            self._ask,
        )
        self.exchange = Exchange(self.presence)
        self.links = SimLinks(
            world.network,
            machine.peer_id,
            machine.address,
            self.exchange,
            self.presence.address_of,
            self.loop,
        )
        self.exchange.links = cast(Links, self.links)
        world.network.listen(self.links)

    def _load(self) -> None:
        """Make the parts of a node that serves; until `_live` opens the exchange they idle."""
        machine, world = self.machine, self.world
        self.stage = ToyStage(world.model, chunk_exact=world.chunk_exact)
        self.account = ToyAccount(machine.kv_bytes)
        facts = StageFacts(
            world.model, machine.span, chunk_exact=world.chunk_exact, rewinds=world.rewinds
        )
        self.table = HopTable(facts, self.account, world.hop_policy)
        self.executor = SimExecutor(
            self.stage,
            self.loop,
            world.random,
            self._compute_seconds,
            world.climate.compute_failures,
            self._computed,
        )
        executor = cast(Executor, self.executor)
        self.host = StageHost(self.table, executor, self.exchange.send)
        self.routes = self._routes()
        self.coordinator = Coordinator(
            machine.peer_id,
            world.model,
            self.exchange.send,
            self.routes,
            self.exchange.knocks,
            world.driver_policy,
            CoordinatorLimits(64, machine.chunk_size, world.hop_policy.prefix_unit),
            self.loop.spawn,
        )

    def _routes(self) -> Routes:
        own, world, presence = self.machine.peer_id, self.world, self.presence
        kind = RandomRoutes if world.random_routes else Routes
        routes = kind(
            own, world.model, lambda: presence.view, presence.look_again, self.machine.clock
        )
        if isinstance(routes, RandomRoutes):
            routes.random = world.random
        return routes

    def _compute_seconds(self) -> float:
        return self.world.draw(self.world.climate.compute) * self.machine.slowness

    def _computed(self, results: object) -> None:
        self.host.on_computed(results)  # type: ignore[arg-type]

    def _describe(self) -> Announcement | None:
        machine, model = self.machine, self.world.model
        return Announcement(
            peer_id=machine.peer_id,
            address=machine.address,
            model=model,
            span=machine.span,
            state=self.lifecycle.announced,
            issued_at=0.0,
            expires_at=0.0,
            pid=machine.boots,
            step_ms=1000 * sum(self.world.climate.compute) / 2 if self.loaded else 0.0,
            sessions=len(self.table.sessions),
            queue_depth=self.executor.queue_depth,
            kv_total_bytes=self.account.total,
            kv_free_bytes=max(0, self.table.free_bytes()),
            kv_bytes_per_token=len(machine.span),
            coordinate=self.presence.coordinate,
        )

    # Its life, as in `node.daemon` -----------------------------------------------------------

    async def _live(self) -> None:
        await asyncio.sleep(self.world.draw(self.world.loading))
        self.loaded = True
        if self.lifecycle.state is State.LOADING:
            self.exchange.open(self.host, self.coordinator, self.routes)
            await self._serve()
        await self._leave()

    async def _serve(self) -> None:
        self.lifecycle.handle(Event.READY)
        await self.presence.announce()
        try:
            async with asyncio.timeout(READY_WAIT_S):
                await self.presence.joined.wait()
        except TimeoutError:
            pass
        await self.presence.look_again()
        await self._drain_asked.wait()
        self.host.handle(ev.Drain())
        self.coordinator.hand_over()
        self.presence.changed()
        deadline = self.loop.time() + DRAIN_TIMEOUT_S
        while self.lifecycle.state is State.DRAINING and self.loop.time() < deadline:
            if not self.table.sessions and not len(self.coordinator):
                break
            await asyncio.sleep(0.05)
        self.lifecycle.handle(Event.DRAINED)

    async def _leave(self) -> None:
        await self.presence.leave()
        await self.links.close()
        await self.directory.close()
        self.host.close()
        self.world.timeline.after(0.01, self._exit)

    def _exit(self) -> None:
        self.machine.kill()

    def drain(self) -> None:
        """Take SIGTERM: the second time it leaves at once."""
        self.loop.do(self._drain)

    def _drain(self) -> None:
        self.lifecycle.handle(Event.DRAIN)
        self._drain_asked.set()

    @property
    def accepts(self) -> bool:
        """Whether new generations may begin here."""
        return self.loaded and self.lifecycle.state is State.SERVING

    def directory_gone(self) -> None:
        """The directory's process dies with this one."""
        self.world.ledger.leave(self.directory)

    # Its doors --------------------------------------------------------------------------------

    def take(self, call: Call, generation: Generation) -> None:
        """A client's call has come."""
        self.calls.append(call)
        task = self.loop.spawn(self._generate(call, generation))
        call.hang_up = functools.partial(self.loop.do, task.cancel)

    async def _generate(self, call: Call, generation: Generation) -> None:
        try:
            if not self.accepts:
                raise PeerUnreachable("this node is loading or draining: ask another one")
            if generation.resume is None and call.may_be_redirected:
                target = self.routes.first_hop().peer_id
                if target != self.machine.peer_id:
                    call.redirect(target)
                    return
            with self.coordinator.run(generation) as run:
                call.run = run
                async for output in run:
                    call.tell(output)
        except SwarmdError as error:
            call.fail(error)
        finally:
            if self.loop.alive:
                self.calls.remove(call)

    async def _ask(self, address: str, own_id: str) -> pb.IntroduceReply:
        """Have the node at an address introduce this one."""
        peer_id = address.partition(":")[0]
        network, timeline = self.world.network, self.world.timeline
        answer: asyncio.Future[pb.IntroduceReply] = self.loop.create_future()

        def settle(error: SwarmdError | None, reply: pb.IntroduceReply | None = None) -> None:
            if not answer.done():
                if error is None and reply is not None:
                    answer.set_result(reply)
                else:
                    answer.set_exception(error or PeerUnreachable("no answer"))

        def settle_here(error: SwarmdError | None, reply: pb.IntroduceReply | None = None) -> None:
            self.loop.do(functools.partial(settle, error, reply))

        def knock() -> None:
            other = self.world.machines[peer_id]
            if not other.alive:
                network.way(peer_id, own_id, lambda: settle_here(PeerUnreachable("refused")))
                return
            process = other.running
            process.loop.do(lambda: self._answer(process, own_id, settle_here))

        network.way(own_id, peer_id, knock)
        timeline.after(5.0, lambda: settle_here(PeerUnreachable("no answer in time")))
        return await answer

    def _answer(self, process: Process, own_id: str, settle: Callable[..., None]) -> None:
        peer_id, presence = process.machine.peer_id, process.presence
        reply = pb.IntroduceReply(
            peer_id=peer_id,
            directory_addresses=presence.directory_addresses(),
            peer_addresses=presence.peer_addresses(),
        )
        self.world.network.way(peer_id, own_id, lambda: settle(None, reply))

    # What must hold at every moment --------------------------------------------------------------

    def _check(self) -> None:
        self.world.invariants.at_every_event(self)

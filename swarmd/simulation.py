"""A swarm in one process: production hop tables and drivers, a fake clock, faults from a seed.

Stages are `swarmd.toys`; what a test expects of a run is the test's business.
"""

from __future__ import annotations

import functools
import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from swarmd.core.frames import (
    Copied,
    Failed,
    Gap,
    Keep,
    Leaving,
    Opened,
    Polled,
    SessionFrame,
    Token,
)
from swarmd.core.peers import ModelInfo
from swarmd.core.prefix import prefix_keys
from swarmd.core.route import EPOCHS_PER_ATTEMPT, Hop
from swarmd.core.sampling import SamplingParams
from swarmd.core.span import Span, missing_blocks
from swarmd.lossy_links import LossyLinks, Weather
from swarmd.pipeline.driver import Driver, DriverState, Request
from swarmd.pipeline.events import (
    Attach,
    Computed,
    ComputeFailed,
    Drain,
    DriverAction,
    DriverEvent,
    Drop,
    Emit,
    Export,
    Finished,
    Free,
    Freeze,
    HandOver,
    HopAction,
    HopEvent,
    Import,
    Lagging,
    NeedLinks,
    NeedRoute,
    PeerLags,
    PeerLost,
    Received,
    Routed,
    RouteFound,
    RouteMissing,
    RoutesChanged,
    Send,
    Start,
    Stop,
    Submit,
    Tick,
    Truncate,
)
from swarmd.pipeline.experience import Experience
from swarmd.pipeline.hop import HopPolicy, HopTable, StageFacts
from swarmd.pipeline.policy import DriverPolicy
from swarmd.sim_client import Client as Client
from swarmd.toys import ToyAccount, ToyStage


class SimNode:
    """One node: a hop table before a toy stage, and the drivers that it runs."""

    def __init__(
        self, swarm: Swarm, peer_id: str, span: Span | None, kv_bytes: int, rewinds: bool
    ) -> None:
        self.swarm, self.peer_id, self.span = swarm, peer_id, span
        self.precision = "float32"
        """What it says that it computes in: toy stages all compute the same."""
        self.alive = True
        self.died_at = float("inf")
        self.busy_until = 0.0
        self.frozen_until = 0.0
        self.stage = ToyStage(swarm.model, chunk_exact=swarm.chunk_exact)
        self.account = ToyAccount(kv_bytes)
        exact = swarm.chunk_exact
        facts = StageFacts(swarm.model, span or Span(0, 1), chunk_exact=exact, rewinds=rewinds)
        self.table = HopTable(facts, self.account, swarm.hop_policy)
        self.table.polls.stage = self
        self.drivers: dict[bytes, SimRun] = {}
        self.experience = Experience()
        self._queue: deque[HopAction] = deque()
        self.slowed = 1.0
        """How many times as long as usual it takes for everything that it computes."""
        self._began: deque[float] = deque()
        """When each of the queued actions is begun."""
        self._broken: set[bytes] = set()
        """Sessions with a step that failed: nothing is computed for them until they are freed."""

    def when_awake(self, act: Callable[[], None]) -> None:
        """Do something now, or when the node is no longer frozen, unless it is dead."""
        if self.swarm.now < self.frozen_until:
            self.swarm.at(self.frozen_until, lambda: self.when_awake(act))
        elif self.alive:
            act()

    def receive(self, src: str, frame: SessionFrame) -> None:
        """Hand a frame to the driver that awaits it, or to the hop table."""
        run = self.drivers.get(frame.session) if not isinstance(frame, Keep) else None
        if isinstance(frame, Opened | Token | Gap | Leaving | Polled):
            if run is not None:
                run.handle(Received(src, frame))
        elif run is not None and isinstance(frame, Failed | Copied):
            run.handle(Received(src, frame))
            self.handle(Received(src, frame))
        else:
            self.handle(Received(src, frame))

    def handle(self, event: HopEvent) -> None:
        """Give the table an event and carry out what it says."""
        for action in self.table.handle(event, self.swarm.now):
            if isinstance(action, Send):
                self.swarm.links.send(self.peer_id, action.peer_id, action.frame)
            else:
                self._queue.append(action)
                self._work()
        self.swarm.wake(self, self.table.next_deadline())

    def drop_prefixes(self) -> None:
        """Forget at once what is shared and not in use."""
        for action in self.table.prefixes.clear():
            assert isinstance(action, Drop)
            self.stage.drop(action.unit)

    def lost(self, peer_id: str) -> None:
        """Notice that a link is gone."""
        self.handle(PeerLost(peer_id))
        self.tell_all(PeerLost(peer_id))

    def tell_all(self, event: DriverEvent) -> None:
        for run in list(self.drivers.values()):
            run.handle(event)

    def tick(self) -> None:
        if (self.table.next_deadline() or float("inf")) <= self.swarm.now:
            self.handle(Tick())

    def computing(self) -> tuple[float, frozenset[bytes]] | None:
        """Return since when it computes what, as hop tables ask a stage."""
        if not self._queue or self._began[0] > self.swarm.now:
            return None
        return self._began[0], frozenset({getattr(self._queue[0], "session", b"")})

    def _work(self) -> None:
        """Take a time for the action that was queued; carry it out at the end of that time."""
        swarm = self.swarm
        self._began.append(max(swarm.now, self.busy_until))
        self.busy_until = self._began[-1] + self.slowed * swarm.draw(swarm.weather.compute)
        swarm.at(self.busy_until, lambda: self.when_awake(self._act))

    def _act(self) -> None:
        action = self._queue.popleft()
        self._began.popleft()
        if isinstance(action, Submit):
            if action.session not in self._broken:
                self.handle(self._compute(action))
        elif isinstance(action, Truncate):
            self.stage.truncate(action.session, action.length)
        elif isinstance(action, Free):
            self.stage.free(action.session)
            self._broken.discard(action.session)
        elif isinstance(action, Attach):
            self.stage.attach(action.session, action.units, action.length)
        elif isinstance(action, Freeze):
            self.stage.freeze(action.session, action.unit, action.start, action.end)
        elif isinstance(action, Export):
            self.handle(self.stage.export(action))
        elif isinstance(action, Import):
            self.handle(self.stage.take_in(action))
        elif isinstance(action, Drop):
            self.stage.drop(action.unit)

    def _compute(self, submit: Submit) -> Computed | ComputeFailed:
        if self.swarm.random.random() < self.swarm.weather.compute_failures:
            self._broken.add(submit.session)
            return ComputeFailed(submit.session, submit.ticket, "bad luck")
        return self.stage.compute(submit)


class SimRun:
    """A driver on a node, working for a client."""

    def __init__(self, node: SimNode, client: Client, driver: Driver) -> None:
        self.node, self.client, self.driver = node, client, driver
        node.drivers[client.request.session] = self

    def handle(self, event: DriverEvent) -> None:
        if not self.node.alive or self.done:
            return
        before = self.driver.repairs
        for action in self.driver.handle(event, self.node.swarm.now):
            self._carry_out(action)
        self.client.repairs += self.driver.repairs - before
        if not self.done:
            self.node.swarm.wake(self, self.driver.next_deadline())

    @property
    def done(self) -> bool:
        return self.driver.state is DriverState.DONE

    def tick(self) -> None:
        if (self.driver.next_deadline() or float("inf")) <= self.node.swarm.now:
            self.handle(Tick())

    def _carry_out(self, action: DriverAction) -> None:
        swarm = self.node.swarm
        if isinstance(action, Finished):
            del self.node.drivers[self.client.request.session]
        if isinstance(action, Send):
            swarm.links.send(self.node.peer_id, action.peer_id, action.frame)
        elif isinstance(action, NeedRoute):
            answer = swarm.find_route(action)
            swarm.at(swarm.now, lambda: self.handle(answer))
        elif isinstance(action, NeedLinks):
            swarm.links.reach(self, action)
        elif isinstance(action, Lagging):
            swarm.at(swarm.now, lambda: self.node.tell_all(PeerLags(action.peer_id)))
        elif self.client.run is self:
            self._tell(action)

    def _tell(self, action: DriverAction) -> None:
        if isinstance(action, Routed):
            self.client.route, self.client.standbys = action.route, action.standbys
            self.client.epoch = max(self.client.epoch, action.epoch)
        elif isinstance(action, Emit):
            self._deliver(action)
        elif isinstance(action, Finished) and action.reason == "moved":
            self._resume_elsewhere()
        elif isinstance(action, Finished):
            self.client.finished = action
            self.client.finished_at = self.node.swarm.now

    def _resume_elsewhere(self) -> None:
        """Have the client go on at some other node, as its coordinator leaves."""
        swarm = self.node.swarm
        others = [n for n in swarm.nodes.values() if n.alive and not n.table.draining]
        choice = swarm.random.choice([node.peer_id for node in others])
        self.client.resumes += bool(self.client.epoch)
        swarm.at(swarm.now, lambda: swarm.start(self.client, choice))

    def _deliver(self, action: Emit) -> None:
        client, now = self.client, self.node.swarm.now
        assert action.position == len(client.request.prompt_ids) + len(client.ids)
        client.ids.append(action.id)
        if client.last_at is not None:
            client.stall = max(client.stall, now - client.last_at)
        client.last_at = now


class Swarm:
    """Nodes, links, clients and a heap of things to come, all from one seed."""

    def __init__(
        self,
        model: ModelInfo,
        seed: int = 0,
        weather: Weather | None = None,
        hop_policy: HopPolicy | None = None,
        driver_policy: DriverPolicy | None = None,
        *,
        chunk_exact: bool = False,
    ) -> None:
        self.model = model
        self.chunk_exact = chunk_exact
        self.random = random.Random(seed)
        self.weather = weather or Weather()
        self.hop_policy = hop_policy or HopPolicy()
        self.driver_policy = driver_policy or DriverPolicy()
        self.now = 0.0
        self.view_lag = 1.0
        """How long a dead node is still in the view."""
        self.nodes: dict[str, SimNode] = {}
        self.links = LossyLinks(self)
        self._heap: list[tuple[float, int, Callable[[], object]]] = []
        self._count = 0

    def add(
        self, peer_id: str, blocks: str = "", kv_bytes: int = 1 << 20, rewinds: bool = True
    ) -> SimNode:
        """Add a node; without blocks it only coordinates."""
        span = Span.parse(blocks, self.model.num_blocks) if blocks else None
        node = self.nodes[peer_id] = SimNode(self, peer_id, span, kv_bytes, rewinds)
        return node

    def draw(self, limits: tuple[float, float]) -> float:
        return self.random.uniform(*limits)

    def at(self, when: float, act: Callable[[], object]) -> None:
        """Let something happen at a time, after what was to happen then already."""
        self._count += 1
        heapq.heappush(self._heap, (max(when, self.now), self._count, act))

    def wake(self, who: SimNode | SimRun, when: float | None) -> None:
        if when is not None:
            node = who if isinstance(who, SimNode) else who.node
            self.at(when, lambda: node.when_awake(who.tick))

    def run(self, until: float, while_true: Callable[[], bool] = lambda: True) -> None:
        """Let everything happen that is due before `until`, while a condition holds."""
        while self._heap and self._heap[0][0] <= until and while_true():
            self.now, _, act = heapq.heappop(self._heap)
            act()
        if while_true():
            self.now = max(self.now, until)

    def kill(self, peer_id: str) -> None:
        """End a node as `kill -9` does."""
        node = self.nodes[peer_id]
        node.alive, node.died_at = False, self.now
        node.drivers.clear()
        for other in self.nodes.values():
            if other.alive:
                self.links.cut(peer_id, other.peer_id)

    def freeze(self, peer_id: str, seconds: float) -> None:
        """Let a node do nothing for some time, as when its machine is suspended."""
        self.nodes[peer_id].frozen_until = self.now + seconds

    def tell_lost(self, src: str, dst: str, when: float | None = None) -> None:
        """Let a node notice, soon, that it cannot reach another one."""
        node = self.nodes[src]
        when = self.now + self.draw(self.weather.notice) if when is None else when
        self.at(when, lambda: node.when_awake(lambda: node.lost(dst)))

    def start(self, client: Client, coordinator: str) -> SimRun:
        """Begin, or go on with, a client's request at a coordinator."""
        if client.epoch:
            client.epoch += EPOCHS_PER_ATTEMPT
        request = replace(
            client.request,
            me=coordinator,
            known_ids=tuple(client.ids),
            epoch=client.epoch,
            route=client.route,
            standbys=client.standbys,
        )
        node = self.nodes[coordinator]
        driver = Driver(request, self.driver_policy, self.random.random(), node.experience)
        run = client.run = SimRun(node, client, driver)
        node.when_awake(lambda: run.handle(Start()))
        return run

    def client(
        self,
        number: int,
        prompt_ids: tuple[int, ...],
        max_tokens: int,
        sampling: SamplingParams | None = None,
        chunk_size: int = 8,
        standby: int = 0,
    ) -> Client:
        """Make a client with a request; `start` begins it."""
        session = number.to_bytes(16, "big")
        unit = self.hop_policy.prefix_unit
        keys = prefix_keys(prompt_ids, self.model.digest, chunk_size, unit=unit) if unit else ()
        return Client(
            Request(
                session=session,
                secret=session[::-1],
                model=self.model,
                me="",
                prompt_ids=prompt_ids,
                sampling=sampling or SamplingParams(),
                max_tokens=max_tokens,
                chunk_size=chunk_size,
                prefix=keys,
                prefix_unit=unit,
                standby=standby,
            )
        )

    def stop(self, client: Client, reason: str = "cancelled") -> bool:
        """Let the client's coordinator know that it left; return whether it has one."""
        run = client.run
        if run is None or not run.node.alive or run.done:
            return False
        run.node.when_awake(functools.partial(run.handle, Stop(reason)))
        return True

    def stay(self, peer_id: str) -> None:
        """Let a node that was about to leave stay, as a move that is given up does."""
        self.nodes[peer_id].handle(Drain(on=False))

    def drain(self, peer_id: str) -> None:
        """Let a node begin to leave: its sessions move to others."""
        node = self.nodes[peer_id]
        node.handle(Drain())
        node.tell_all(HandOver())

    def announce(self, peer_id: str) -> None:
        """Let everybody see a new node."""
        for node in self.nodes.values():
            node.when_awake(functools.partial(node.tell_all, RoutesChanged()))

    # Routes: at random among what the view shows, which lags behind.

    def find_route(self, need: NeedRoute) -> RouteFound | RouteMissing:
        """Answer as a router would."""
        seen = [
            node
            for node in self.nodes.values()
            if node.span and node.peer_id not in need.exclude and not self._gone(node)
        ]
        hops: list[Hop] = []
        for span, precision in zip(need.spans, need.precisions, strict=True):
            same = [node for node in seen if node.precision == precision]
            if (found := self._cover(span, same) or self._cover(span, seen)) is None:
                return RouteMissing(need.ask, self._missing(span, seen))
            hops += found
        return RouteFound(need.ask, tuple(hops))

    def _gone(self, node: SimNode) -> bool:
        return node.died_at + self.view_lag < self.now or node.table.draining

    def _cover(self, span: Span, seen: list[SimNode]) -> list[Hop] | None:
        hops: list[Hop] = []
        block = span.start
        while block < span.end:
            able = [node for node in seen if node.span and block in node.span]
            if not able:
                return None
            node = self.random.choice(able)
            assert node.span is not None
            end = min(span.end, node.span.end)
            hops.append(Hop(node.peer_id, Span(block, end), precision=node.precision))
            block = end
        return hops

    def _missing(self, span: Span, seen: list[SimNode]) -> tuple[tuple[int, int], ...]:
        gaps = missing_blocks((node.span for node in seen if node.span), self.model.num_blocks)
        return tuple(
            (max(start, span.start), min(end, span.end))
            for start, end in gaps
            if start < span.end and end > span.start
        )

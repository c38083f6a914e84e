"""What happens in a simulated world, from its first node to the last second of grace.

Misfortunes are `nemesis`'s, what must hold is `invariants`'s.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from swarmd.node.presence import APPEARS_S
from swarmd.sim.client import Client
from swarmd.sim.clientele import PLENTY, Clientele
from swarmd.sim.nemesis import STORM_S, Nemesis, Stage

if TYPE_CHECKING:
    from swarmd.sim.machine import Machine
    from swarmd.sim.world import World

FREED_IN = 2.0
"""Within so many seconds all KV is free once the clients are served."""
ATTEMPTS = 1.2
"""Per request, over a restart of everything: epochs that are begun."""


class Story:
    """The life of one world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.random = world.random
        self.clientele = Clientele(world)
        self.nemesis = Nemesis(world, self.clientele)

    def live(self) -> None:
        """The whole story."""
        world, draw = self.world, self.random
        self._build()
        world.start()
        began = world.timeline.now
        for _ in range(draw.randint(1, 7)):
            client = self.clientele.newcomer()
            world.timeline.at(began + draw.uniform(0, 2), functools.partial(client.begin))
        self.nemesis.storm()
        world.run_for(STORM_S)
        world.check_clients()
        world.run_until(lambda: False, max(0.0, world.calm_at - world.timeline.now))
        if not world.doomed:
            self._be_served_again()
            if self._restart_is_fair and draw.random() < 0.3:
                self._restart_everything()
        world.check_rest()

    # The swarm.

    def _build(self) -> None:
        world, draw = self.world, self.random
        count = draw.randint(2, min(4, world.num_blocks))
        borders = sorted(draw.sample(range(1, world.num_blocks), count - 1))
        for start, end in zip([0, *borders], [*borders, world.num_blocks], strict=True):
            stage = Stage(start, end)
            self.nemesis.stages.append(stage)
            for _ in range(2):
                self.nemesis.add(stage)
        for _ in range(world.movable):
            world.add_movable()

    # After the storm.

    def _be_served_again(self) -> None:
        """After the storm a new request is served at every node."""
        world = self.world
        # What failed is demoted for minutes; that must not keep anybody from being served.
        world.run_for(world.lease)
        serving = self._serving()
        assert serving, "nobody serves any more"
        clients = self.clientele.next_turns()
        for client in clients:
            client.begin()
        for machine in serving:
            clients.append(self.clientele.newcomer(most=16))
            clients[-1].begin(machine.peer_id)
        self._see_served(clients)
        world.run_for(FREED_IN)
        if not world.climate.replays:  # an open that comes again is one until it lapses
            world.invariants.of_closed()

    def _serving(self) -> list[Machine]:
        return [machine for machine in self.world.machines.values() if machine.serves]

    def _see_served(self, clients: list[Client]) -> None:
        self.world.run_until(lambda: all(client.ended for client in clients), 100.0)
        for client in clients:
            assert client.ended == "length", f"after the storm: {client}"
            self.world.invariants.of_client(client)

    @property
    def _restart_is_fair(self) -> bool:
        """Whether nothing but the restart is in the way of sessions."""
        world = self.world
        return world.kv_bytes == PLENTY and not world.climate.compute_failures

    def _restart_everything(self) -> None:
        """All processes are killed at once: no session is opened more often than it must be."""
        world = self.world
        clients = [self.clientele.newcomer(most=30) for _ in range(5)]
        for client in clients:
            client.max_tokens += 30
            client.begin()
        world.run_until(lambda: all(len(client.ids) >= 5 for client in clients), 60.0)
        at_work = [client for client in clients if not client.ended]
        before = world.invariants.opens
        machines = [machine for machine in world.machines.values() if machine.alive]
        blocks = [machine.span for machine in machines]
        for machine in machines:
            machine.kill()
        for machine in machines:
            machine.boot()
        self._see_served(at_work)
        world.history["restart_everything"] += 1
        slowest = world.climate.view_delay[1]
        moved = [machine.span for machine in machines] != blocks
        if slowest > APPEARS_S or (moved and slowest > world.loading[0]):
            # A hop that has not heard of the next one for so long costs an open more, and so does
            # one that serves other blocks before that is heard of.
            return
        opens, most = world.invariants.opens - before, int(ATTEMPTS * len(at_work))
        assert opens <= most, f"{len(at_work)} sessions were opened {opens} times after a restart"

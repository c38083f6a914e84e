"""Seeded misfortune: what befalls the nodes, paths, clocks, disks and clients of a world, and when.

Every block keeps a holder that lives, or gets one back in time: so every request that has begun
must come to its end. Only in a doomed world some blocks are lost for good.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from swarmd.sim.call import SILENCE
from swarmd.sim.clientele import Clientele
from swarmd.sim.forger import bring, forged

if TYPE_CHECKING:
    from swarmd.sim.machine import Machine
    from swarmd.sim.world import World

STORM_S = 6.0
"""Faults begin within so many seconds after the first client."""
BACK_S = 2.0
"""After so long a machine is started again that chose its blocks, and was the last to serve some:
those that belong there may have left on its account."""


@dataclass
class Stage:
    """Machines that all hold at least these blocks."""

    start: int
    end: int
    machines: list[Machine] = field(default_factory=list)


class Nemesis:
    """Does harm to a world."""

    def __init__(self, world: World, clientele: Clientele) -> None:
        self.world = world
        self.random = world.random
        self.clientele = clientele
        self.stages: list[Stage] = []

    def storm(self) -> None:
        """Let misfortunes begin within `STORM_S` seconds from now."""
        draw, timeline = self.random, self.world.timeline
        began = timeline.now
        self.world.calm_at = began + STORM_S
        doom = draw.random() < 0.08
        for _ in range(draw.randint(4, 16)):
            timeline.at(began + draw.uniform(0, STORM_S), self._strike)
        if doom:
            timeline.at(began + draw.uniform(0, STORM_S), self._doom)

    def add(self, stage: Stage) -> Machine:
        """Add a machine for a stage, often with more blocks than that."""
        start, end = stage.start, stage.end
        if self.random.random() < 0.4:
            start = self.random.randint(0, start)
            end = self.random.randint(end, self.world.num_blocks)
        machine = self.world.add(start, end)
        stage.machines.append(machine)
        return machine

    # Misfortunes.

    def _strike(self) -> None:
        faults = [
            *[self._kill_hop] * 4,
            *[self._break_link] * 2,
            *[self._cut] * 2,
            self._cut_one_way,
            self._kill_coordinator,
            self._freeze,
            self._fail,
            self._slow_node,
            self._slow_path,
            self._step_clock,
            self._break_disk,
            self._deafen,
            self._directory_away,
            *[self._drain] * 3,
            *[self._dismiss] * 2,
            self._join,
            self._restart,
            self._leave,
            self._vanish,
            self._desert,
            self._forge,
            *[self._lie] * 2,
        ]
        if self.world.hop_policy.keep_bytes:
            faults += [self._go_on] * 4
            faults += [self._release, self._pretend]
        if self.world.movable:
            faults += [self._hurry] * 6
            faults.append(self._gap)
        if self.world.starves:
            faults += [self._starve] * 3
        fault = self.random.choice(faults)
        if self._living() and fault():
            self.world.history[fault.__name__.strip("_")] += 1

    def _heals(self, seconds: float) -> float:
        """Note that something is whole again in so many seconds; return them."""
        self.world.calm_at = max(self.world.calm_at, self.world.timeline.now + seconds)
        return seconds

    def _living(self) -> list[Machine]:
        return [machine for machine in self.world.machines.values() if machine.alive]

    def _able(self, stage: Stage) -> list[Machine]:
        """Those of a stage that will serve it, whatever else happens now."""
        return [m for m in stage.machines if m.serves and not m.told]

    def _may_lose(self, machine: Machine) -> bool:
        """Whether every block keeps a holder without it."""
        return all(
            any(other is not machine for other in self._able(stage))
            for stage in self.stages
            if machine in stage.machines
        )

    def _hop_at_work(self) -> Machine:
        """A hop of a session that runs, if there is one."""
        hops = [hop for client in self.world.clients if not client.ended for hop in client.route]
        if hops:
            return self.world.machines[self.random.choice(hops).peer_id]
        return self.random.choice(list(self.world.machines.values()))

    def _kill_hop(self) -> bool:
        return self._kill(self._hop_at_work())

    def _kill_coordinator(self) -> bool:
        calls = [client.call for client in self.world.clients if client.call and not client.ended]
        return bool(calls) and self._kill(self.world.machines[self.random.choice(calls).peer_id])

    def _kill(self, machine: Machine) -> bool:
        """End a process; where nobody else has its blocks, another one comes in time."""
        if not machine.alive:
            return False
        if not self._may_lose(machine):
            self._boot_after(machine, self._heals(self.random.uniform(0.05, 8.0)))
        elif self.random.random() < 0.5:
            self._boot_after(machine, self._heals(self.random.uniform(0.05, 10.0)))
        elif machine.movable and self._is_last(machine):
            self._boot_after(machine, self._heals(BACK_S))
        machine.kill(silently=self.random.random() < 0.2)
        return True

    def _is_last(self, machine: Machine) -> bool:
        """Whether some block that it serves now has nobody else, whoever belongs there."""
        others = [m for m in self.world.machines.values() if m is not machine and m.serves]
        span = machine.span if machine.serves else None
        return span is not None and not all(
            any(other.span and block in other.span for other in others)
            for block in range(span.start, span.end)
        )

    def _boot_after(self, machine: Machine, seconds: float) -> None:
        self.world.timeline.after(seconds, machine.boot)
        self._heals(seconds + self.world.loading[1])

    def _restart(self) -> bool:
        """The same identity is back at once, before others have missed it."""
        machine = self.random.choice(self._living())
        machine.kill()
        self._boot_after(machine, self.random.uniform(0.0, 0.1))
        return True

    def _join(self) -> bool:
        self.world.name_living()
        if self.world.movable and self.random.random() < 0.3:
            self.world.add_movable().boot()
        else:
            self.add(self.random.choice(self.stages)).boot()
        self._heals(self.world.loading[1])
        return True

    def _drain(self) -> bool:
        able = [m for m in self._living() if m.serves and self._may_lose(m)]
        if not able:
            return False
        machine = self.random.choice(able)
        machine.running.drain()
        if self.random.random() < 0.2:  # its heirs leave, too
            self.world.timeline.after(self.random.uniform(0.05, 0.3), self._drain)
        if self.random.random() < 0.1:
            self.world.timeline.after(self.random.uniform(0, 1), machine.running.drain)
        if self.random.random() < 0.5:
            self._boot_after(machine, self.random.uniform(1.0, 10.0))
        return True

    def _dismiss(self) -> bool:
        """All holders of a stage are told to leave at about one moment, though one has to stay."""
        able = self._able(self.random.choice(self.stages))
        apart = self.random.choice([0.0, 0.5, 3.0])
        for machine in able:
            self._dismiss_after(machine, self._heals(self.random.uniform(0, apart)))
        return bool(able)

    def _dismiss_after(self, machine: Machine, seconds: float) -> None:
        machine.told = True
        self.world.timeline.after(seconds, machine.running.dismiss)
        self._back_after(machine, self._heals(seconds + self.random.uniform(4.0, 10.0)))

    def _back_after(self, machine: Machine, seconds: float) -> None:
        """Start it again once it has left: where one could not hear of the other, both may."""

        def look() -> None:
            if not machine.alive:
                self._boot_after(machine, 0.0)
            elif not machine.running.serves:
                self._back_after(machine, self._heals(1.0))
            else:
                machine.told = False  # it has had to stay

        self.world.timeline.after(seconds, look)

    def _fail(self) -> bool:
        """A node's compute thread ends: it leaves at once, and is started again."""
        process = self.random.choice(self._living()).running
        if process.loop.frozen:
            return False
        process.loop.do(process.life.fail)
        self._heals(2.0 + self.world.loading[1])
        return True

    def _hurry(self) -> bool:
        """A node that wishes to move does not wait as long as it might."""
        wishing = [m for m in self._living() if m.running.moves and m.running.moves.wishes]
        if not wishing:
            return False
        process = self.random.choice(wishing).running
        assert process.moves is not None
        process.moves.hurry(self.world.timeline.now)
        return True

    def _gap(self) -> bool:
        """Nobody who stays in place holds a stage for a while: nodes that move may fill the gap."""
        stage = self.random.choice(self.stages)
        for machine in stage.machines:
            machine.kill(silently=self.random.random() < 0.2)
            if not machine.lost:
                self._boot_after(machine, self._heals(self.random.uniform(6.0, 18.0)))
        return True

    def _freeze(self) -> bool:
        machine = self.random.choice(self._living())
        process = machine.running
        if process.loop.frozen:
            return False
        short = not self._may_lose(machine)
        seconds = self._heals(self.random.choice([0.3, 3.0] if short else [3.0, 14.0, 60.0]))
        process.loop.frozen_until = self.world.timeline.now + seconds
        self.world.network.froze(process.links)
        for call in process.doors.calls:
            call.break_after(self.world.draw(SILENCE), lambda: process.loop.frozen)
        return True

    def _slow_node(self) -> bool:
        machine = self._hop_at_work()
        machine.slowness = self.random.choice([5.0, 20.0])

        def recover() -> None:
            machine.slowness = 1.0

        self.world.timeline.after(self._heals(self.random.uniform(1, 15)), recover)
        return True

    def _starve(self) -> bool:
        """A node gets a part of its time only, and says so after a while."""
        machine, timeline = self._hop_at_work(), self.world.timeline
        seconds = self._heals(self.random.uniform(2, 15))
        until = timeline.now + seconds
        machine.slowness = self.random.choice([5.0, 20.0])

        def say_so() -> None:
            machine.starves_until = until

        def recover() -> None:
            machine.slowness = 1.0

        timeline.after(self.random.uniform(0, 2), say_so)
        timeline.after(seconds, recover)
        return True

    # Paths.

    def _pair(self) -> tuple[str, str]:
        """Two machines, mostly such as talk to each other."""
        one = self._hop_at_work().peer_id
        other = self._hop_at_work().peer_id
        if one == other or self.random.random() < 0.3:
            other = self.random.choice([peer for peer in self.world.machines if peer != one])
        return one, other

    def _break_link(self) -> bool:
        self.world.network.break_between(*self._pair())
        return True

    def _cut(self) -> bool:
        """A partition between two machines, or around one."""
        seconds = self._heals(self.random.choice([0.2, 1.0, 2.0, 5.0, 12.0]))
        one, other = self._pair()
        others = [other]
        if self.random.random() < 0.3:
            others = [peer for peer in self.world.machines if peer != one]
        for peer in others:
            self.world.network.cut(one, peer, seconds)
            self.world.network.cut(peer, one, seconds)
        return True

    def _cut_one_way(self) -> bool:
        self.world.network.cut(*self._pair(), self._heals(self.random.choice([0.5, 2.0, 6.0])))
        return True

    def _slow_path(self) -> bool:
        seconds = self._heals(self.random.uniform(1, 10))
        self.world.network.slow(*self._pair(), self.random.choice([5.0, 30.0]), seconds)
        return True

    # Clocks, disks, the directory.

    def _step_clock(self) -> bool:
        """The wall clock is set wrong for a while; some leaps are longer than a lease."""
        machine = self.random.choice(self._living())
        machine.clock.offset = self.random.choice([-2.0, 2.0, -8.0, 8.0, -60.0, 60.0, 3600.0])
        seconds = self._heals(self.random.uniform(1, 10))

        def set_right() -> None:
            machine.clock.offset = 0.0

        self.world.timeline.after(seconds, set_right)
        return True

    def _break_disk(self) -> bool:
        machine = self.random.choice(list(self.world.machines.values()))
        machine.disk.break_()
        self.world.timeline.after(self._heals(self.random.uniform(1, 15)), machine.disk.mend)
        return True

    def _deafen(self) -> bool:
        """A node hears of nothing new for a while, so that leases run out in its view."""
        machine = self.random.choice(self._living())
        seconds = self._heals(self.random.choice([3.0, 10.0, 25.0]))
        machine.running.directory.deaf_until = self.world.timeline.now + seconds
        return True

    def _directory_away(self) -> bool:
        """A node's directory process dies and comes back."""
        machine = self.random.choice(self._living())
        seconds = self._heals(self.random.uniform(0.5, 6.0))
        machine.running.directory.away_until = self.world.timeline.now + seconds
        return True

    # Clients.

    def _leave(self) -> bool:
        return self.random.choice(self.world.clients).leave((0.0, 0.2))

    def _vanish(self) -> bool:
        """A client is gone without a word."""
        return self.random.choice(self.world.clients).leave((5.0, 25.0))

    def _desert(self) -> bool:
        self.random.choice(self.world.clients).desert()
        return True

    def _go_on(self) -> bool:
        """Clients come back to what is kept of a session."""
        clients = self.clientele.next_turns()
        for client in clients:
            client.begin()
        return bool(clients)

    def _release(self) -> bool:
        """A client ends a lease early."""
        kept = [client.kept for client in self.world.clients if client.kept is not None]
        if not kept:
            return False
        chosen = self.random.choice(kept)
        machine = self.world.machines[chosen.peer_id]
        if not machine.alive or not machine.running.loaded:
            return False
        process = machine.running
        process.loop.do(lambda: process.doors.release(chosen.session, chosen.secret))
        return True

    def _lie(self) -> bool:
        """A client resumes its session, and says that its prompt was another one."""
        liars = self.clientele.liars()
        if liars:
            self.random.choice(liars).tell(self.clientele.pretence())
        return bool(liars)

    def _pretend(self) -> bool:
        """A client says at a node that does not know it what a kept session has begun with."""
        impostor = self.clientele.impostor()
        if impostor is not None:
            impostor.begin()
        return impostor is not None

    def _forge(self) -> bool:
        """A stranger that knows all but the secret meddles with a session, again and again."""
        client = self.random.choice(self.world.clients)
        if client.ended or not client.route:
            return False
        for hop in client.route:
            machine = self.world.machines[hop.peer_id]
            if machine.alive and machine.running.loaded:
                bring(machine.running, forged(self.random, client, hop))
        if client.call is not None and self.world.machines[client.call.peer_id].alive:
            frames = forged(self.random, client, client.route[0])
            bring(self.world.machines[client.call.peer_id].running, frames)
        self.world.timeline.after(self.random.uniform(0, 0.3), self._forge)
        return True

    def _doom(self) -> None:
        """Some blocks are lost for good."""
        stage = self.random.choice(self.stages)
        self.world.doomed = True
        self.world.history["doom"] += 1
        held = range(stage.start, stage.end)
        for machine in list(self.world.machines.values()):
            if machine.span is not None and any(block in machine.span for block in held):
                machine.kill()
                machine.lost = True

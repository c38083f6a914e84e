"""What outlives a simulated process: address, identity, blocks, disk and clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swarmd.core.span import Span
from swarmd.sim.directory import EPOCH
from swarmd.sim.disk import Disk
from swarmd.sim.node import Process
from swarmd.sim.timeline import Timeline

if TYPE_CHECKING:
    from swarmd.sim.world import World


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
    """One machine, with a process or without."""

    def __init__(self, world: World, peer_id: str, span: Span | None, kv_bytes: int) -> None:
        """Without a span it takes the blocks that the swarm needs most."""
        self.world = world
        self.peer_id, self.kv_bytes = peer_id, kv_bytes
        self.span = span
        """The blocks that it serves, or served last."""
        self.room = len(span) if span else 1
        """How many blocks fit it, if it chooses them."""
        self.movable = span is None
        """Whether it goes where the swarm needs it."""
        self.is_roomy = True
        """Whether blocks can be loaded beside others."""
        self.address = f"{peer_id}:7420"
        self.clock = SimClock(world.timeline)
        self.disk = Disk(world.place / peer_id)
        self.chunk_size = world.chunk_size
        self.slowness = 1.0
        """By which factor it computes slower than it should."""
        self.starves_until = 0.0
        """Until then it gets so little time that it says so itself."""
        self.process: Process | None = None
        self.boots = 0
        self.told = False
        """Whether it was told to leave: others are not to be harmed on its account."""
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
        self.told = False
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
        """Whether it lives, is awake, and takes new sessions on its blocks."""
        return self.alive and self.running.serves and not self.running.loop.frozen

    def kill(self, *, silently: bool = False) -> None:
        """End the process as `kill -9` does; silently: as a power cut does."""
        if self.alive:
            process = self.running
            process.loop.kill()
            self.world.network.died(process.membership.links, silently=silently)
            process.directory_gone()
            for call in list(process.doors.calls):
                call.process_died(silently=silently)

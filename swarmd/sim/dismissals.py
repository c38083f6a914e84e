"""What must hold as nodes are told to leave: of all that hold a block, one stays.

It need not where one cannot have heard of the other, or has died unheard of, be it one that was
there when another was told to leave, or one that came while that was decided.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swarmd.node.dismissal import SETTLE_S

if TYPE_CHECKING:
    from swarmd.sim.node import Process
    from swarmd.sim.world import World

ANSWER_S = 10.0
"""Within so many seconds an operator is told."""
DEAF = ("deafen", "directory_away", "step_clock")
"""After these some do not hear of others in time."""


class Dismissals:
    """Watches one world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.left: set[Process] = set()
        """Those that leave as they were told to."""
        self._served_at: dict[Process, float] = {}
        """When their blocks took new sessions for the last time."""

    def at_every_event(self, process: Process) -> None:
        """Note that something has happened at a loaded node."""
        if process.life.serves:
            self._served_at[process] = self.world.timeline.now

    def served_since(self, then: float) -> set[Process]:
        """Return those at which something has happened since then, and that served after it."""
        return {process for process, at in self._served_at.items() if at >= then}

    def asked(self, process: Process) -> Asked:
        """A node is told to leave."""
        return Asked(self, process)

    def serving(self) -> set[Process]:
        """Return those whose blocks take new sessions, be it open to clients yet or not."""
        return {process for process in self.world.loaded() if process.life.serves}


class Asked:
    """One node that was told to leave, until it answers."""

    def __init__(self, dismissals: Dismissals, process: Process) -> None:
        self._dismissals = dismissals
        self._world = dismissals.world
        self._process = process
        self._since = self._world.timeline.now
        self._before = dismissals.serving()

    def refused(self) -> None:
        """It stays."""
        self._in_time()
        self._world.history["dismissal_refused"] += 1

    def accepted(self) -> None:
        """It leaves: others hold its blocks."""
        self._in_time()
        self._world.history["dismissal_accepted"] += 1
        if self._process in self._dismissals.left:
            return  # told twice: that was decided by what was known at the first time
        self._dismissals.left.add(self._process)
        serving = self._dismissals.serving()
        if not self._is_fair(serving):
            return
        span, who = self._process.stage.span, self._process.machine.peer_id
        for block in range(span.start, span.end):
            assert any(block in other.stage.span for other in serving), (
                f"{who} leaves, and nobody stays with block {block}"
            )

    def _in_time(self) -> None:
        took = self._world.timeline.now - max(self._since, self._process.loop.frozen_until)
        assert took < ANSWER_S, f"{self._process.machine.peer_id}: an operator waits {took:.1f} s"

    def _is_fair(self, serving: set[Process]) -> bool:
        """Whether others could be heard of in time, and are gone only as they were told to."""
        holders = self._before | self._dismissals.served_since(self._since)
        heard = self._world.climate.view_delay[1] <= SETTLE_S / 2
        deaf = any(self._world.history[name] for name in DEAF)
        return heard and not deaf and not holders - serving - self._dismissals.left

"""What must hold as sessions and nodes move: what is handed off is whole; what all hops hold is not
computed again; a node leaves its blocks only when nobody is served by it any more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swarmd.core.frames import Open, Step
from swarmd.node.moves import STANDSTILL_S
from swarmd.node.run import Run
from swarmd.pipeline.hop_session import HopSession
from swarmd.swarm.rebalance import Reason

if TYPE_CHECKING:
    from swarmd.sim.node import Process
    from swarmd.sim.world import World

LATE = 0.1


class Handoffs:
    """Watches one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._seen: dict[int, int] = {}
        """By driver, the handoffs that have been looked at."""
        self._held: dict[tuple[bytes, int], int] = {}
        """By session and epoch, what all hops had when it began: nobody is fed positions below."""

    def opened(self, src: str, frame: Open) -> None:
        """Look at an epoch that begins: is it a handoff?"""
        process = self._world.machines[src].running
        run = process.coordinator._runs.get(frame.session)
        if run is None or run.driver.handoffs == self._seen.get(id(run.driver), 0):
            return
        self._seen[id(run.driver)] = run.driver.handoffs
        if run.driver._patience.strikes:
            return  # something else has happened since
        known, holders = len(run.driver.feed.ids), self._holders(run)
        if holders is None:
            return
        for who, session in holders.items():
            # What a copy is sent it puts in before it computes anything.
            held = session.length if session.donor else session.computed
            assert held >= known - 1, (
                f"{src} hands a session of {known} positions off when {who} holds {held}"
            )
        self._world.history["handoff"] += 1

    def _holders(self, run: Run) -> dict[str, HopSession] | None:
        """What the hops of the new route hold; None where one is gone."""
        found = {}
        for hop in run.driver.route:
            machine = self._world.machines[hop.peer_id]
            live = machine.alive and machine.running.loaded
            session = machine.running.table.sessions.get(run.session) if live else None
            if session is None:
                return None
            found[hop.peer_id] = session
        return found

    def sent(self, src: str, dst: str, frame: Step) -> None:
        """Look at a step: what all hops have held since the epoch began is not sent again."""
        least = self._held.get((frame.session, frame.epoch))
        if least is None:
            least = self._hold(src, frame)
        assert frame.position >= least, (
            f"{src} has {dst} compute position {frame.position} again, all hops held {least}"
        )

    def _hold(self, src: str, frame: Step) -> int:
        """Return the start of the chunk up to which all hops hold the same, by their answers.

        The last chunk is computed again, as its token may be lost: after a handoff it is new.
        """
        run = self._world.machines[src].running.coordinator._runs.get(frame.session)
        if run is None or run.driver.epoch != frame.epoch:
            return 0  # a hop sends what it has logged, before the first step of this epoch
        feed, lengths = run.driver.feed, run.driver.held.lengths(run.driver.route)
        least = feed.chunks.floor(min(*lengths, feed.known - 1)) if self._world.rewinds else 0
        self._held[frame.session, frame.epoch] = least
        return least

    def leaving(self, process: Process) -> None:
        """Look at a node that goes to other blocks now."""
        assert process.moves is not None
        who, left = process.machine.peer_id, len(process.table.sessions)
        self._world.history["moved_away"] += 1
        process.left_behind += left
        if process.moves.reason is not Reason.GAP:
            assert not left, f"{who} leaves its blocks, and {left} sessions with them"
        elif left:
            still = process.loop.time() - process.executor.worked_at
            assert still >= STANDSTILL_S - LATE, f"{who} leaves sessions that ran {still:.1f} s ago"

"""What must hold of a simulated swarm, whatever happens to it: each with a message of its own.

That ids are right, and that nothing is computed twice, clients and toy stages assert themselves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from swarmd.core.errors import (
    CapacityError,
    CoverageError,
    PeerUnreachable,
    SessionLost,
    UnknownModel,
)
from swarmd.core.frames import Open, SessionFrame, Step, Token
from swarmd.sim.dismissals import Dismissals
from swarmd.sim.handoffs import Handoffs
from swarmd.sim.liar import Liar
from swarmd.swarm.health import MAX_PENALTY

if TYPE_CHECKING:
    from swarmd.sim.client import Client
    from swarmd.sim.node import Process
    from swarmd.sim.world import World

OPENS_PER_SECOND = 10
"""Epochs of one session that one coordinator may begin within a second without a new token. The
pauses between repairs double from 50 ms on, so half as many are what they leave time for; hops that
are told of changes in the view add some."""
OPENS_WITHOUT_PROGRESS = 40
TYPED = (CoverageError, CapacityError, PeerUnreachable, UnknownModel)
"""What a request that has not begun may end with; UnknownModel where its node sees nobody."""
LATE = 1.0
"""Seconds by which a deadline may be missed."""
MOST_QUEUED = 2048
"""Operations that wait for one executor."""
BOUND = 150.0
"""Seconds in which a request must end after the last fault has healed: what it may wait for peers
and for room, and the time that a lost answer takes to be missed."""


class Invariants:
    """Watches one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._opened: dict[tuple[str, bytes], tuple[int, deque[float]]] = {}
        self._copies: set[tuple[bytes, str]] = set()
        """Sessions, and who has been asked to hold a copy of some hop's KV."""
        self._used_copies = False
        """Whether some copy has taken a hop's place: it has no log of what came before."""
        self.handoffs = Handoffs(world)
        self.dismissals = Dismissals(world)
        self.opens = 0
        """Epochs, over all sessions."""

    # All the time.

    def at_every_event(self, process: Process) -> None:
        """KV that is reserved is that of sessions and shared units, to the byte."""
        table, account = process.table, process.account
        held = len(table.sessions) + len(table.prefixes)
        if len(account.reserved) == held == process.held:
            return
        process.held = held
        who = process.machine.peer_id
        unit = table.prefixes.unit
        expected = {
            session.id: max(0, session.max_positions - len(session.shared) * unit)
            * len(session.blocks)
            for session in table.sessions.values()
        }
        units = {name: u.kv_bytes for name, u in table.prefixes._units.items()}
        assert account.reserved == expected | units, (
            f"{who}: {account.reserved} bytes of KV are reserved, sessions and units have "
            f"{expected | units}"
        )
        assert sum(account.reserved.values()) <= account.total, f"{who}: more KV than there is"
        assert len(table.sessions) <= table.policy.max_sessions, f"{who}: too many sessions"

    def every_second(self) -> None:
        """What lapses goes in time, as soon as its node is awake."""
        now = self._world.timeline.now
        for process in self._world.loaded():
            self._of_leases(process, now)
            table, grace = process.table, process.table.policy.orphan_grace
            if now < process.loop.frozen_until + LATE:
                continue
            for session in table.sessions.values():
                lapses_at, who = session.lapses_at, process.machine.peer_id
                late = now - lapses_at if lapses_at is not None else 0.0
                assert late < LATE, f"{who}: a reservation that nobody used is {late:.1f} s late"
                late = now - session.seen_at - grace
                assert late < LATE, f"{who}: an orphan is kept {late:.1f} s too long"

    def _of_leases(self, process: Process, now: float) -> None:
        leases, who = process.table.leases, process.machine.peer_id
        for lease in leases._leases.values():
            late = now - max(lease.ends_at, process.loop.frozen_until)
            assert late < LATE, f"{who}: a lease that is over is kept {late:.1f} s too long"

    def of_closed(self) -> None:
        """Where nothing is wrong, what clients have left is freed at once."""
        for process in self._world.loaded():
            who = process.machine.peer_id
            assert not process.table.sessions, f"{who}: a session outlives its close"

    def watch(self, src: str, dst: str, batch: Sequence[SessionFrame]) -> None:
        """Repairs pause, and have an end: told of all that is sent."""
        now = self._world.timeline.now
        for frame in batch:
            if isinstance(frame, Token):
                self._opened.pop((dst, frame.session), None)
            elif isinstance(frame, Step):
                self.handoffs.sent(src, dst, frame)
            elif isinstance(frame, Open) and frame.donor:
                self._copies.add((frame.session, dst))
            elif isinstance(frame, Open):
                self._used_copies |= (frame.session, dst) in self._copies
                self._count_open(src, frame, now)

    def _count_open(self, src: str, frame: Open, now: float) -> None:
        epoch, times = self._opened.get((src, frame.session), (-1, deque()))
        if frame.epoch == epoch:
            return
        if frame.epoch > epoch + 500:
            times.clear()  # another attempt of its client
        self.handoffs.opened(src, frame)
        self.opens += 1
        times.append(now)
        self._opened[src, frame.session] = (frame.epoch, times)
        lately = sum(now - at < 1.0 for at in times)
        assert lately <= OPENS_PER_SECOND, f"{src} opens a session {lately} times in a second"
        assert len(times) <= OPENS_WITHOUT_PROGRESS, (
            f"{src} has opened a session {len(times)} times without a token"
        )

    # In the end.

    def of_client(self, client: Client) -> None:
        """A request ends as it should: whole, or with an error that the faults account for."""
        assert client.ended, f"{client}: did not end"
        assert client.ids == client.expected[: len(client.ids)], f"{client}: an id differs"
        calm = max(client.began_at, self._world.calm_at)
        assert client.ended_at <= calm + BOUND, f"{client}: ended {client.ended_at - calm} s late"
        if client.ended == "left" or (isinstance(client, Liar) and client.lie):
            return
        if client.error is None:
            assert client.ids == client.expected, f"{client}: the output is cut short"
            return
        if self._world.doomed:
            assert isinstance(client.error, (*TYPED, SessionLost)), f"{client}: {client.error!r}"
            return
        assert not client.begun, f"{client}: failed though every block had a holder"
        assert isinstance(client.error, TYPED), f"{client}: {client.error!r}"

    def of_process(self, process: Process) -> None:
        """Once clients are gone and grace has passed, nothing is left open."""
        who, table = process.machine.peer_id, process.table
        assert not table.sessions, f"{who} still has sessions"
        assert not len(process.coordinator), f"{who} still coordinates sessions"
        line, book = process.coordinator._line, process.coordinator._book
        assert not len(line), f"{who}: {len(line)} sessions still stand in line"
        assert not book._ahead, f"{who}: prompts that nobody computes"
        assert not book._behind, f"{who}: sessions that wait for prompts that nobody computes"
        assert not process.doors.calls, f"{who} still serves calls"
        assert not len(table.leases), f"{who} still keeps sessions"
        assert table.next_deadline() is None, f"{who} still waits for something"
        for action in table.prefixes.clear():
            process.stage.drop(action.unit)  # type: ignore[union-attr]
        assert not process.account.reserved, f"{who} still has KV reserved"
        assert table.budget.used == 0, f"{who} still has a replay log"
        assert len(process.stage) == 0, f"{who} still has KV"
        assert process.stage.units == len(table.prefixes) == 0, f"{who}: units that nobody uses"
        assert not process.links.waiting, f"{who}: frames that wait for a link"
        assert process.executor.queue_depth == 0, f"{who}: operations that are not carried out"
        self._of_queues(process)
        self._of_counters(process)

    def _of_queues(self, process: Process) -> None:
        who, most = process.machine.peer_id, process.executor.most_queued
        assert most <= MOST_QUEUED, f"{who}: {most} operations have waited"
        health = process.routes.health
        assert len(health) <= len(self._world.machines), f"{who}: health of strangers"
        for peer_id in self._world.machines:
            penalty = health.penalty(peer_id, process.machine.clock.wall())
            assert penalty <= MAX_PENALTY, f"{who}: a penalty of {penalty}"

    def _of_counters(self, process: Process) -> None:
        who, counters, world = process.machine.peer_id, process.table.counters, self._world
        if not world.climate.compute_failures:
            failed = counters.compute_failed - process.left_behind
            assert failed == 0, f"{who}: {failed} outputs that fit no session"
        whole_logs = world.whole_logs and not self._used_copies
        if world.rewinds and whole_logs and not world.climate.replays:
            assert counters.gaps == 0, f"{who}: {counters.gaps} replays left something out"

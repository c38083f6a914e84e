"""Copies of sessions' KV on other peers: what a hop sends of its own, and takes of another's.

The donor sends what is computed as fast as the other side takes it in, so a copy may lag but never
holds decoding up. Who is to hold a copy, and when it takes the hop's place, is the coordinator's
decision (`standbys.Standbys`); reading and writing KV is the executor's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from swarmd.core.frames import KV, Copied, Copy, Refusal
from swarmd.pipeline.events import Export, Exported, HopAction, Import, Imported, Send, Truncate
from swarmd.pipeline.hop_session import CopyTo, HopSession
from swarmd.pipeline.hop_values import HopCounters, HopPolicy, KVAccount

MOST_POSITIONS = 256
"""In one frame: taking that many out of the tiles holds the compute thread up for some ms."""


class Copies:
    """The copies that a hop table sends and takes in."""

    def __init__(
        self,
        sessions: Mapping[bytes, HopSession],
        account: KVAccount,
        counters: HopCounters,
        policy: HopPolicy,
        next_ticket: Callable[[], int],
        give_up: Callable[[HopSession, Refusal, str], list[HopAction]],
    ) -> None:
        """`give_up` frees a session and tells its coordinator why."""
        self._sessions = sessions
        self._account = account
        self._counters = counters
        self._policy = policy
        self._next_ticket = next_ticket
        self._give_up = give_up
        self._copying: dict[bytes, None] = {}
        """Sessions that may have copies."""
        self._free_at = 0.0
        """When the next bytes may go, as the rate is bounded."""

    # The donor's side.

    def order(self, session: HopSession, order: Copy, now: float) -> list[HopAction]:
        """Begin a copy, or begin it anew from where the other side says that it is."""
        if not session.blocks.covers(order.blocks) or order.position > session.length:
            return []
        self._copying[session.id] = None
        session.copies[order.peer_id] = CopyTo(order.blocks, order.position, order.position)
        return self.advance(session, now)

    def advance(self, session: HopSession, now: float) -> list[HopAction]:
        """Take out of the KV what may be sent now."""
        actions: list[HopAction] = []
        for copy in session.copies.values():
            end = self._end(session, copy)
            if copy.ticket is None and copy.sent < end and now >= self._free_at:
                copy.ticket, start, copy.sent = self._next_ticket(), copy.sent, end
                nbytes = self._account.size(copy.blocks, end - start)
                self._free_at = max(now, self._free_at) + nbytes / self._policy.copy_rate
                actions.append(Export(session.id, copy.ticket, copy.blocks, start, end))
        return actions

    def _end(self, session: HopSession, copy: CopyTo) -> int:
        """To where the next frame reaches: within what is computed, and what may be under way."""
        each = max(1, self._account.size(copy.blocks, 1))
        most = max(1, min(MOST_POSITIONS, self._policy.copy_frame_bytes // each))
        window = max(most, self._policy.copy_window_bytes // each)
        return min(session.computed, copy.sent + most, copy.held + window)

    def exported(self, event: Exported, now: float) -> list[HopAction]:
        """Send what was taken out, unless a rewind has made it void."""
        session = self._sessions.get(event.session)
        if session is None:
            return []
        found = [(p, copy) for p, copy in session.copies.items() if copy.ticket == event.ticket]
        for peer_id, copy in found:
            copy.ticket = None
            if event.blocks is None:
                del session.copies[peer_id]
                return []
            kv = KV(session.id, session.epoch, event.position, event.blocks)
            self._counters.copied_positions += kv.length
            self._counters.copied_bytes += kv.nbytes
            return [Send(peer_id, kv), *self.advance(session, now)]
        return []

    def rewind(self, session: HopSession) -> None:
        """What lies above the session's length is to be sent anew."""
        for copy in session.copies.values():
            copy.sent, copy.held = min(copy.sent, session.length), min(copy.held, session.length)
            copy.ticket = None

    def copied(self, sender: str, news: Copied, now: float) -> list[HopAction]:
        """Note how far a copy reaches, and go on."""
        session = self._sessions.get(news.session)
        copy = session.copies.get(sender) if session else None
        if session is None or copy is None or news.epoch != session.epoch:
            return []
        copy.held = min(news.kv_length, copy.sent)
        return self.advance(session, now)

    def lost(self, session: HopSession, peer_id: str) -> None:
        """A peer that held a copy is gone; the coordinator finds another one."""
        session.copies.pop(peer_id, None)

    @property
    def due(self) -> float | None:
        """When more may be sent, where the rate holds something back."""
        waits = any(
            copy.ticket is None and copy.sent < self._end(session, copy)
            for session, copy in self._all()
        )
        return self._free_at if waits else None

    @property
    def lag(self) -> int:
        """Positions that are computed here and that copies do not hold yet, over all of them."""
        return sum(max(0, session.computed - copy.held) for session, copy in self._all())

    def _all(self) -> Iterator[tuple[HopSession, CopyTo]]:
        for session_id in list(self._copying):
            session = self._sessions.get(session_id)
            if session is None or not session.copies:
                del self._copying[session_id]
                continue
            for copy in session.copies.values():
                yield session, copy

    # The side that holds the copy.

    def kv(self, sender: str, kv: KV, now: float) -> list[HopAction]:
        """Take KV from the hop that a session is copied from."""
        session = self._sessions.get(kv.session)
        if session is None or sender != session.donor or kv.epoch != session.epoch:
            self._counters.wrong_sender += 1
            return []
        problem = ""
        if len(kv.blocks) != len(session.blocks):
            problem = f"KV of {len(kv.blocks)} blocks came, {len(session.blocks)} are held here"
        elif kv.end > session.max_positions:
            problem = f"position {kv.end} is beyond the {session.max_positions} reserved"
        if problem:
            self._counters.bad_steps += 1
            return self._give_up(session, Refusal.BAD_STEP, problem)
        session.lapses_at = None
        return self._take(session, kv)

    def _take(self, session: HopSession, kv: KV) -> list[HopAction]:
        """Put in KV that follows what is held, or takes its place from some position on."""
        if kv.position > session.length:
            self._counters.copy_gaps += 1
            return []
        actions: list[HopAction] = []
        if kv.position < session.length:
            actions.append(Truncate(session.id, kv.position))
        session.hold(kv.end)
        ticket = self._next_ticket()
        session.imports[ticket] = kv.position, kv.end
        return [*actions, Import(session.id, ticket, session.blocks, kv.position, kv.blocks)]

    def imported(self, event: Imported, now: float) -> list[HopAction]:
        """Tell donor and coordinator how far the copy reaches."""
        session = self._sessions.get(event.session)
        if session is None:
            return []
        _, end = session.imports.pop(event.ticket, (0, None))
        if end is None or not session.donor:
            return []
        news = Copied(session.id, session.epoch, min(end, session.length))
        peers = dict.fromkeys((session.donor, session.coordinator))
        return [Send(peer_id, news) for peer_id in peers]

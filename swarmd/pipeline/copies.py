"""Copies of sessions' KV on other peers: what a hop sends of its own, and takes of another's.

The donor sends what is computed as fast as the other side takes it in, so a copy may lag but never
holds decoding up. Copies to one peer share what may be under way there, so that they cannot overrun
its link, which others use. Who is to hold a copy, and when it takes the hop's place, is the
coordinator's decision (`standbys.Standbys`); reading and writing KV is the executor's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from swarmd.core.frames import KV, Copied, Copy, Open, Refusal
from swarmd.core.span import Span
from swarmd.pipeline.events import Export, Exported, HopAction, Import, Imported, Send, Truncate
from swarmd.pipeline.hop_session import CopyTo, HopSession
from swarmd.pipeline.hop_values import HopCounters, HopPolicy, KVAccount
from swarmd.pipeline.under_way import UnderWay

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
        pending: Callable[[str], int],
        shrink: Callable[[HopSession], tuple[bool, list[HopAction]]],
    ) -> None:
        """`give_up` frees a session and tells its coordinator why.

        `pending` says how many bytes wait for the link to a peer; `shrink` is told of sessions that
        have given up a part of what they held, and says whether there is room for its like.
        """
        self._sessions = sessions
        self._account = account
        self._counters = counters
        self._policy = policy
        self._next_ticket = next_ticket
        self._give_up = give_up
        self._pending = pending
        self._shrink = shrink
        self.under_way = UnderWay()
        self._copying: dict[bytes, None] = {}
        """Sessions that have copies."""
        self._line: dict[bytes, None] = {}
        """Sessions that may have something to send; the first has waited for longest."""
        self._free_at = 0.0
        """When the next bytes may go, as the rate is bounded."""

    # The donor's side.

    def order(self, session: HopSession, order: Copy, now: float) -> list[HopAction]:
        """Begin a copy, or begin it anew from where the other side says that it is; or end it."""
        if not session.blocks.covers(order.blocks):
            return []
        waits = self._pending(order.peer_id) > self._policy.copy_frame_bytes
        if waits and self._is_as_said(session.copies.get(order.peer_id), order):
            return []  # nothing has come there, but it is the link that it waits for
        for peer_id, copy in list(session.copies.items()):
            if peer_id != order.peer_id and copy.blocks.meets(order.blocks):
                self.lost(session, peer_id)  # its coordinator has found another one, or none
        if not order.peer_id:
            return []
        self._copying[session.id] = None
        at = order.position
        session.copies[order.peer_id] = CopyTo(order.blocks, at, at, order.round, order.sure)
        self._note(session, order.peer_id)
        return self.advance(session, now)

    def _is_as_said(self, copy: CopyTo | None, order: Copy) -> bool:
        """Whether the other side is known to be where an order says that it is."""
        return bool(copy and copy.blocks == order.blocks and copy.held == order.position)

    def advance(self, session: HopSession, now: float) -> list[HopAction]:
        """Take out of the KV what may be sent now, after others that wait."""
        if session.copies:
            self._line[session.id] = None
        return self.serve(now) if self._line else []

    def serve(self, now: float) -> list[HopAction]:
        """Let those that wait send as much as the rate allows: a frame of each in turn."""
        actions: list[HopAction] = []
        while self._line and now >= self._free_at:
            session_id = next(iter(self._line))
            del self._line[session_id]
            if session := self._sessions.get(session_id):
                actions += self._export(session, now)
        return actions

    def _export(self, session: HopSession, now: float) -> Iterator[HopAction]:
        for peer_id, copy in session.copies.items():
            end = self._end(session, peer_id, copy)
            if copy.ticket is None and copy.sent < end:
                copy.ticket, start, copy.sent = self._next_ticket(), copy.sent, end
                seconds = (end - start) * self._each(copy.blocks) / self._policy.copy_rate
                self._free_at = max(now, self._free_at) + seconds
                self._note(session, peer_id)
                yield Export(session.id, copy.ticket, copy.blocks, start, end)

    def _end(self, session: HopSession, peer_id: str, copy: CopyTo) -> int:
        """To where the next frame reaches: within what is computed, and what may be under way."""
        each = self._each(copy.blocks)
        window = max(1, self._window(session, peer_id) // each)
        frame = max(1, min(MOST_POSITIONS, self._policy.copy_frame_bytes // each))
        there = session.computed
        if session.round < copy.round:  # what is above is computed anew, perhaps of other ids
            there = min(there, copy.sure)
        whole = min(there, copy.sent + frame)
        end = min(whole, copy.held + window)
        # What is under way will be answered for: better a whole frame then than shreds until then.
        return end if end == whole or copy.sent == copy.held else copy.sent

    def _window(self, session: HopSession, peer_id: str) -> int:
        """Bytes of a copy that may be under way: its share of what may be for its peer.

        A little may be in any case. So a copy always gets on, whatever others have under way.
        """
        under_way, limit = self.under_way, self._policy.copy_peer_bytes
        own = under_way.of(peer_id, session.id)
        others = max(under_way.total(peer_id), self._pending(peer_id)) - own
        share = limit // under_way.sharers(peer_id, session.id)
        least = limit // self._policy.max_sessions
        return max(least, min(self._policy.copy_window_bytes, share, limit - others))

    def _each(self, blocks: Span) -> int:
        """Bytes of KV of one position; the account may count a few positions as many."""
        return max(1, self._account.size(blocks, MOST_POSITIONS) // MOST_POSITIONS)

    def _note(self, session: HopSession, peer_id: str) -> None:
        copy = session.copies.get(peer_id)
        nbytes = (copy.sent - copy.held) * self._each(copy.blocks) if copy else 0
        self.under_way.note(peer_id, session.id, nbytes)

    def exported(self, event: Exported, now: float) -> list[HopAction]:
        """Send what was taken out, unless a rewind has made it void."""
        session = self._sessions.get(event.session)
        if session is None:
            return []
        found = [(p, copy) for p, copy in session.copies.items() if copy.ticket == event.ticket]
        for peer_id, copy in found:
            copy.ticket = None
            if event.blocks is None:
                self.lost(session, peer_id)
                return []
            place = session.id, session.epoch, session.round
            kv = KV(*place, event.position, event.blocks)
            self._counters.copied_positions += kv.length
            self._counters.copied_bytes += kv.nbytes
            return [Send(peer_id, kv), *self.advance(session, now)]
        return []

    def rewind(self, session: HopSession) -> None:
        """What lies above the session's length is to be sent anew."""
        for peer_id, copy in session.copies.items():
            copy.sent, copy.held = min(copy.sent, session.length), min(copy.held, session.length)
            copy.ticket = None
            self._note(session, peer_id)

    def copied(self, sender: str, news: Copied, now: float) -> list[HopAction]:
        """Note how far a copy reaches, and go on."""
        session = self._sessions.get(news.session)
        copy = session.copies.get(sender) if session else None
        if session is None or copy is None or news.epoch != session.epoch:
            return []
        copy.held = min(news.kv_length, copy.sent)
        self._note(session, sender)
        return self.advance(session, now)

    def lost(self, session: HopSession, peer_id: str) -> None:
        """A peer that held a copy is gone; the coordinator finds another one."""
        if session.copies.pop(peer_id, None):
            self._note(session, peer_id)
        if not session.copies:
            self._copying.pop(session.id, None)

    def opened(self, session: HopSession, order: Open) -> list[HopAction]:
        """A session's copies end with its epoch; and so does what one holds of unknown ids."""
        self.end(session)
        if not order.donor or session.length <= order.computed:
            return []
        session.rewind(order.computed, order.computed)
        _, dropped = self._shrink(session)  # to admit it is to ask for the room
        return [*dropped, Truncate(session.id, order.computed)]

    def end(self, session: HopSession) -> None:
        """It goes nowhere any more."""
        for peer_id in list(session.copies):
            self.lost(session, peer_id)

    @property
    def due(self) -> float | None:
        """When more may be sent, where the rate holds something back."""
        return self._free_at if self._line else None

    @property
    def lag(self) -> int:
        """Positions that are computed here and that copies do not hold yet, over all of them."""
        sessions = [self._sessions[session_id] for session_id in self._copying]
        return sum(max(0, s.computed - copy.held) for s in sessions for copy in s.copies.values())

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
        if kv.round < session.round:
            self._counters.stale_rounds += 1
            return []
        if kv.round > session.round:
            session.round, session.copied = kv.round, 0
        return self._take(session, kv)

    def _take(self, session: HopSession, kv: KV) -> list[HopAction]:
        """Put in KV that follows what is held, or takes its place from some position on.

        What has come in this round stays: the hop may send it twice, if it is told to begin anew
        while some of it is on its way, and a copy that gave it up were not what it has said it is.
        """
        if kv.end <= session.copied:
            self._counters.duplicates += 1
            return self._tell(session, session.computed)
        if kv.position > session.length:
            self._counters.copy_gaps += 1
            return []
        actions: list[HopAction] = []
        if kv.position < session.length:
            session.length = kv.position
            fits, dropped = self._shrink(session)
            if not fits:
                message = f"KV of its own for {session.max_positions} positions does not fit now"
                return self._give_up(session, Refusal.KV_EXHAUSTED, message)
            actions += [*dropped, Truncate(session.id, kv.position)]
        session.hold(kv.end)
        ticket = self._next_ticket()
        session.imports[ticket] = kv.position, kv.end
        return [*actions, Import(session.id, ticket, session.blocks, kv.position, kv.blocks)]

    def imported(self, event: Imported, now: float) -> list[HopAction]:
        """Tell donor and coordinator how far the copy reaches."""
        session = self._sessions.get(event.session)
        if session is None:
            return []
        start, end = session.imports.pop(event.ticket, (0, None))
        if end is None or not session.donor:
            return []
        self._counters.converted_positions += (end - start) * event.converted
        return self._tell(session, min(end, session.length))

    def _tell(self, session: HopSession, kv_length: int) -> list[HopAction]:
        news = Copied(session.id, session.epoch, kv_length)
        peers = dict.fromkeys((session.donor, session.coordinator))
        return [Send(peer_id, news) for peer_id in peers]

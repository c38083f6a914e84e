"""What resumed sessions have to send out of their replay logs: piece by piece, as links take it.

A link is given up when too much waits for it, and with a lost peer many sessions are resumed at one
moment. What is to be sent, and in which order, is the session's; this decides when.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Mapping

from swarmd.pipeline.events import HopAction, Send
from swarmd.pipeline.hop_session import HopSession
from swarmd.pipeline.hop_values import HopCounters, HopPolicy

LOOK_AGAIN = 0.02
"""Seconds until a link is looked at again that had no room."""


class Backlogs:
    """The sessions of a hop table that have more to send than may wait for their links."""

    def __init__(
        self,
        sessions: Mapping[bytes, HopSession],
        counters: HopCounters,
        policy: HopPolicy,
        pending: Callable[[str], int],
    ) -> None:
        """`pending` says how many bytes wait for the link to a peer."""
        self.due: float | None = None
        """When to look again."""
        self._sessions = sessions
        self._counters = counters
        self._policy = policy
        self._pending = pending
        self._line: dict[bytes, None] = {}
        """Who waits; the first has waited for longest."""
        self._sent: Counter[str] = Counter()
        self._sent_at = -math.inf
        """What was sent at this moment may not count as pending yet."""

    def begin(self, session: HopSession, now: float) -> list[HopAction]:
        """Send what a session has logged for the next hop, or what there is room for now."""
        self._counters.replayed_positions += session.queue_log()
        self._line[session.id] = None
        return self.advance(now)

    def advance(self, now: float) -> list[HopAction]:
        """Send what there is room for: a step of one session, then one of the next."""
        if now != self._sent_at:
            self._sent_at = now
            self._sent.clear()
        actions: list[HopAction] = []
        turns, self._line = deque(self._line), {}
        room: dict[str, int] = {}
        while turns:
            session = self._sessions.get(turns.popleft())
            if session is None or not session.unsent:
                continue
            peer_id = session.next_peer
            if peer_id not in room:
                taken = self._pending(peer_id) + self._sent[peer_id]
                room[peer_id] = self._policy.backlog_bytes - taken
            if room[peer_id] <= 0:
                self._line[session.id] = None
                continue
            step = session.next_unsent(self._policy.replay_step)
            nbytes = step.hidden.nbytes if step.hidden else 0
            room[peer_id] -= nbytes
            self._sent[peer_id] += nbytes
            actions.append(Send(peer_id, step))
            turns.append(session.id)
        self.due = now + LOOK_AGAIN if self._line else None
        return actions

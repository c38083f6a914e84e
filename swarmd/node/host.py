"""This node's part in sessions: hop table, executor and links, tied together on the event loop.

Every decision is `swarmd.pipeline.hop`'s, every computation the executor's; here frames become
events and actions are carried out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence

from swarmd.core.errors import ProtocolError
from swarmd.core.frames import Open, SessionFrame
from swarmd.node.executor import Executor, Result
from swarmd.node.timer import Deadline
from swarmd.pipeline import events as ev
from swarmd.pipeline.hop import HopTable

log = logging.getLogger(__name__)

OVERSLEPT_S = 0.5
"""A check of sessions that is so late says that this node stood still."""

Send = Callable[[str, Sequence[SessionFrame]], None]


class StageHost:
    """Runs the hop table of this node."""

    def __init__(self, table: HopTable, executor: Executor, send: Send) -> None:
        self.table = table
        self._executor = executor
        self._send = send
        self.on_sessions: Callable[[], None] = lambda: None
        """Called when there are more sessions, or fewer."""
        self._sessions = 0
        self._due: float | None = None
        self._closed = False
        self._deadline = Deadline(lambda: self.handle(ev.Tick()))

    def on_frames(self, peer_id: str, frames: Iterable[SessionFrame]) -> None:
        """Take frames that are meant for a hop."""
        events, copies = [], []
        for frame in frames:
            events.append(ev.Received(peer_id, frame))
            if isinstance(frame, Open) and frame.donor:
                copies.append(frame)
        self.handle(*events)
        for order in copies:
            self._get_to_know(order)

    def _get_to_know(self, order: Open) -> None:
        """Dial the neighbours that a copy will have: when it is put in place, a stream waits."""
        known = order.session in self.table.sessions
        for peer_id in sorted({order.prev_peer, order.next_peer} - {""}) if known else ():
            self._send(peer_id, ())

    def on_computed(self, results: Iterable[Result]) -> None:
        """Take what a microbatch gave."""
        if not self._closed:
            self.handle(*results)

    def handle(self, *events: ev.HopEvent) -> None:
        """Feed events to the table and carry out what follows.

        What they have for the executor, or for one peer, goes there together.
        """
        now = asyncio.get_running_loop().time()
        if self._due is not None and now > self._due + OVERSLEPT_S:
            # What came while this node stood still says nothing about who is there now.
            events = (ev.Tick(), *events)
        operations: list[ev.Operation] = []
        frames: dict[str, list[SessionFrame]] = {}
        for event in events:
            for action in self.table.handle(event, now):
                if isinstance(action, ev.Send):
                    frames.setdefault(action.peer_id, []).append(action.frame)
                else:
                    operations.append(action)
        for peer_id, batch in frames.items():
            try:
                self._send(peer_id, batch)
            except ProtocolError as error:  # what else goes to this peer has gone
                log.error("a frame that no peer takes was left out: %s", error)
        if operations:
            self._executor.put(*operations)
        if len(self.table.sessions) != self._sessions:
            self._sessions = len(self.table.sessions)
            self.on_sessions()
        if (due := self.table.next_deadline()) != self._due or not self._deadline.is_set:
            self._due = due
            self._deadline.set(due)

    def close(self) -> None:
        """Wake up no more, and take no more results: nobody waits for them."""
        self._closed = True
        self._deadline.set(None)

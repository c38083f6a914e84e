"""This node's part in sessions: hop table, executor and links, tied together on the event loop.

Every decision is `swarmd.pipeline.hop`'s, every computation the executor's; here frames become
events and actions are carried out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence

from swarmd.core.frames import SessionFrame
from swarmd.node.executor import Executor
from swarmd.node.timer import Deadline
from swarmd.pipeline import events as ev
from swarmd.pipeline.hop import HopTable

log = logging.getLogger(__name__)

Send = Callable[[str, Sequence[SessionFrame]], None]


class StageHost:
    """Runs the hop table of this node."""

    def __init__(self, table: HopTable, executor: Executor, send: Send) -> None:
        self.table = table
        self._executor = executor
        self._send = send
        self._deadline = Deadline(lambda: self.handle(ev.Tick()))

    def on_frame(self, peer_id: str, frame: SessionFrame) -> None:
        """Take a frame that is meant for a hop."""
        self.handle(ev.Received(peer_id, frame))

    def on_computed(self, results: Iterable[ev.Computed | ev.ComputeFailed]) -> None:
        """Take what a microbatch gave."""
        for result in results:
            self.handle(result)

    def handle(self, event: ev.HopEvent) -> None:
        """Feed one event to the table and carry out what follows."""
        now = asyncio.get_running_loop().time()
        self._carry_out(self.table.handle(event, now))
        self._deadline.set(self.table.next_deadline())

    def _carry_out(self, actions: Sequence[ev.HopAction]) -> None:
        for action in actions:
            if isinstance(action, ev.Send):
                self._send(action.peer_id, (action.frame,))
            else:
                self._executor.put(action)

    def close(self) -> None:
        """Wake up no more."""
        self._deadline.set(None)

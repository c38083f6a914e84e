"""A node's life, as it is lived: what begins its service, what tells it to leave, how it leaves.

Which state follows which is `lifecycle`'s table; what it loads, and who is told, is `daemon`'s; how
a session moves away is `swarmd.pipeline.moving`'s.
"""

from __future__ import annotations

import asyncio
from typing import TypeVar

from swarmd.node.lifecycle import COORDINATING, Event, Lifecycle, State
from swarmd.node.membership import Membership
from swarmd.node.service import Service
from swarmd.node.succession import Succession

READY_WAIT_S = 5.0
"""How long a node that is loaded waits to see others before it says that it serves."""
POLL_S = 0.05

T = TypeVar("T")


class Life:
    """From loading to the last session's end. Lives on the event loop."""

    def __init__(self, patience: float) -> None:
        self.lifecycle = Lifecycle()
        self.patience = patience
        """Seconds that sessions get to move away, or to end, once it drains."""
        self.failed = False
        """Whether it ended as something was gone that it could not do without."""
        self._told = asyncio.Event()
        self._leave_by: float | None = None
        """The loop's time at which it leaves, whoever is left then."""

    @property
    def is_told(self) -> bool:
        """Whether it has been told to leave."""
        return self._told.is_set()

    @property
    def accepts(self) -> bool:
        """Whether new generations may begin here."""
        return self.lifecycle.state in COORDINATING

    @property
    def serves(self) -> bool:
        """Whether its own blocks take new sessions."""
        return self.lifecycle.state is State.SERVING

    def drain(self) -> None:
        """Begin to leave; the second time, leave at once."""
        self.lifecycle.handle(Event.DRAIN)
        self._told.set()

    def fail(self) -> None:
        """End at once, as something that the node cannot do without is gone."""
        self.failed = True
        self.lifecycle.handle(Event.FAIL)
        self._told.set()

    async def unless_told(self, work: asyncio.Task[T]) -> T | None:
        """Wait for work; None when the node is told to leave before it is done."""
        told = asyncio.create_task(self._told.wait())
        await asyncio.wait({work, told}, return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        if not self.is_told:
            return work.result()
        work.cancel()
        return None

    async def begin_to_serve(self, membership: Membership) -> None:
        """Say that the blocks are there, and look who else is."""
        self.lifecycle.handle(Event.READY)
        await membership.presence.announce()
        await membership.see_others(READY_WAIT_S)

    async def until_told(self) -> None:
        """Serve."""
        await self._told.wait()

    def leave_within(self, seconds: float) -> None:
        """Drain for so long only, also where that has begun."""
        self.patience = seconds
        if self._leave_by is not None:
            by = asyncio.get_running_loop().time() + seconds
            self._leave_by = min(self._leave_by, by)

    async def depart(self, service: Service, membership: Membership) -> None:
        """Take nothing new, and wait for sessions to go, and for another holder of its blocks.

        Not for ever, nor once told to stop.
        """
        service.drain()
        service.hand_over()
        membership.presence.changed()
        self._leave_by = asyncio.get_running_loop().time() + self.patience
        succession = Succession(membership, holds=service.holds_blocks)
        asking = asyncio.create_task(succession.keep_asking())
        try:
            while self._drains and (seconds := self._seconds_left()) > 0:
                idle = service.is_idle
                if not succession.is_awaited(seconds, idle=idle) and idle:
                    break
                await asyncio.sleep(POLL_S)
            else:
                if self._drains:
                    succession.timed_out()
        finally:
            asking.cancel()
        self.lifecycle.handle(Event.DRAINED)

    def _seconds_left(self) -> float:
        assert self._leave_by is not None
        return self._leave_by - asyncio.get_running_loop().time()

    @property
    def _drains(self) -> bool:
        return self.lifecycle.state is State.DRAINING

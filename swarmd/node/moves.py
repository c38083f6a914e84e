"""A move, step by step: load beside what is there, drain, leave, serve other blocks.

Whether and when is `swarmd.node.moving`'s; a node that is told to leave meanwhile is `daemon`'s: a
move ends wherever it finds the node in another state than it left it in.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from swarmd.core.clock import Clock
from swarmd.core.errors import SwarmdError
from swarmd.core.span import Span
from swarmd.engine.stage import Stage
from swarmd.node.lifecycle import Event, Lifecycle, State
from swarmd.node.loading import Loader
from swarmd.node.membership import Membership
from swarmd.node.moving import Moving
from swarmd.node.service import Service
from swarmd.node.standstill import Standstill
from swarmd.swarm.rebalance import Move, Reason

log = logging.getLogger(__name__)

STANDSTILL_S = 2.0
"""Where blocks are missing, sessions for which nothing is computed for so long wait for them, and
this node does not wait for those sessions. What runs yet, on nodes that leave, is handed off."""
POLL_S = 0.05


class Moves:
    """The moves of one node."""

    def __init__(
        self,
        loader: Loader,
        patience: float,
        membership: Membership,
        service: Service,
        clock: Clock,
        lifecycle: Lifecycle,
    ) -> None:
        """`patience` is how many seconds sessions get to move away, where nothing is missing."""
        self._loader = loader
        self._opened = loader.opened
        self._patience = patience
        self._membership = membership
        self._service = service
        self._clock = clock
        self._lifecycle = lifecycle
        self._moving = Moving(membership, self._opened.max_blocks, clock, service.report.node)

    async def keep_watch(self) -> None:
        """Look after other nodes, forever."""
        await self._moving.keep_watch()

    async def keep_moving(self, fail: Callable[[], None]) -> None:
        """Move whenever it is time to, until the node leaves. `fail` ends the node."""
        while self._is(State.SERVING):
            move = await self._moving.next_move()
            try:
                self._moving.ended(moved=await self._move(move))
            except SwarmdError as error:
                # It has left its blocks and can load none: it is of no use any more.
                log.error("no blocks could be loaded after a move error=%s", error)
                fail()

    async def _move(self, move: Move) -> bool:
        """Return whether this node serves the other blocks now. Raises SwarmdError."""
        if not self._is(State.SERVING):
            return False
        stage = None
        if await self._loader.fits_beside(move.span):
            stage = await self._try_to_load(move.span)
            if stage is None:
                return False
        if not self._is(State.SERVING):
            return False
        self._lifecycle.handle(Event.MOVE)
        self._membership.presence.changed()
        self._service.drain()
        left = await self._left(move)
        if not self._is(State.MOVING):
            return False
        if not left:
            self._service.stay()
            self._lifecycle.handle(Event.STAY)
            log.info("move given up blocks=%s", self._service.stage.span)
            return False
        return await self._change(move.span, stage)

    async def _try_to_load(self, span: Span) -> Stage | None:
        try:
            return await self._loader.load(span, self._go_on)
        except Exception as error:
            # Whatever it is, memory that does not suffice included: the node had better serve on.
            log.warning("move given up blocks=%s error=%r", span, error)
            return None

    async def _left(self, move: Move) -> bool:
        """Wait for the drain; return whether the node may go."""
        deadline = self._clock.monotonic() + self._patience
        standstill = Standstill(STANDSTILL_S)
        for_gap = move.reason is Reason.GAP
        while not self._service.is_empty and self._clock.monotonic() < deadline:
            if not self._is(State.MOVING):
                return False
            steps = self._service.steps
            if standstill.has_come(steps, self._clock.monotonic()):
                if not for_gap and not await self._moving.fills_gap():
                    standstill = Standstill(STANDSTILL_S)
                    continue
                for_gap = True
                if not await self._moving.confirm():
                    return False
                if self._service.steps == steps:  # that took a while
                    return True
            await asyncio.sleep(POLL_S)
        may_go = self._service.is_empty or for_gap
        return may_go and await self._moving.confirm()

    async def _change(self, span: Span, stage: Stage | None) -> bool:
        before = self._service.stage.span
        self._lifecycle.handle(Event.LEFT)
        await self._membership.announce_move(self._opened, span)
        await self._service.unload()
        if stage is not None:
            self._loader.size_kv(stage)
        elif (stage := await self._try_to_load(span)) is None:
            stage = await self._load_again(before)
        if stage is None or not self._is(State.RELOADING):
            return False
        if stage.span != span:
            await self._membership.announce_move(self._opened, stage.span)
            if not self._is(State.RELOADING):
                return False
        self._service.change_stage(stage)
        self._lifecycle.handle(Event.READY)
        log.info("moved blocks=%s from=%s", stage.span, before)
        return stage.span == span

    async def _load_again(self, span: Span) -> Stage:
        """Load what was there before. Raises SwarmdError."""
        return await self._loader.load(span, self._go_on)

    def _is(self, state: State) -> bool:
        return self._lifecycle.state is state

    def _go_on(self, done: int, total: int, what: str) -> None:
        """Called on the loading thread, which a stop ends here."""
        if self._lifecycle.state in (State.DRAINING, State.STOPPED):
            raise asyncio.CancelledError("the node leaves")

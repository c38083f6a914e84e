"""What the compute thread makes of its microbatches: pace, speed, turns, and the log.

All of that is about many sessions. While one decodes alone nothing depends on it, and to do it at
every token costs more than by itself: the weights have gone through the caches since the last one.
So it is put off then, and done for several tokens at once, as of the times at which they were.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from swarmd.engine.batcher import Batcher, Work
from swarmd.node.compute_log import ComputeStats, Microbatch, MicrobatchLog
from swarmd.node.pace import ChunkBudget, Pace
from swarmd.node.speed import Speed

PUT_OFF = 48
"""Notes that are put off at most; a token makes three."""


@dataclass(slots=True)
class Done:
    """A microbatch that has been computed."""

    began: float
    ended: float
    """Both by the monotonic clock, in seconds."""
    wall: float
    """When it began by the wall clock, in seconds."""
    steps: int
    lives: Mapping[bytes, float]
    """Its decodes: how long each session has waited for stages in its life, in seconds."""
    rows: int
    """Positions of prompts."""
    blocks: int
    failed: bool


class Tally:
    """Notes microbatches, and says of the next one what follows from them.

    What is put off is done before anything of that is said.
    """

    def __init__(
        self, stats: ComputeStats, log: MicrobatchLog, batcher: Batcher, pace: Pace, speed: Speed
    ) -> None:
        self._stats = stats
        self._log = log
        self._batcher = batcher
        self._pace = pace
        self._speed = speed
        self._budget = ChunkBudget()
        self._put_off: list[tuple[Callable[..., None], tuple[Any, ...]]] = []

    def settle(self) -> None:
        """Do what has been put off, in the order in which it came."""
        if self._put_off:
            notes, self._put_off = self._put_off, []
            for note, what in notes:
                note(*what)

    def choose(self, ready: Sequence[Work]) -> list[Work]:
        """Return the works of the next microbatch out of `ready`."""
        self.settle()
        limit = self._pace.limit
        return self._batcher.choose(ready, limit, self._speed.decode_rows(limit))

    def chunk_rows(self) -> int | None:
        """Return how many rows of a prompt may be computed at once; None for any number."""
        self.settle()
        return self._budget.rows(self._pace.step_s)

    def hold_until(self, ready: int, free_since: float, now: float) -> float:
        """As `Pace.hold_until`."""
        self.settle()
        return self._pace.hold_until(ready, free_since, now)

    def came(self, session: bytes, waited: float, now: float) -> None:
        """As `Pace.came`, put off."""
        self._put_off.append((self._pace.came, (session, waited, now)))

    def gone(self, session: bytes) -> None:
        """A session has ended."""
        self.settle()
        self._pace.gone(session)

    def done(self, microbatch: Done) -> None:
        """Note a microbatch."""
        self.settle()
        self._note(microbatch)

    def done_alone(self, tenant: bytes, microbatch: Done) -> None:
        """Note the decode of the only session there was, which nothing was chosen for; put off."""
        self._put_off += ((self._chosen, (tenant,)), (self._note, (microbatch,)))
        # The first one is news: others measure this node by what it takes.
        if len(self._put_off) >= PUT_OFF or not self._stats.step_ms:
            self.settle()

    def _chosen(self, tenant: bytes) -> None:
        self._batcher.alone(tenant, self._speed.decode_rows(self._pace.limit))

    def _note(self, done: Done) -> None:
        decodes, took = len(done.lives), done.ended - done.began
        self._budget.note(done.rows, took - self._pace.cost_of(decodes))
        if decodes:
            self._pace.left(done.lives, done.began, done.ended, alone=not done.rows)
            self._stats.groups = self._pace.groups
        if not done.failed:
            self._speed.note(decodes, done.rows, done.blocks, took)
        positions = decodes + done.rows
        self._log.add(Microbatch(done.wall, done.wall + took, done.steps, decodes, positions))

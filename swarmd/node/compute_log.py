"""What the compute thread has done: counters, and its latest microbatches one by one.

Written by that thread alone, read from anywhere; nothing here decides anything.
"""

from __future__ import annotations

from dataclasses import dataclass

from swarmd.node.histogram import Histogram


@dataclass(slots=True)
class ComputeStats:
    """What the compute thread has done. Written by it alone; read from anywhere."""

    steps: int = 0
    """Session steps computed."""
    microbatches: int = 0
    tokens: int = 0
    """Positions computed."""
    busy_s: float = 0.0
    """Time in `Stage.forward`."""
    forward_cpu_s: float = 0.0
    """CPU time of the compute thread in `Stage.forward`."""
    step_ms: float = 0.0
    """What a decode step of one session takes, in milliseconds, whatever number there are."""
    prefill_ms: float = 0.0
    """What a position of a prompt takes, computed with many others; 0: not measured."""
    decodes: int = 0
    """Steps of one position."""
    decode_microbatches: int = 0
    """Microbatches with such steps in them."""
    queue_wait_s: float = 0.0
    """Time that steps have waited here, all together."""
    held_s: float = 0.0
    """Time that microbatches have waited for sessions that were about to come."""
    groups: int = 1
    """Into how many microbatches the decoding sessions fall at the moment."""
    alive_at: float = 0.0
    """When the thread last went round its loop, by the monotonic clock."""


@dataclass(slots=True)
class Microbatch:
    """When it was computed, by the wall clock in seconds, and what was in it."""

    began: float
    ended: float
    steps: int
    decodes: int
    positions: int


class MicrobatchLog:
    """The latest microbatches. Written by the compute thread; may be read from anywhere."""

    def __init__(self, size: int = 2048) -> None:
        self.sizes = Histogram((1, 2, 4, 8, 16, 32, 64, 128, 256))
        """Steps in a microbatch, of all that have been."""
        self.seconds = Histogram(
            (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
        )
        """Time that a microbatch took."""
        self._ring: list[Microbatch | None] = [None] * size
        self._count = 0

    def add(self, interval: Microbatch) -> None:
        self._ring[self._count % len(self._ring)] = interval
        self._count += 1
        self.sizes.observe(interval.steps)
        self.seconds.observe(interval.ended - interval.began)

    def latest(self) -> list[Microbatch]:
        """Return what is there, oldest first."""
        held = [interval for interval in self._ring.copy() if interval is not None]
        return sorted(held, key=lambda interval: interval.began)

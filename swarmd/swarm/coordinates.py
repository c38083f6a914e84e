"""Network coordinates: a point per peer, such that distances predict round trip times.

Vivaldi with heights, after Dabek, Cox, Kaashoek and Morris, "Vivaldi: a decentralized network
coordinate system" (SIGCOMM 2004). Who measures round trips, and when, is the node's business.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

ERROR_GAIN = 0.25
MOVE_GAIN = 0.25
"""The paper's c_e and c_c."""
UNKNOWN = (0.0, 0.0, 1.0)
"""For a peer without a coordinate: 2 ms of round trip to another one."""
MIN_HEIGHT_MS = 0.01
MAX_RTT_MS = 60_000.0
MAX_MS = 1e5
"""Of each component: a coordinate further out is nobody's."""
MAX_STEP_MS = 200.0
"""That one round trip moves a peer: who lies about its place does not drag others far away."""


@dataclass(frozen=True, slots=True)
class Coordinate:
    """A point in the plane and a height above it (the access link), in milliseconds."""

    x: float = 0.0
    y: float = 0.0
    height: float = MIN_HEIGHT_MS
    error: float = 1.0
    """Relative error of predictions made from here; 1 means that nothing is known yet."""

    @property
    def announced(self) -> tuple[float, float, float]:
        """What others are told: x, y, height."""
        return self.x, self.y, self.height


def rtt_ms(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Return the predicted round trip between two peers (x, y, height); () is unknown."""
    ax, ay, a_height = a or UNKNOWN
    bx, by, b_height = b or UNKNOWN
    return math.hypot(ax - bx, ay - by) + a_height + b_height


def update(
    own: Coordinate,
    other: tuple[float, ...],
    measured_ms: float,
    other_error: float = 0.5,
    angle: float = 0.0,
) -> Coordinate:
    """Return `own`, moved to where it explains a measured round trip better.

    `angle` (radians) is the direction in which two peers at the same point part; callers draw it.
    A peer that has no coordinate, or a round trip that is none, changes nothing.
    """
    if not is_coordinate(other) or not 0 < measured_ms <= MAX_RTT_MS:
        return own
    predicted = rtt_ms(own.announced, other)
    trust = own.error / (own.error + max(other_error, 1e-3))
    miss = abs(predicted - measured_ms) / measured_ms
    error = miss * ERROR_GAIN * trust + own.error * (1 - ERROR_GAIN * trust)
    step = MOVE_GAIN * trust * (measured_ms - predicted)
    step = max(-MAX_STEP_MS, min(MAX_STEP_MS, step))
    # The unit vector from the other to us; with heights its length is that of the whole prediction.
    dx, dy = own.x - other[0], own.y - other[1]
    plane = math.hypot(dx, dy)
    if plane < 1e-9:
        dx, dy, plane = math.cos(angle), math.sin(angle), 1.0
    height = own.height + step * _share(own.height + other[2], predicted)
    return Coordinate(
        x=_within(own.x + step * dx / plane * _share(plane, predicted)),
        y=_within(own.y + step * dy / plane * _share(plane, predicted)),
        height=max(MIN_HEIGHT_MS, _within(height)),
        error=min(1.0, max(0.01, error)),
    )


def is_coordinate(numbers: tuple[float, ...]) -> bool:
    """Whether these are x, y and height of a place that a peer can have."""
    return (
        len(numbers) == 3 and all(abs(number) <= MAX_MS for number in numbers) and numbers[2] >= 0
    )


def _within(ms: float) -> float:
    return max(-MAX_MS, min(MAX_MS, ms))


def _share(part: float, whole: float) -> float:
    """How much of a move falls to one component of the vector."""
    return min(1.0, part / whole) if whole > 0 else 1.0

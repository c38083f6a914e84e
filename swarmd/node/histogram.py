"""How often values fell where: counts between fixed bounds. Shown by `swarmd.node.metrics`."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate


class Histogram:
    """Written by one thread, a microsecond per value; may be read from anywhere.

    A reader in the middle of a write may see the sum one value behind the counts.
    """

    def __init__(self, bounds: Iterable[float]) -> None:
        self._bounds: Sequence[float] = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self.sum = 0.0
        """Of all values."""

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def cumulative(self) -> list[tuple[float, int]]:
        """Return each bound, and how many values were at most that; the last bound is infinite."""
        bounds = (*self._bounds, float("inf"))
        return list(zip(bounds, accumulate(self._counts.copy()), strict=True))

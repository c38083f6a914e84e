"""How much of the machine other processes take while something is measured.

Ours are this process and all below it; what the hypervisor takes away counts as others'.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds since some beginning, and the moment."""

    at: float
    machine_s: float
    """Of all processes, stolen time included."""
    ours_s: float


def read_usage() -> Usage:
    """Return the counters of this moment."""
    import psutil

    return Usage(time.monotonic(), _busy(psutil.cpu_times()), _tree_s(psutil.Process()))


@dataclass(slots=True)
class Stretch:
    """A stretch of time that is watched; known when it is over."""

    others_s: float = 0.0
    capacity_s: float = 0.0
    """All cores together."""

    @property
    def share(self) -> float:
        """Others' share of all cores; 0 while it is not over."""
        return self.others_s / self.capacity_s if self.capacity_s else 0.0


class Others:
    """Adds up, over the stretches that are watched, what others took."""

    def __init__(self, cores: int | None = None, read: Callable[[], Usage] = read_usage) -> None:
        self._cores = cores or os.cpu_count() or 1
        self._read = read
        self._all = Stretch()

    @contextmanager
    def watched(self) -> Iterator[Stretch]:
        """Count this stretch. Processes that end within it must be waited for within it."""
        before, stretch = self._read(), Stretch()
        yield stretch
        after = self._read()
        ours = after.ours_s - before.ours_s
        stretch.others_s = max(0.0, after.machine_s - before.machine_s - ours)
        stretch.capacity_s = (after.at - before.at) * self._cores
        self._all.others_s += stretch.others_s
        self._all.capacity_s += stretch.capacity_s

    def forget(self, stretch: Stretch) -> None:
        """Leave out a stretch whose figures are not used."""
        self._all.others_s -= stretch.others_s
        self._all.capacity_s -= stretch.capacity_s

    @property
    def share(self) -> float:
        """Others' share of all cores over the stretches so far; 0 before the first."""
        return self._all.share


def _busy(times: object) -> float:
    # Guests' time is part of user and nice.
    parts = ("user", "nice", "system", "irq", "softirq", "steal")
    return float(sum(getattr(times, part, 0.0) for part in parts))


def _tree_s(root: object) -> float:
    """CPU seconds of a process and all below it, those included that were waited for."""
    import psutil

    assert isinstance(root, psutil.Process)
    total = 0.0
    for process in (root, *root.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total

"""How quick the machine's memory is at the moment: what nobody's cache holds, and what streams.

Code that runs once per token finds cold caches, as the weights of all blocks have gone through them
since. What it costs in CPU time is then a number of lines of 64 bytes times their latency, and that
differs by a factor of three between machines, and on a virtual one from hour to hour.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

_LINES = 1 << 20
"""Of 64 bytes: 64 MiB, more than caches hold."""
_LOADS = 1 << 20
_WORDS = 8
"""Of 8 bytes in a line."""


def figures() -> dict[str, float]:
    """Return the latency of a load that misses all caches (ns) and the read rate of one thread
    (GB/s), both by its CPU time. Takes half a second."""
    import numpy as np

    order = np.random.default_rng(0).permutation(_LINES)
    lines = np.zeros((_LINES, _WORDS), dtype=np.int64)
    lines[order, 0] = np.roll(order, -1)  # one ring through all lines, in no order
    chase = _compiled()
    chase(lines, 1)
    began = time.thread_time()
    chase(lines, _LOADS)
    latency = (time.thread_time() - began) / _LOADS
    began = time.thread_time()
    lines.sum()
    rate = lines.nbytes / (time.thread_time() - began)
    return {"memory_latency_ns": round(1e9 * latency, 1), "memory_gb_per_s": round(rate / 1e9, 1)}


def _compiled() -> Callable[[Any, int], int]:
    import numba

    def chase(lines: Any, loads: int) -> int:
        at = 0
        for _ in range(loads):
            at = lines[at, 0]  # the next address is known only when this one has come
        return at

    return cast("Callable[[Any, int], int]", numba.njit(chase))

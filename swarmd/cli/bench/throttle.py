"""Makes processes as slow as slower machines would be: each runs a share of every few milliseconds.

Run as a process of its own (`python -m swarmd.cli.bench.throttle PERIOD_MS PID:SHARE ...`), which
stops and continues them in turn until it is killed or its parent has gone.
"""

from __future__ import annotations

import heapq
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

PERIOD_MS = 20
"""Short against a forward pass and a heartbeat, long against a switch of processes."""


def turns(shares: Mapping[int, float], period_s: float) -> Iterator[tuple[float, int, bool]]:
    """Yield `(moment, pid, whether it runs from then on)` for ever, in order of time.

    The periods of the processes begin one after the other, so that few run at the same time.
    """
    queue: list[tuple[float, int, bool]] = []
    for index, pid in enumerate(shares):
        heapq.heappush(queue, (period_s * index / len(shares), pid, True))
    while queue:
        moment, pid, runs = heapq.heappop(queue)
        yield moment, pid, runs
        stretch = shares[pid] if runs else 1.0 - shares[pid]
        if stretch < 1.0:
            heapq.heappush(queue, (moment + period_s * stretch, pid, not runs))


@contextmanager
def throttled(shares: Mapping[int, float]) -> Iterator[None]:
    """Slow these processes down while the context lasts. Shares are above 0 and up to 1."""
    words = [f"{pid}:{share}" for pid, share in shares.items()]
    command = [sys.executable, "-m", "swarmd.cli.bench.throttle", str(PERIOD_MS), *words]
    process = subprocess.Popen(command)
    try:
        yield
    finally:
        process.kill()
        process.wait()
        for pid in shares:
            _signal(pid, signal.SIGCONT)


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _main(period_ms: str, *words: str) -> None:
    pairs = (word.partition(":") for word in words)
    shares = {int(pid): float(share) for pid, _, share in pairs}
    began, parent = time.monotonic(), os.getppid()
    for moment, pid, runs in turns(shares, float(period_ms) / 1000):
        time.sleep(max(0.0, began + moment - time.monotonic()))
        if os.getppid() != parent:
            for one in shares:
                _signal(one, signal.SIGCONT)
            return
        _signal(pid, signal.SIGCONT if runs else signal.SIGSTOP)


if __name__ == "__main__":
    _main(*sys.argv[1:])

"""Threads that share the work of one call: machine code that holds no lock of the interpreter."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache

Share = tuple[int, int]
"""Pieces of work by number: the first one, and the one after the last."""


def spread(shares: list[Share], work: Callable[[int, int], None]) -> None:
    """Do the first share here and the others on threads of their own.

    An error leaves when no share runs any more: after it the caller frees what they work on.
    """
    others: list[Future[None]] = []
    try:
        for share in shares[1:]:
            others.append(_pool().submit(work, *share))
        work(*shares[0])
    finally:
        wait(others)
    for other in others:
        other.result()


def equal_shares(count: int, threads: int) -> list[Share]:
    """Cut `count` pieces, at least one, into as equal shares as there are threads, or fewer."""
    parts = max(1, min(count, threads))
    edges = [count * part // parts for part in range(parts + 1)]
    return list(itertools.pairwise(edges))


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="arithmetic")

"""Running a seed, in a process of its own if need be."""

from __future__ import annotations

import gc
import logging
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from swarmd.sim.world import World


def prepare() -> None:
    """Make ready a process that does nothing but run seeds: what is imported by now stays."""
    gc.collect()
    gc.freeze()


def run_seed(seed: int) -> tuple[int, Counter[str], str]:
    """Return the seed, what happened, and what went wrong, if anything did."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with _no_collector():
            return _run(seed)
    finally:
        logging.disable(before)  # whatever else runs in this process has its log


def _run(seed: int) -> tuple[int, Counter[str], str]:
    world = World(seed)
    try:
        world.run()
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return seed, world.history, f"{type(error).__name__} at {where.name}: {error}"
    return seed, world.history, ""


@contextmanager
def _no_collector() -> Iterator[None]:
    """Collect no cycles for a while: of a world most lives until its end, and is looked at in vain.

    What a seed leaves is a few megabytes, which are collected after it.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()

"""Running a seed, in a process of its own if need be."""

from __future__ import annotations

import logging
import traceback
from collections import Counter

from swarmd.sim.world import World


def run_seed(seed: int) -> tuple[int, Counter[str], str]:
    """Return the seed, what happened, and what went wrong, if anything did."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
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

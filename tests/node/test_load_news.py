"""What has to differ before a node looks whether its load is news to others."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from swarmd.core.clock import SystemClock
from swarmd.core.peers import ModelInfo, NodeState
from swarmd.core.span import Span
from swarmd.node.describe import Description
from swarmd.swarm.announcer import Announcer

MODEL = ModelInfo("demo", "ab" * 32, 8, 64, 512, 1024)


class AtWork:
    """A stage, its executor and its host, as far as their load goes."""

    def __init__(self) -> None:
        self.precision, self.device, self.kv_bytes_per_token = "bfloat16", "cpu", 1
        self.replay_exact = self.ragged = True
        self.budget = SimpleNamespace(total_bytes=1 << 30)
        self.stats = SimpleNamespace(step_ms=0.0, prefill_ms=0.0, tokens=0)
        self.queue_depth, self.free = 0, 1 << 30
        self.table = SimpleNamespace(sessions=set(), free_bytes=lambda: self.free)


def _late(about: Description, work: AtWork) -> None:
    about.lag_s = 0.1


def _starves(about: Description, work: AtWork) -> None:
    about.starves = True


def _opened(about: Description, work: AtWork) -> None:
    work.table.sessions.add(b"s")


def _queued(about: Description, work: AtWork) -> None:
    work.queue_depth = 5


def _filled(about: Description, work: AtWork) -> None:
    work.free //= 2


def _measured(about: Description, work: AtWork) -> None:
    work.stats.step_ms = 9.0


@pytest.mark.parametrize("change", [_late, _starves, _opened, _queued, _filled, _measured])
def test_whatever_would_be_announced_is_looked_at(
    change: Callable[[Description, AtWork], None],
) -> None:
    about = Description("p", "h:1", MODEL, Span(0, 8), "bfloat16", "cpu", SystemClock(), 1)
    loading, work = about.load(), AtWork()
    about.loaded(*cast(Any, (work, work, work)))
    before, announcer = about.load(), Announcer()
    assert loading != before
    announcer.due(about.now(NodeState.SERVING, ()), 100.0)
    work.stats.tokens += 5  # how many is told with the next announcement, whatever that is for
    assert about.load() == before
    assert announcer.due(about.now(NodeState.SERVING, ()), 101.0) is None
    change(about, work)
    assert about.load() != before
    assert announcer.due(about.now(NodeState.SERVING, ()), 102.0) is not None

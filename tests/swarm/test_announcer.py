"""A node announces itself at once when something changes, in time when nothing does."""

from __future__ import annotations

from dataclasses import replace

import pytest
from swarm_peers import NOW, peer

from swarmd.core.peers import NodeState
from swarmd.core.span import Span
from swarmd.swarm.announcer import LEASE_S, Announcer

NODE = peer(1, 0, 8, issued_at=0.0, expires_at=0.0, kv_total_bytes=1000, kv_free_bytes=1000)


def test_the_first_announcement_goes_out_at_once_under_a_lease() -> None:
    first = Announcer().due(NODE, NOW)
    assert first == replace(NODE, issued_at=NOW, expires_at=NOW + LEASE_S)


def test_nothing_new_is_announced_again_after_a_third_of_the_lease() -> None:
    announcer = Announcer()
    announcer.due(NODE, NOW)
    assert announcer.next_at(NOW) == NOW + LEASE_S / 3
    assert announcer.due(NODE, NOW + LEASE_S / 3 - 0.1) is None
    renewed = announcer.due(NODE, NOW + LEASE_S / 3)
    assert renewed is not None
    assert renewed.expires_at == NOW + LEASE_S / 3 + LEASE_S


def test_jitter_brings_renewals_forward_never_back() -> None:
    early = Announcer(jitter=0.99)
    early.due(NODE, NOW)
    assert NOW + 8 < early.next_at(NOW) < NOW + LEASE_S / 3


@pytest.mark.parametrize(
    "change",
    [
        {"state": NodeState.DRAINING},
        {"span": Span(0, 4)},
        {"address": "10.0.0.9:7420"},
        {"ragged": False},
    ],
)
def test_a_change_is_announced_at_once(change: dict[str, object]) -> None:
    announcer = Announcer()
    announcer.due(NODE, NOW)
    changed = announcer.due(replace(NODE, **change), NOW + 0.01)  # type: ignore[arg-type]
    assert changed is not None
    assert changed.issued_at > NOW


@pytest.mark.parametrize(
    "load",
    [
        {"kv_free_bytes": 700},
        {"sessions": 1},
        {"queue_depth": 5},
        {"step_ms": 0.0},
        {"lag_ms": 120.0},
    ],
)
def test_load_is_announced_about_once_a_second(load: dict[str, object]) -> None:
    announcer = Announcer()
    announcer.due(NODE, NOW)
    busy = replace(NODE, **load)  # type: ignore[arg-type]
    assert announcer.due(busy, NOW + 0.7) is None
    assert announcer.due(busy, NOW + 0.75) is not None
    assert announcer.due(busy, NOW + 2.5) is None


def test_small_changes_of_load_wait_for_the_renewal() -> None:
    announcer = Announcer()
    announcer.due(NODE, NOW)
    little = replace(NODE, kv_free_bytes=900, queue_depth=1, lag_ms=15.0, tokens_per_s=3.0)
    assert announcer.due(little, NOW + 5) is None
    renewed = announcer.due(little, NOW + 10)
    assert renewed is not None
    assert renewed.kv_free_bytes == 900


def test_leaving_is_announced_once_and_replaces_everything() -> None:
    announcer = Announcer()
    assert announcer.leave(NOW) is None
    last = announcer.due(NODE, NOW)
    gone = announcer.leave(NOW)
    assert last is not None
    assert gone is not None
    assert gone.state is NodeState.GONE
    assert gone.expires_at > last.expires_at
    assert gone.issued_at > last.issued_at
    assert announcer.leave(NOW + 1) is None
    assert announcer.due(NODE, NOW + 1) is None


def test_each_announcement_is_later_than_the_last_even_if_the_clock_steps_back() -> None:
    announcer = Announcer()
    first = announcer.due(NODE, NOW)
    second = announcer.due(NODE, NOW - 3)
    assert first is not None
    assert second is not None
    assert second.issued_at > first.issued_at
    assert second.expires_at > first.expires_at


def test_a_clock_that_was_an_hour_ahead_starts_over() -> None:
    announcer = Announcer()
    announcer.due(NODE, NOW + 3600)
    again = announcer.due(NODE, NOW)
    assert again is not None
    assert again.issued_at == NOW


def test_it_knows_from_when_on_announcements_are_its_own() -> None:
    announcer = Announcer()
    assert announcer.since(NOW) == NOW
    first = announcer.due(NODE, NOW + 1)
    announcer.due(NODE, NOW + 20)
    assert first is not None
    assert announcer.since(NOW + 20) == first.issued_at
    set_back = announcer.due(NODE, NOW - 3600)
    assert set_back is not None
    assert announcer.since(NOW + 20) <= set_back.issued_at

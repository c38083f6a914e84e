"""What a node says of its speed: of one session, over its whole span, whatever it has at work."""

from __future__ import annotations

import pytest

from swarmd.node.compute_log import ComputeStats
from swarmd.node.speed import Speed


def measured(*microbatches: tuple[int, int, int, float], blocks: int = 8) -> ComputeStats:
    """Stats after microbatches, each of so many decodes, prompt rows, blocks and seconds."""
    stats = ComputeStats(step_ms=99.0, prefill_ms=99.0)
    speed = Speed(blocks, stats)
    for microbatch in microbatches:
        speed.note(*microbatch)
    return stats


def test_a_stage_that_has_measured_nothing_says_nothing() -> None:
    assert (measured().step_ms, measured().prefill_ms) == (0.0, 0.0)


def test_a_busy_stage_is_as_quick_as_an_idle_one() -> None:
    idle = measured(*[(1, 0, 8, 0.044)] * 50)
    busy = measured(*[(size, 0, 8, 0.040 + 0.004 * size) for size in (4, 16, 8, 12) * 20])
    assert idle.step_ms == pytest.approx(44.0)
    assert busy.step_ms == pytest.approx(44.0, rel=0.02)


def test_sessions_that_use_half_of_the_span_do_not_make_it_look_twice_as_quick() -> None:
    half = measured((1, 0, 4, 0.020), (0, 100, 4, 0.1))
    assert (half.step_ms, half.prefill_ms) == pytest.approx((40.0, 2.0))


def test_a_prompt_counts_without_the_decodes_beside_it() -> None:
    steps = [(size, 0, 8, 0.040 + 0.004 * size) for size in (1, 4, 8) * 20]
    assert measured(*steps, (8, 128, 8, 0.072 + 0.128)).prefill_ms == pytest.approx(1.0, rel=0.05)
    assert measured(*steps, (8, 2, 8, 9.0)).prefill_ms == 0.0, "a few rows say nothing about many"
    assert measured(*steps, (8, 128, 8, 0.2)).step_ms == measured(*steps).step_ms

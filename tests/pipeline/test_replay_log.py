"""Cutting, joining and keeping of steps."""

from __future__ import annotations

from collections import deque

from bench_hop import SESSION, hidden, numbers
from hypothesis import given
from hypothesis import strategies as st

from swarmd.core.frames import Step
from swarmd.pipeline.replay_log import ENTRY_OVERHEAD, ReplayBudget, ReplayLog
from swarmd.pipeline.steps import ChunkPlan, cut, take


def step(position: int, *chunks: int, wants: tuple[int, ...] = ()) -> Step:
    return Step(SESSION, 1, 0, position, chunks, hidden=hidden(position, sum(chunks)), wants=wants)


sizes = st.lists(st.integers(1, 5), min_size=1, max_size=6)


@given(sizes, st.integers(0, 30), st.integers(0, 30))
def test_a_cut_keeps_the_rows_chunks_and_wants_of_its_positions(
    chunks: list[int], one: int, other: int
) -> None:
    whole = step(3, *chunks, wants=tuple(range(3, 3 + sum(chunks))))
    start, end = sorted((3 + one % (whole.length + 1), 3 + other % (whole.length + 1)))
    if start == end:
        return
    part = cut(whole, start, end)
    assert (part.position, part.end) == (start, end)
    assert numbers(part.hidden) == list(range(start, end))
    assert part.wants == tuple(range(start, end))
    borders = {3 + sum(chunks[:i]) for i in range(len(chunks) + 1)}
    kept = {start + sum(part.chunks[:i]) for i in range(len(part.chunks) + 1)}
    assert kept == {b for b in borders if start < b < end} | {start, end}


@given(sizes, st.integers(1, 12))
def test_joined_steps_hold_the_same_in_fewer_pieces(chunks: list[int], most: int) -> None:
    steps = [step(sum(chunks[:i]), size) for i, size in enumerate(chunks)]
    line, joined = deque(steps), []
    while line:
        joined.append(take(line, most))
    assert [size for part in joined for size in part.chunks] == chunks
    assert [n for part in joined for n in numbers(part.hidden)] == list(range(sum(chunks)))
    assert all(part.length <= most or len(part.chunks) == 1 for part in joined)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 20), st.integers(1, 8))
def test_a_sequence_is_cut_the_same_wherever_one_begins(
    prompt: int, chunk: int, output: int, most: int
) -> None:
    plan, known = ChunkPlan(prompt, chunk), prompt + output

    def borders(position: int, most: int) -> set[int]:
        found = set()
        while position < known:
            for size in plan.next(position, known, most):
                found.add(position)
                position += size
        return found

    whole = borders(0, 1)
    for position in range(known):
        start = plan.floor(position)
        assert start in whole
        assert start <= position < min({b for b in whole if b > start} | {known})
        assert borders(start, most) == {b for b in whole if b >= start}


def test_a_log_gives_back_what_it_was_given() -> None:
    log = ReplayLog(ReplayBudget(1 << 20))
    log.append(step(0, 4))
    log.append(step(4, 1))
    assert [numbers(s.hidden) for s in log.since(2)] == [[2, 3], [4]]
    log.truncate(3)
    assert (log.start, log.end) == (0, 3)
    log.append(step(3, 2))
    assert [numbers(s.hidden) for s in log.since(0)] == [[0, 1, 2], [3, 4]]


def test_over_budget_the_oldest_positions_of_the_longest_session_go_first() -> None:
    budget = ReplayBudget(4 * (ENTRY_OVERHEAD + 16))
    long, short = ReplayLog(budget), ReplayLog(budget)
    for position in range(4):
        long.append(step(position, 1))
    for position in range(2):
        short.append(step(position, 1))
    assert budget.enforce([short, long]) == 2
    assert (long.start, long.end, short.start) == (2, 4, 0)
    assert budget.used <= budget.limit
    assert [s.position for s in long.since(0)] == [2, 3]


def test_a_log_that_is_cut_below_its_start_is_empty_there() -> None:
    budget = ReplayBudget(0)
    log = ReplayLog(budget)
    log.append(step(0, 4))
    budget.enforce([log])
    assert (log.start, log.end) == (4, 4)
    log.truncate(2)
    assert (log.start, log.end, budget.used) == (2, 2, 0)
    log.append(step(2, 1))
    assert log.end == 3

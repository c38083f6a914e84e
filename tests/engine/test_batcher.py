"""Microbatches: nothing starves, blocks do not mix, a decode waits for one longer step at most."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.core.turns import Turns
from swarmd.engine.batcher import CREDIT, DEBT, DECODE_ROWS, PATIENCE, Batcher, Work

works = st.lists(
    st.builds(
        Work,
        key=st.binary(min_size=16, max_size=16),
        position=st.integers(0, 1000),
        chunks=st.lists(st.integers(1, 300), min_size=1, max_size=3).map(tuple),
        entry=st.sampled_from([0, 2]),
        exit=st.sampled_from([4, 6]),
        tenant=st.sampled_from([b"", b"a", b"b"]),
    ),
    max_size=40,
    unique_by=lambda work: work.key,
)


def decode(key: int, entry: int = 0, tenant: bytes = b"") -> Work:
    return Work(bytes([key]) * 16, 10, (1,), entry, 4, tenant)


def prefill(key: int, rows: int = 256, tenant: bytes = b"") -> Work:
    return Work(bytes([key]) * 16, 0, (rows,), 0, 4, tenant)


@given(works)
def test_a_microbatch_keeps_its_rules(ready: list[Work]) -> None:
    chosen = Batcher(ragged=True, max_decodes=8, max_rows=512).choose(ready)
    assert bool(chosen) == bool(ready)
    first = {work.tenant: work for work in reversed(ready)}.values()
    assert all(work in first for work in chosen[:1]), "the longest waiting one of a tenant must run"
    assert len({(work.entry, work.exit) for work in chosen}) <= 1
    assert sum(not work.is_decode for work in chosen) <= 1
    assert sum(work.is_decode for work in chosen) <= 8
    assert len(chosen) <= 1 or sum(work.rows for work in chosen) <= 512


def test_decodes_run_together_with_one_prefill() -> None:
    ready = [decode(1), prefill(2), decode(3), prefill(4), decode(5)]
    assert Batcher(ragged=True).choose(ready) == [ready[0], ready[1], ready[2], ready[4]]


def test_other_blocks_wait_for_their_turn() -> None:
    ready = [decode(1), decode(2, entry=2), decode(3)]
    assert Batcher(ragged=True).choose(ready) == [ready[0], ready[2]]


def test_a_family_that_cannot_share_a_forward_runs_alone() -> None:
    assert Batcher(ragged=False).choose([decode(1), decode(2)]) == [decode(1)]


def rounds(batcher: Batcher, ready: list[Work], count: int, limit: int) -> list[list[Work]]:
    """Microbatches of sessions that are ready again at once, behind all others."""
    made = []
    for _ in range(count):
        chosen = batcher.choose(ready, limit)
        ready = [work for work in ready if work not in chosen] + chosen
        made.append(chosen)
    return made


def test_one_decode_is_in_every_microbatch_beside_a_crowd_of_somebody_else() -> None:
    crowd, one = [decode(n, tenant=b"many") for n in range(30)], decode(99, tenant=b"one")
    made = rounds(Batcher(ragged=True), [*crowd, one], 20, limit=8)
    assert all(one in chosen for chosen in made)
    assert all(len(chosen) == 8 for chosen in made)
    counts = [sum(work in chosen for chosen in made) for work in crowd]
    assert max(counts) - min(counts) <= 1, "within a tenant all are served alike"


def test_one_prompt_takes_turns_with_thirty_of_somebody_else() -> None:
    crowd, one = [prefill(n, tenant=b"many") for n in range(30)], prefill(99, tenant=b"one")
    busy = [decode(200 + n, tenant=tenant) for n, tenant in enumerate((b"many", b"one", b"third"))]
    for others, least in (([], 9), (busy, 6)):
        made = rounds(Batcher(ragged=True), [*crowd, one, *others], 20, limit=8)
        assert sum(one in chosen for chosen in made) >= least


def test_tenants_take_turns_also_where_sessions_run_alone() -> None:
    crowd, one = [decode(n, tenant=b"many") for n in range(30)], decode(99, tenant=b"one")
    made = rounds(Batcher(ragged=False), [*crowd, one], 20, limit=8)
    assert sum(chosen == [one] for chosen in made) == 10


@given(works)
def test_whoever_waits_runs_before_long(ready: list[Work]) -> None:
    batcher, waiting = Batcher(ragged=True, max_decodes=8, max_rows=512), ready
    for _ in range((PATIENCE + 1) * len(ready)):
        chosen = batcher.choose(waiting, 2)
        waiting = [work for work in waiting if work not in chosen] + chosen
        ready = [work for work in ready if work not in chosen]
        if not ready:
            break
    assert not ready


def shares(ready: list[Work], count: int = 400) -> dict[bytes, float]:
    """What each tenant gets of the machine's time, of sessions that always have more to do."""
    made = rounds(Batcher(ragged=True), ready, count, limit=8)
    spent: dict[bytes, float] = {}
    for work in (work for chosen in made for work in chosen):
        cost = DECODE_ROWS if work.is_decode else work.rows
        spent[work.tenant] = spent.get(work.tenant, 0.0) + cost
    return {tenant: cost / sum(spent.values()) for tenant, cost in spent.items()}


def test_thirty_long_prompts_get_no_more_time_than_a_short_one_of_somebody_else() -> None:
    crowd = [prefill(n, rows=512, tenant=b"many") for n in range(30)]
    short = prefill(99, rows=64, tenant=b"one")
    assert shares([*crowd, short])[b"one"] == pytest.approx(0.5, abs=0.02)


def test_decodes_count_when_their_owner_wants_a_prompt_computed_as_well() -> None:
    greedy = [decode(n, tenant=b"many") for n in range(7)]
    greedy += [prefill(100 + n, rows=64, tenant=b"many") for n in range(30)]
    other = prefill(99, rows=64, tenant=b"one")
    assert shares([*greedy, other])[b"one"] == pytest.approx(0.5, abs=0.02)


def test_who_wants_little_gets_all_of_that_and_the_rest_is_not_left_lying() -> None:
    crowd = [prefill(n, rows=512, tenant=b"many") for n in range(30)]
    one = decode(99, tenant=b"one")
    made = rounds(Batcher(ragged=True), [*crowd, one], 50, limit=8)
    assert all(one in chosen and len(chosen) == 2 for chosen in made)


def test_alone_a_tenant_loses_nothing_by_what_it_had_before_others_came() -> None:
    crowd = [prefill(n, rows=512, tenant=b"many") for n in range(30)]
    batcher = Batcher(ragged=True)
    assert all(len(chosen) == 1 for chosen in rounds(batcher, crowd, 1000, limit=8))
    both = rounds(batcher, [*crowd, prefill(99, rows=512, tenant=b"one")], 20, limit=8)
    tenants = [chosen[0].tenant for chosen in both]
    assert tenants.count(b"one") in (9, 10), "who comes late owes nothing, and is owed nothing"
    assert tenants[:2].count(b"one") == 1


def test_steps_of_other_blocks_run_though_their_owner_is_served_all_the_time() -> None:
    mine = [decode(n, tenant=b"mine") for n in range(8)]
    apart = decode(50, entry=2, tenant=b"mine")
    other = prefill(99, rows=64, tenant=b"other")
    made = rounds(Batcher(ragged=True), [*mine, apart, other], 100, limit=8)
    assert sum(apart in chosen for chosen in made) >= 100 // (PATIENCE + 10)


def test_who_is_alone_counts_as_if_others_had_been_looked_at() -> None:
    """`serve_alone` is `in_order` and `serve` where there is one owner, in less time."""
    draw = random.Random(4)
    ways = Turns(CREDIT, DEBT), Turns(CREDIT, DEBT)
    for _ in range(2000):
        owners = [bytes([draw.randrange(4)]) for _ in range(draw.choice((1, 1, 1, 2, 5)))]
        cost = draw.choice((4.0, 64.0, 1000.0))
        rows = [ways[0].in_order(owners, bytes, lambda _, cost=cost: cost)]
        ways[0].serve(rows[0][0], cost)
        if len(owners) == 1:
            ways[1].serve_alone(owners[0], cost)
        else:
            rows.append(ways[1].in_order(owners, bytes, lambda _, cost=cost: cost))
            ways[1].serve(rows[1][0], cost)
            assert rows[0] == rows[1]
        assert ways[0]._had == ways[1]._had
        assert ways[0]._least == ways[1]._least

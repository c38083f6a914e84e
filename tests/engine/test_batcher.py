"""Microbatches: nothing starves, blocks do not mix, a decode waits for one longer step at most."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swarmd.engine.batcher import Batcher, Work

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
    batcher = Batcher(ragged=True, max_decodes=8, max_rows=512)
    made = rounds(batcher, ready, 3 * len(ready), limit=2)
    assert all(any(work in chosen for chosen in made) for work in ready)

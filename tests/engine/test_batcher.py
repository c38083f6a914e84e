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
    ),
    max_size=40,
    unique_by=lambda work: work.key,
)


def decode(key: int, entry: int = 0) -> Work:
    return Work(bytes([key]) * 16, 10, (1,), entry, 4)


def prefill(key: int, rows: int = 256) -> Work:
    return Work(bytes([key]) * 16, 0, (rows,), 0, 4)


@given(works)
def test_a_microbatch_keeps_its_rules(ready: list[Work]) -> None:
    chosen = Batcher(ragged=True, max_decodes=8, max_rows=512).choose(ready)
    assert bool(chosen) == bool(ready)
    assert chosen[:1] == ready[:1], "the longest waiting one must run"
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

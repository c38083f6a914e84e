"""Byte ranges add up, and a journal of them never promises what is not there."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.engine.byte_ranges import Range, cut, merge, subtract, total
from swarmd.engine.partial_file import PartialFile
from swarmd.engine.range_download import FetchPolicy, plan

RANGES = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 12)).map(lambda t: (t[0], t[0] + t[1])),
    max_size=6,
)


def points(ranges: list[Range]) -> set[int]:
    """The simple version: a set of positions."""
    return {position for start, end in ranges for position in range(start, end)}


@given(RANGES, RANGES)
def test_ranges_behave_as_sets_of_positions(a: list[Range], b: list[Range]) -> None:
    assert points(merge(a)) == points(a)
    assert points(subtract(a, b)) == points(a) - points(b)
    for result in (merge(a), subtract(a, b)):
        assert total(result) == len(points(result))
        assert all(start < end for start, end in result)
        assert all(left[1] < right[0] for left, right in pairwise(result))


@given(RANGES, RANGES, st.integers(0, 8), st.integers(1, 9))
def test_a_plan_covers_what_is_missing_and_nothing_twice(
    wanted: list[Range], held: list[Range], gap: int, piece: int
) -> None:
    missing = subtract(wanted, held)
    requests = plan(missing, held, FetchPolicy(gap_bytes=gap, piece_bytes=piece))
    covered = points(requests)
    assert covered >= points(missing)
    assert not covered & points(held)
    assert total(requests) == len(covered)
    assert all(end - start <= piece for start, end in requests)
    extra = covered - points(missing)
    assert total(merge([(p, p + 1) for p in extra])) <= gap * max(0, len(missing) - 1)


def test_pieces_are_cut_to_size() -> None:
    assert list(cut([(0, 10), (20, 23)], 4)) == [(0, 4), (4, 8), (8, 10), (20, 23)]


@pytest.fixture
def partial(tmp_path: Path) -> PartialFile:
    return PartialFile(tmp_path / "blobs" / "blob", 100)


def test_only_what_was_recorded_is_held(partial: PartialFile) -> None:
    assert partial.held() == []
    with partial.writing() as writer:
        writer.write(10, b"x" * 30)
        writer.record(10, 25)
    assert partial.held() == [(10, 25)]
    assert partial.missing([(0, 30)]) == [(0, 10), (25, 30)]
    assert partial.read(10, 12) == b"xx"
    assert partial.path.stat().st_size == 100


def test_a_line_torn_by_a_crash_is_dropped_and_does_not_spoil_the_next(
    partial: PartialFile,
) -> None:
    with partial.writing() as writer:
        writer.record(0, 10)
    journal = partial.path.with_name("blob.ranges")
    with journal.open("ab") as file:
        file.write(b"3")
    assert partial.held() == [(0, 10)]
    with partial.writing() as writer:
        writer.record(0, 40)
        writer.record(50, 60)
    assert journal.read_bytes() == b"0 10\n0 40\n50 60\n"
    assert partial.held() == [(0, 40), (50, 60)]


@pytest.mark.parametrize(
    "journal", [b"nonsense\n", b"-1 5\n", b"5 5\n", b"5 4\n", b"0 101\n", b"1 2 3\n", b"\xff\n"]
)
def test_lines_that_make_no_sense_promise_nothing(partial: PartialFile, journal: bytes) -> None:
    with partial.writing():
        pass
    partial.path.with_name("blob.ranges").write_bytes(journal + b"20 30\n")
    assert partial.held() == [(20, 30)]


def test_a_file_of_another_length_starts_anew(partial: PartialFile) -> None:
    with partial.writing() as writer:
        writer.record(0, 100)
    with partial.path.open("r+b") as file:
        file.truncate(50)
    assert partial.held() == []
    with partial.writing():
        pass
    assert partial.held() == []


def test_a_data_file_that_was_deleted_starts_anew(partial: PartialFile) -> None:
    with partial.writing() as writer:
        writer.record(0, 100)
    partial.path.unlink()
    assert partial.held() == []
    with partial.writing() as writer:
        writer.record(5, 6)
    assert partial.held() == [(5, 6)]


def test_while_another_writes_one_waits_and_may_give_up(partial: PartialFile) -> None:
    class GivenUp(Exception):
        pass

    def give_up() -> None:
        raise GivenUp

    with partial.writing() as writer:
        with pytest.raises(GivenUp), PartialFile(partial.path, 100).writing(give_up):
            pytest.fail("two write at once")
        writer.record(0, 5)
    with PartialFile(partial.path, 100).writing(give_up):
        assert partial.held() == [(0, 5)]


def test_others_may_read_the_journal(partial: PartialFile) -> None:
    with partial.writing():
        pass
    assert partial.path.with_name("blob.ranges").stat().st_mode & 0o777 == 0o644


def test_what_proved_wrong_is_forgotten(partial: PartialFile) -> None:
    with partial.writing() as writer:
        writer.record(0, 100)
        partial.forget()
    assert partial.held() == []
    assert not partial.path.exists()

"""The order in which sessions that wait for KV may try."""

from __future__ import annotations

from swarmd.node.waiting_line import WaitingLine

A, B, C = b"a", b"b", b"c"


def test_nobody_waits_behind_an_empty_line() -> None:
    assert WaitingLine().ahead_of(A, 0) == 0
    assert WaitingLine().first is None


def test_first_come_first_served_and_a_place_is_kept() -> None:
    line = WaitingLine()
    line.join(A, 0)
    line.join(B, 0)
    line.join(A, 0)
    assert [line.ahead_of(x, 0) for x in (A, B, C)] == [0, 1, 2]
    assert line.first == A
    line.leave(A)
    line.leave(A)
    assert line.first == B
    assert [line.ahead_of(x, 0) for x in (B, A)] == [0, 1]
    assert len(line) == 1


def test_a_lower_number_goes_first() -> None:
    line = WaitingLine()
    line.join(A, 5)
    line.join(B, 0)
    assert [line.ahead_of(A, 5), line.ahead_of(B, 0)] == [1, 0]
    assert line.ahead_of(C, -1) == 0
    assert line.ahead_of(C, 0) == 1
    assert line.ahead_of(C, 9) == 2

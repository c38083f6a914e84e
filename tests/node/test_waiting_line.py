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


def served(line: WaitingLine, count: int) -> list[bytes]:
    """Who gets room, one after the other."""
    order = []
    for _ in range(count):
        first = line.first
        assert first is not None
        order.append(first)
        line.leave(first, served=True)
    return order


def test_one_session_does_not_wait_for_all_thirty_of_somebody_else() -> None:
    line = WaitingLine()
    crowd = [b"crowd %d" % n for n in range(30)]
    for session in crowd:
        line.join(session, 0, b"many")
    served(line, 3)
    line.join(A, 0, b"one")
    assert line.ahead_of(A, 0) <= 1
    line.join(B, 0, b"one")
    assert line.ahead_of(B, 0) <= 3
    assert [who for who in served(line, 29) if who in crowd] == crowd[3:]


def test_tenants_alternate_and_each_is_served_in_order() -> None:
    line = WaitingLine()
    for n in range(4):
        line.join(b"m%d" % n, 0, b"many")
    for n in range(2):
        line.join(b"f%d" % n, 0, b"few")
    assert served(line, 6) == [b"m0", b"f0", b"m1", b"f1", b"m2", b"m3"]


def test_newcomers_however_many_do_not_keep_anybody_waiting_for_ever() -> None:
    line = WaitingLine()
    for n in range(5):
        line.join(b"m%d" % n, 0, b"many")
    line.leave(b"m0", served=True)
    waited = 0
    while b"m4" in line._places:
        line.join(b"new %d" % waited, 0, b"tenant %d" % waited)
        served(line, 1)
        waited += 1
        assert waited < 30
    assert waited > 4


def test_a_priority_goes_before_turns() -> None:
    line = WaitingLine()
    for n in range(3):
        line.join(b"m%d" % n, -1, b"many")
    line.join(A, 0, b"one")
    assert line.ahead_of(A, 0) == 3


def test_who_asks_for_much_room_gets_as_much_of_it_as_who_asks_for_little() -> None:
    line = WaitingLine()
    for n in range(10):
        line.join(b"m%d" % n, 0, b"much", 8000)
    for n in range(40):
        line.join(b"l%d" % n, 0, b"little", 1000)
    order = served(line, 27)
    assert sum(session.startswith(b"m") for session in order) == 3

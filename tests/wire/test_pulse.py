"""When heartbeats are owed."""

from __future__ import annotations

from itertools import pairwise

from swarmd.wire.pulse import BEATS_LEFT_OUT, Pulse

EVERY = 0.5


def beats(writes: list[float], until: float) -> list[float]:
    """The times of heartbeats when frames are written at the given times."""
    pulse, sent, now, ahead = Pulse(EVERY, 0.0), [], 0.0, list(writes)
    pulse.spares = True
    while now <= until:
        if pulse.take(now):
            sent.append(round(now, 3))
        while ahead and ahead[0] <= pulse.due_at:
            pulse.wrote(ahead.pop(0))
        now = pulse.due_at
    return sent


def test_a_link_that_carries_nothing_beats_steadily() -> None:
    assert beats([], 2.0) == [0.0, 0.5, 1.0, 1.5, 2.0]


def test_frames_stand_for_heartbeats_but_not_for_all_of_them() -> None:
    busy = [i / 10 for i in range(1, 200)]
    assert beats(busy, 15.0) == [0.0, 5.0, 10.0, 15.0]
    assert (1 + BEATS_LEFT_OUT) * EVERY == 5.0


def test_the_peer_hears_something_in_every_interval() -> None:
    writes = [0.3, 0.9, 2.05, 2.1]
    heard = sorted([*writes, *beats(writes, 6.0)])
    gaps = [after - before for before, after in pairwise(heard)]
    assert max(gaps) <= EVERY + 1e-9
    assert len(heard) - len(writes) < 6.0 / EVERY


def test_asked_too_early_it_sends_nothing() -> None:
    pulse = Pulse(EVERY, 0.0)
    assert pulse.take(0.0)
    assert not pulse.take(0.4)


def test_no_frame_stands_for_a_heartbeat_before_a_round_trip_is_measured() -> None:
    pulse = Pulse(EVERY, 0.0)
    assert pulse.take(0.0)
    pulse.wrote(0.3)
    assert pulse.due_at == EVERY
    pulse.spares = True
    pulse.wrote(0.4)
    assert pulse.due_at == 0.4 + EVERY

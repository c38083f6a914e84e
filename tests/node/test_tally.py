"""What is put off while a session decodes alone comes to the same as if it were not."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from swarmd.engine.batcher import Batcher, Work
from swarmd.node.compute_log import ComputeStats, MicrobatchLog
from swarmd.node.pace import Pace
from swarmd.node.speed import Speed
from swarmd.node.tally import PUT_OFF, Done, Tally

A, B = b"a" * 16, b"b" * 16


class Bench:
    """A tally with all that it writes to."""

    def __init__(self) -> None:
        self.stats, self.log = ComputeStats(), MicrobatchLog()
        self.batcher, self.pace = Batcher(ragged=True), Pace()
        self.speed = Speed(4, self.stats)
        self.tally = Tally(self.stats, self.log, self.batcher, self.pace, self.speed)
        self.now = 100.0

    def state(self) -> dict[str, Any]:
        """All that has been learnt."""
        parts = (self.pace, self.pace._cost, self.speed, self.speed._decode, self.batcher._turns)
        seen: dict[str, Any] = {}
        for part in parts:
            plain = {k: v for k, v in vars(part).items() if not hasattr(v, "__dict__")}
            seen |= {f"{type(part).__name__} {len(seen)} {k}": v for k, v in plain.items()}
        return seen | {"stats": self.stats, "log": self.log.latest()}

    def done(self, session: bytes, took: float, rows: int = 0) -> Done:
        """What came to be of a microbatch that takes so long from now on."""
        began, self.now = self.now, self.now + took
        lives = {} if rows else {session: 0.25}
        return Done(began, self.now, 1e9 + began, 1, lives, rows, 2, failed=False)

    def decode(self, session: bytes, took: float, *, alone: bool) -> None:
        self.now += 0.5  # away
        self.tally.came(session, 0.25, self.now)
        if alone:
            self.tally.done_alone(b"me", self.done(session, took))
        else:
            self.tally.choose([Work(session, 7, (1,), 0, 4, b"me")])
            self.tally.done(self.done(session, took))

    def prompt(self, session: bytes) -> None:
        self.tally.choose([Work(session, 0, (90,), 0, 4, b"other")])
        self.tally.done(self.done(session, 0.4, rows=90))


@pytest.mark.parametrize("tokens", [1, 5, PUT_OFF, 100])
def test_it_comes_to_the_same(tokens: int) -> None:
    lone, eager = Bench(), Bench()
    for bench in (lone, eager):
        bench.prompt(A)
        for number in range(tokens):
            bench.decode(A, 0.05 + number / 1000, alone=bench is lone)
    lone.tally.settle()
    assert lone.state() == eager.state()
    assert lone.stats.step_ms > 50


def test_notes_are_put_off_but_not_for_ever_and_the_first_not_at_all() -> None:
    bench = Bench()
    noted = []
    for _ in range(1 + PUT_OFF):
        bench.decode(A, 0.05, alone=True)
        noted.append(len(bench.log.latest()))
    assert noted[0] == noted[1] == 1
    assert noted[-1] > PUT_OFF // 2
    assert max(b - a for a, b in itertools.pairwise(noted)) == PUT_OFF // 3


@pytest.mark.parametrize(
    "look",
    [
        lambda tally: tally.choose([]),
        lambda tally: tally.chunk_rows(),
        lambda tally: tally.hold_until(1, 0.0, 0.0),
        lambda tally: tally.gone(B),
    ],
)
def test_nothing_is_decided_without_what_was_put_off(look: Any) -> None:
    bench = Bench()
    for _ in range(4):
        bench.decode(A, 0.05, alone=True)
    assert len(bench.log.latest()) < 4
    look(bench.tally)
    assert len(bench.log.latest()) == 4

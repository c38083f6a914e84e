"""Many nodes decide by views that are late: they converge, rest, and close gaps in seconds."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
from swarm_peers import NOW, peer, peer_id

from swarmd.core.peers import Announcement, NodeState
from swarmd.core.span import Span, missing_blocks
from swarmd.swarm.mover import JITTER_S, REST_S, SETTLE_S, Mover
from swarmd.swarm.rebalance import Move, Reason
from swarmd.swarm.view import View

BLOCKS = 12
TICK_S = 0.25


class Simulated:
    """Nodes, and announcements that others see up to half a second late."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.now = 0.0
        self.said: dict[str, list[tuple[float, Announcement]]] = {}
        self.movers: dict[str, Mover] = {}
        self.busy: dict[str, tuple[float, Move]] = {}
        self.gone: set[str] = set()
        self.moves: list[tuple[float, str, Move]] = []

    def join(self, number: int, start: int, end: int, step_ms: float = 0.0) -> None:
        self.say(peer(number, start, end, BLOCKS, step_ms=step_ms, moves=True))
        self.movers[peer_id(number)] = Mover(end - start)

    def kill(self, number: int) -> None:
        """Others notice at once (they look after each other); the announcement stays."""
        self.gone.add(peer_id(number))
        del self.movers[peer_id(number)]
        self.busy.pop(peer_id(number), None)

    def say(self, own: Announcement) -> None:
        own = replace(own, issued_at=NOW + self.now, expires_at=NOW + 1e9)
        delay = self.chance.uniform(0.0, 0.5)
        self.said.setdefault(own.peer_id, []).append((self.now + delay, own))

    def own(self, peer_id: str) -> Announcement:
        return self.said[peer_id][-1][1]

    def seen(self) -> list[Announcement]:
        latest = (
            max((a for at, a in said if at <= self.now), key=lambda a: a.issued_at, default=None)
            for said in self.said.values()
        )
        return [a for a in latest if a is not None]

    def run(self, seconds: float) -> None:
        until, before = self.now + seconds, None
        while self.now < until:
            self.now += TICK_S
            seen = self.seen()
            # Who is at rest and sees the same decides the same.
            news = seen != before
            view, before = View(seen, NOW + self.now), seen
            for name, mover in list(self.movers.items()):
                if news or not mover.at_rest or name in self.busy:
                    self.step(name, view)

    def step(self, name: str, view: View) -> None:
        mover, own, gone = self.movers[name], self.own(name), frozenset(self.gone)
        if name in self.busy:
            self.carry_on(name, mover, own)
            return
        move = mover.look(view, own, self.now, self.chance.random(), gone)
        if move is not None and not mover.confirm(view, own, gone):
            mover.ended(self.now)
        elif move is not None:
            self.moves.append((self.now, name, move))
            self.busy[name] = (self.now + self.chance.uniform(1.0, 20.0), move)
            self.say(replace(own, span=move.span, state=NodeState.LOADING, plan=move.span))
        elif mover.plan != own.plan:
            self.say(replace(own, plan=mover.plan))

    def carry_on(self, name: str, mover: Mover, own: Announcement) -> None:
        at, _ = self.busy[name]
        if self.now >= at:
            del self.busy[name]
            self.say(replace(own, state=NodeState.SERVING, plan=None))
            mover.ended(self.now)

    def missing(self) -> int:
        spans = [self.own(n).span for n in self.movers if self.own(n).state is NodeState.SERVING]
        return sum(end - start for start, end in missing_blocks(spans, BLOCKS))


@pytest.mark.parametrize("crowd", [2, 10])
def test_of_all_that_could_close_a_gap_one_goes_and_it_goes_within_seconds(crowd: int) -> None:
    for seed in range(10):
        swarm = Simulated(seed)
        for number in range(crowd):
            swarm.join(number, 0, 6)
        swarm.run(JITTER_S[Reason.GAP] + SETTLE_S + 2.0)
        assert [move.span for _, _, move in swarm.moves] == [Span(6, 12)], f"seed {seed}"


def test_the_only_holder_is_killed_and_one_steps_in() -> None:
    swarm = Simulated(1)
    for number, (start, end) in enumerate([(0, 6), (0, 6), (6, 12)]):
        swarm.join(number, start, end)
    swarm.run(60.0)
    assert not swarm.moves
    swarm.kill(2)
    swarm.run(5.0)
    assert [move for _, _, move in swarm.moves] == [Move(Span(6, 12), Reason.GAP)]
    swarm.run(30.0)
    assert swarm.missing() == 0


@pytest.mark.parametrize("seed", range(6))
def test_machines_that_come_and_go_are_covered_again_and_again_and_then_rest(seed: int) -> None:
    swarm = Simulated(seed)
    chance = random.Random(1000 + seed)
    for number in range(8):
        if number:
            swarm.run(chance.uniform(0.0, 20.0))
        length = chance.randint(3, 8)
        start = chance.randint(0, BLOCKS - length)
        swarm.join(number, start, start + length, length * chance.choice((1.0, 2.0, 5.0)))
    for victim in chance.sample(range(8), 2):
        swarm.run(chance.uniform(0.0, 300.0))
        swarm.kill(victim)
    swarm.run(3600.0)
    assert swarm.missing() == 0
    at_rest = len(swarm.moves)
    assert at_rest <= 30
    swarm.run(3600.0)
    assert len(swarm.moves) == at_rest


def test_a_node_that_has_moved_rests_before_it_moves_for_speed_again() -> None:
    for seed in range(3):
        swarm = Simulated(seed)
        for number in range(6):
            swarm.join(number, 0, 6, step_ms=6.0)
        swarm.run(900.0)
        for name in swarm.movers:
            times = [at for at, who, move in swarm.moves if who == name]
            assert all(b - a >= REST_S[Reason.GAP] for a, b in itertools.pairwise(times))
        assert len({who for _, who, _ in swarm.moves}) == len(swarm.moves)


def test_who_goes_for_speed_goes_for_a_gap_once_there_is_one() -> None:
    """It has begun to go: others count on it, and sessions may wait for those blocks."""
    mover, own = Mover(6), peer(1, 0, 6, BLOCKS, moves=True)
    thin = [own, peer(2, 0, 6, BLOCKS), peer(3, 0, 6, BLOCKS), peer(4, 6, 12, BLOCKS)]
    view, now, move = View(thin, NOW), 0.0, None
    while move is None and now < 100.0:
        move, now = mover.look(view, own, now, 0.0), now + TICK_S
    assert move == Move(Span(6, 12), Reason.THIN)
    assert not mover.fills_gap(view, own)
    assert mover.confirm(view, own)
    lost = frozenset({peer_id(4)})
    assert not mover.confirm(view, own, lost), "it was not planned for that"
    assert mover.fills_gap(view, own, lost)
    assert mover.confirm(view, own, lost)
    assert not mover.confirm(view, own), "it is not missed any more"

"""Stages that decide alone, each from what it sees: together they stay busy."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field

import pytest

from swarmd.node.pace import MIN_ROWS, ChunkBudget, Pace, StepCost


@dataclass
class Line:
    """Stages in a row, sessions that go round, microbatches that take `fixed + each * n`."""

    fixed: list[float]
    each: float
    link: float
    paced: bool = True
    launched: bool = False
    now: float = 0.0
    busy: list[float] = field(default_factory=list)
    batches: list[list[int]] = field(default_factory=list)
    _order: itertools.count[int] = field(default_factory=itertools.count)

    def run(self, sessions: int, until: float) -> None:
        count = len(self.fixed)
        self.busy, self.batches = [0.0] * count, [[] for _ in range(count)]
        self._paces = [Pace(launched=self.launched) for _ in range(count)]
        self._waiting: list[list[bytes]] = [[] for _ in range(count)]
        self._free_since: list[float | None] = [0.0] * count
        self._events: list[tuple[float, int, str, int, list[bytes]]] = []
        self._half = until / 2
        self._waited: dict[bytes, float] = {}
        self._came_at: dict[bytes, float] = {}
        for i in range(sessions):
            self._at(0.001 * i, "comes", 0, [bytes([i])])
        while self._events and self._events[0][0] < until:
            self.now, _, what, stage, batch = heapq.heappop(self._events)
            if what == "comes":
                for name in batch:
                    self._paces[stage].came(name, self._waited.get(name, 0.0), self.now)
                    self._came_at[name] = self.now
                self._waiting[stage] += batch
            elif what == "done":
                self._free_since[stage] = self.now
                self._at(self.now + self.link, "comes", (stage + 1) % count, batch)
            self._start(stage)
        self.busy = [b / self._half for b in self.busy]

    def _at(self, when: float, what: str, stage: int, batch: list[bytes]) -> None:
        heapq.heappush(self._events, (when, next(self._order), what, stage, batch))

    def _start(self, stage: int) -> None:
        pace, waiting = self._paces[stage], self._waiting[stage]
        since = self._free_since[stage]
        if since is None or not waiting:
            return
        since = max(since, min(self._came_at[name] for name in waiting))
        limit = pace.limit if self.paced else len(waiting)
        hold = pace.hold_until(len(waiting), since, self.now) if self.paced else self.now
        if hold > self.now:
            self._at(hold, "look", stage, [])
            return
        chosen, self._waiting[stage] = waiting[:limit], waiting[limit:]
        took = self.fixed[stage] + self.each * len(chosen)
        if self.now > self._half:
            self.busy[stage] += took
            self.batches[stage].append(len(chosen))
        self._free_since[stage] = None
        self._at(self.now + took, "done", stage, chosen)
        for name in chosen:
            wait = self.now - self._came_at[name]
            self._waited[name] = self._waited.get(name, 0.0) + wait
        pace.left({name: self._waited[name] for name in chosen}, self.now, self.now + took)


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_equal_stages_are_all_busy(stages: int) -> None:
    line = Line([0.06] * stages, each=0.003, link=0.001)
    line.run(sessions=16, until=60.0)
    assert min(line.busy) > 0.9
    mean = [sum(sizes) / len(sizes) for sizes in line.batches]
    assert min(mean) >= 0.75 * 16 / stages


def test_it_makes_more_tokens_than_stages_that_take_all_they_find() -> None:
    tokens = []
    for paced in (True, False):
        line = Line([0.06, 0.06], each=0.003, link=0.001, paced=paced)
        line.run(sessions=16, until=60.0)
        tokens.append(sum(line.batches[0]))
    assert tokens[0] > 1.2 * tokens[1]


def test_the_slowest_of_unequal_stages_is_never_idle() -> None:
    line = Line([0.03, 0.09, 0.05], each=0.002, link=0.002)
    line.run(sessions=12, until=60.0)
    assert line.busy[1] > 0.9


def test_a_long_way_round_makes_more_groups() -> None:
    near, far = (Line([0.02, 0.02], each=0.001, link=link) for link in (0.0, 0.1))
    near.run(sessions=32, until=60.0)
    far.run(sessions=32, until=60.0)
    assert max(map(max, far.batches)) < max(map(max, near.batches))
    # A token is 0.2 s on its way and computed for at least twice 21 ms.
    assert sum(far.batches[0]) / 30 > 0.9 * 32 / (0.2 + 2 * 0.021)


def test_one_stage_alone_takes_all() -> None:
    line = Line([0.1], each=0.002, link=0.002)
    line.run(sessions=20, until=60.0)
    assert set(line.batches[0]) == {20}


@pytest.mark.parametrize("sessions", [16, 64])
def test_where_launching_is_all_that_a_step_takes_nobody_takes_turns(sessions: int) -> None:
    tokens = []
    for launched in (True, False):
        line = Line([0.027], each=0.00005, link=0.006, launched=launched)
        line.run(sessions=sessions, until=60.0)
        tokens.append(sum(line.batches[0]))
        if launched:
            assert set(line.batches[0]) == {sessions}
    assert tokens[0] > 1.4 * tokens[1]


def test_two_stages_of_launches_still_work_at_the_same_time() -> None:
    line = Line([0.02, 0.02], each=0.00005, link=0.004, launched=True)
    line.run(sessions=16, until=60.0)
    assert sum(line.batches[0]) / 30 > 0.95 * 16 / (2 * 0.0208 + 2 * 0.004)


def test_sessions_that_ended_or_fell_silent_do_not_count() -> None:
    pace = Pace()
    for name in (b"a", b"b", b"c", b"d"):
        pace.left({name: 0.0}, 0.0, 0.1)
    assert pace.limit == 4
    pace.gone(b"a")
    assert pace.limit == 3
    pace.came(b"b", 0.0, 0.2)
    pace.left({b"b": 0.0}, 100.0, 100.1)
    assert pace.limit == 1


def test_a_stage_that_has_measured_nothing_holds_nobody_back() -> None:
    assert Pace().groups == 1
    assert Pace().limit == 1


def test_a_prompt_gets_as_much_time_as_the_decodes_beside_it() -> None:
    budget = ChunkBudget()
    assert budget.rows(0.1) is None
    for _ in range(50):
        budget.note(256, 0.128)
    assert budget.rows(0.0) is None, "nobody decodes: the whole chunk"
    assert budget.rows(0.1) == 192
    assert budget.rows(0.001) == MIN_ROWS
    budget.note(1, 100.0)
    assert budget.rows(0.1) == 192, "a few rows say nothing about many"


def test_the_cost_of_a_step_is_fitted_to_what_was_seen() -> None:
    cost = StepCost()
    assert cost.of(3) == 0.0
    for size in (1, 4, 8, 2, 16) * 20:
        cost.add(size, 0.04 + 0.004 * size)
    assert abs(cost.of(8) - 0.072) < 0.003
    assert abs(cost.of(1) - 0.044) < 0.003

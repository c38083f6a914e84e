"""The compute thread: order within a session, one bad step fails alone, and its death is told."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch

from swarmd.cli.demo import demo_model
from swarmd.core.frames import Payload, Step
from swarmd.core.sampling import SamplingParams
from swarmd.core.span import Span
from swarmd.engine.checkpoint import open_checkpoint
from swarmd.engine.kv_cache import RaggedCache
from swarmd.engine.load import load_stage
from swarmd.engine.stage import Batch, Stage
from swarmd.node import executor as executor_module
from swarmd.node.executor import Executor, Result
from swarmd.node.pace import ChunkBudget
from swarmd.node.units import Units
from swarmd.pipeline import events as ev

A, B, C = b"a" * 16, b"b" * 16, b"c" * 16
SAMPLING = SamplingParams()


@pytest.fixture(scope="module")
def whole() -> Stage:
    """All blocks of the demo model."""
    source = open_checkpoint(str(demo_model()))
    return load_stage(source, Span(0, 8), dtype="float32", device="cpu", kv_memory=1 << 26)


class Harness:
    """An executor whose results are collected."""

    def __init__(self, stage: Stage) -> None:
        self.results: queue.Queue[Result] = queue.Queue()
        self.died: queue.Queue[bool] = queue.Queue()
        self.depths: list[int] = []
        """The queue's depth at each delivery, as the compute thread sees it."""
        self.then: Sequence[ev.Operation] = ()
        """Put at the next delivery, before anything else is computed."""
        self.executor = Executor(stage, 1, self._deliver, lambda: self.died.put(True))

    def _deliver(self, results: Sequence[Result]) -> None:
        self.depths.append(self.executor.queue_depth)
        if self.then:
            then, self.then = self.then, ()
            self.executor.put(*then)
        for result in results:
            self.results.put(result)

    def take(self, count: int) -> list[Result]:
        return [self.results.get(timeout=60) for _ in range(count)]


@pytest.fixture
def harness(whole: Stage) -> Iterator[Harness]:
    one = Harness(whole)
    yield one
    one.executor.stop()


def submit(session: bytes, ticket: int, position: int, ids: tuple[int, ...]) -> ev.Submit:
    end = position + len(ids)
    step = Step(session, 1, 1, position, (len(ids),), token_ids=ids, wants=(end - 1,))
    return ev.Submit(session, ticket, Span(0, 8), step, 64, SAMPLING)


def drawn(result: Result) -> int:
    assert isinstance(result, ev.Computed)
    return result.tokens[0].id


def test_steps_of_two_sessions_share_a_microbatch(harness: Harness) -> None:
    for session, ticket in ((A, 1), (B, 2)):
        harness.executor.put(submit(session, ticket, 0, (5, 6, 7)))
        harness.executor.put(submit(session, ticket + 10, 3, (8,)))
    harness.executor.start()
    results = harness.take(4)
    by_ticket = {result.ticket: drawn(result) for result in results}
    assert by_ticket[1] == by_ticket[2]
    assert by_ticket[11] == by_ticket[12]
    # Two prompts never share one, two decodes do: three microbatches, not four.
    assert harness.executor.stats.steps == 4
    assert harness.executor.stats.microbatches == 3


def test_decodes_of_a_lone_session_are_noted_together_and_before_anybody_else_is_served(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor_module, "IDLE_S", 60.0)
    executor = harness.executor
    executor.start()
    executor.put(submit(A, 1, 0, (5, 6, 7)))
    harness.take(1)
    for position in range(3, 8):
        executor.put(submit(A, position, position, (8,)))
        (result,) = harness.take(1)
        assert isinstance(result, ev.Computed)
        assert result.ticket == position
    noted = len(executor.log.latest())
    executor.put(submit(B, 9, 0, (5, 6, 7)))
    harness.take(1)
    assert executor.stats.decodes == executor.stats.decode_microbatches == 5
    assert executor.stats.microbatches == 7
    executor.stop()
    assert noted == 2  # the prompt, and the first decode: others measure this node by that
    assert [batch.positions for batch in executor.log.latest()] == [3, 1, 1, 1, 1, 1, 3]


def test_what_was_put_off_is_noted_at_the_end(harness: Harness) -> None:
    harness.executor.put(*(submit(A, n, n, (8,)) for n in range(5)))
    harness.executor.start()
    harness.take(5)
    harness.executor.stop()
    assert len(harness.executor.log.latest()) == 5


def test_a_session_that_goes_on_alone_is_one_that_waits(harness: Harness) -> None:
    harness.executor.put(*(submit(key, 1, 0, (8,)) for key in (A, B, C)))
    harness.then = (ev.Free(B), ev.Free(C), submit(A, 2, 1, (8,)))
    harness.executor.start()
    while harness.take(1)[0].ticket != 2:
        pass
    assert (harness.depths[0], harness.depths[-1]) == (3, 1)


def test_who_never_comes_back_from_a_microbatch_is_not_well(
    whole: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, began = threading.Event(), threading.Event()

    def deliver(results: Sequence[Result]) -> None:
        began.set()
        go_on.wait(60)

    executor = Executor(whole, 1, deliver, lambda: None)
    assert not executor.is_well
    executor.put(submit(A, 1, 0, (5,)))
    executor.start()
    assert began.wait(60)
    assert executor.is_well
    monkeypatch.setattr(executor_module, "STUCK_S", 0.0)
    assert not executor.is_well
    go_on.set()
    executor.stop()


def test_a_lone_session_gives_the_tokens_that_it_gives_beside_another_one(whole: Stage) -> None:
    alone, beside = Harness(whole), Harness(whole)
    for one, sessions in ((alone, (A,)), (beside, (A, B))):
        for key in sessions:
            one.executor.put(submit(key, 1, 0, (5, 6, 7)))
        one.executor.start()
        one.take(len(sessions))
    for position in range(3, 12):
        ids = []
        for one, sessions in ((alone, (A,)), (beside, (A, B))):
            one.executor.put(*(submit(key, position, position, (position,)) for key in sessions))
            ids += [drawn(result) for result in one.take(len(sessions))]
        assert len(set(ids)) == 1
    assert alone.executor.stats.microbatches == 10
    for one in (alone, beside):
        one.executor.stop()


def test_a_bad_decode_of_a_lone_session_fails_and_the_next_one_goes_on(harness: Harness) -> None:
    executor = harness.executor
    executor.start()
    executor.put(submit(A, 1, 0, (5, 6, 7)), submit(A, 2, 5, (8,)))  # position 5 after 3
    executor.put(submit(A, 3, 3, (8,)))
    by_ticket = {result.ticket: result for result in harness.take(3)}
    assert isinstance(by_ticket[2], ev.ComputeFailed)
    assert isinstance(by_ticket[3], ev.Computed)


@pytest.mark.parametrize("chunk_exact", [True, False])
def test_a_long_chunk_is_computed_in_parts_where_that_changes_nothing(
    whole: Stage, monkeypatch: pytest.MonkeyPatch, chunk_exact: bool
) -> None:
    ids = tuple(range(10, 110))
    plain = Harness(whole)
    plain.executor.put(submit(A, 1, 0, ids), submit(A, 2, 100, (5,)))
    plain.executor.start()
    wanted = [drawn(result) for result in plain.take(2)]
    plain.executor.stop()
    monkeypatch.setattr(ChunkBudget, "rows", lambda self, step_s: 32)
    monkeypatch.setattr(whole, "chunk_exact", chunk_exact)
    parted = Harness(whole)
    parted.executor.put(submit(A, 1, 0, ids), submit(A, 2, 100, (5,)))
    parted.executor.start()
    results = parted.take(2)
    parted.executor.stop()
    assert [result.ticket for result in results] == [1, 2]
    assert [drawn(result) for result in results] == wanted
    positions = [batch.positions for batch in parted.executor.log.latest()]
    assert positions == ([32, 32, 32, 4, 1] if chunk_exact else [100, 1])


def test_a_chunk_in_parts_lets_decodes_through(
    whole: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ChunkBudget, "rows", lambda self, step_s: 16)
    one = Harness(whole)
    one.executor.put(submit(A, 1, 0, (5, 6, 7)))
    one.executor.put(submit(B, 2, 0, tuple(range(10, 74))), submit(A, 3, 3, (8,)))
    one.executor.start()
    results = one.take(3)
    one.executor.stop()
    assert [result.ticket for result in results] == [1, 3, 2]


def test_hidden_states_of_a_chunk_in_parts_come_out_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = open_checkpoint(str(demo_model()))
    front = load_stage(source, Span(0, 4), dtype="float32", device="cpu", kv_memory=1 << 26)
    step = Step(A, 1, 1, 0, (70,), token_ids=tuple(range(70)))
    order = ev.Submit(A, 1, Span(0, 4), step, 100)
    payloads = []
    for rows in (None, 32):
        monkeypatch.setattr(ChunkBudget, "rows", lambda self, step_s, rows=rows: rows)
        one = Harness(front)
        one.executor.put(order)
        one.executor.start()
        (result,) = one.take(1)
        one.executor.stop()
        assert isinstance(result, ev.Computed)
        assert result.payload is not None
        payloads.append(result.payload)
    assert payloads[0].shape == payloads[1].shape
    rows_of = [torch.frombuffer(bytearray(p.data), dtype=torch.float32) for p in payloads]
    torch.testing.assert_close(*rows_of, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tenants", [True, False])
def test_a_prompt_takes_turns_with_thirty_of_another_client(whole: Stage, tenants: bool) -> None:
    one = Harness(whole)
    ids = tuple(range(10, 42))
    for number in range(30):
        crowd = submit(bytes([number]) * 16, number, 0, ids)
        one.executor.put(replace(crowd, tenant=b"many"))
    late = [submit(B, 100 + n, 32 * n, ids) for n in range(2)]
    one.executor.put(*(replace(step, tenant=b"one" if tenants else b"many") for step in late))
    one.executor.start()
    tickets = [result.ticket for result in one.take(32)]
    one.executor.stop()
    assert (tickets.index(101) <= 4) == tenants


class Stopwatch:
    """A clock for the executor that stands still but for what it is told to have taken."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    time = perf_counter = thread_time = monotonic


def test_what_a_step_takes_is_said_of_one_session_however_many_there_are(
    whole: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, forward = Stopwatch(), whole.forward

    def timed(batch: Batch) -> torch.Tensor:
        rows = sum(segment.length for segment in batch.segments)
        clock.now += 0.002 * rows if rows >= 64 else 0.040 + 0.005 * rows
        return forward(batch)

    monkeypatch.setattr(executor_module, "time", clock)
    monkeypatch.setattr(whole, "forward", timed)
    one = Harness(whole)
    names = [bytes([n]) * 16 for n in range(8)]
    one.executor.start()
    one.executor.put(submit(A, 1, 0, tuple(range(10, 138))))
    one.take(1)
    for turn in range(12):
        taking_part = names if turn % 2 else names[:4]
        position = {name: turn if name in names[:4] else turn // 2 for name in names}
        one.executor.put(*(submit(name, 2, position[name], (5,)) for name in taking_part))
        one.take(len(taking_part))
    one.executor.stop()
    sizes = {batch.decodes for batch in one.executor.log.latest()}
    assert max(sizes) > 2
    assert one.executor.stats.step_ms == pytest.approx(45.0, rel=0.05)
    assert one.executor.stats.prefill_ms == pytest.approx(2.0)


def test_cpu_time_of_a_forward_counts_while_it_runs(
    whole: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, enough, forward = threading.Event(), threading.Event(), whole.forward

    def busy(batch: Batch) -> torch.Tensor:
        begun.set()
        while not enough.is_set():
            pass
        return forward(batch)

    monkeypatch.setattr(whole, "forward", busy)
    one = Harness(whole)
    one.executor.put(submit(A, 1, 0, (5, 6, 7)))
    one.executor.start()
    assert begun.wait(60)
    while one.executor.forward_cpu_s < 0.02:
        assert one.executor.stats.forward_cpu_s == 0
    enough.set()
    one.take(1)
    one.executor.stop()
    assert one.executor.forward_cpu_s == one.executor.stats.forward_cpu_s > 0.02


def test_a_truncation_keeps_its_place_between_steps(harness: Harness) -> None:
    harness.executor.start()
    harness.executor.put(submit(A, 1, 0, (5, 6, 7)))
    harness.executor.put(submit(A, 2, 3, (9,)))
    harness.executor.put(ev.Truncate(A, 3))
    harness.executor.put(submit(A, 3, 3, (8,)))
    harness.executor.put(submit(B, 4, 0, (5, 6, 7)))
    harness.executor.put(submit(B, 5, 3, (8,)))
    by_ticket = {result.ticket: drawn(result) for result in harness.take(5)}
    assert by_ticket[3] == by_ticket[5], "what was truncated must not be seen any more"


def test_a_bad_step_fails_alone(harness: Harness) -> None:
    broken = ev.Submit(
        B,
        2,
        Span(0, 8),
        Step(B, 1, 1, 0, (1,), hidden=misfit(), wants=(0,)),
        64,
        SAMPLING,
    )
    harness.executor.put(submit(A, 1, 0, (5,)))
    harness.executor.put(broken)
    harness.executor.start()
    by_ticket = {result.ticket: result for result in harness.take(2)}
    assert isinstance(by_ticket[1], ev.Computed)
    assert isinstance(by_ticket[2], ev.ComputeFailed)
    assert harness.executor.running


def misfit() -> Payload:
    """Hidden states for a stage that begins with token ids: a step that does not fit."""
    from swarmd.engine import codec

    return codec.to_payload(torch.zeros(1, 192))


def test_a_freed_session_gives_nothing_more(harness: Harness) -> None:
    harness.executor.put(submit(A, 1, 0, (5, 6)))
    harness.executor.put(ev.Free(A))
    harness.executor.put(submit(B, 2, 0, (5, 6)))
    harness.executor.start()
    assert [result.ticket for result in harness.take(1)] == [2]
    assert harness.results.empty()


def test_the_death_of_the_thread_is_told(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(ready: object) -> None:
        raise RuntimeError("a bug in the choice of steps")

    monkeypatch.setattr(harness.executor._tally, "choose", broken)
    harness.executor.start()
    harness.executor.put(submit(A, 1, 0, (5, 6)))
    assert harness.died.get(timeout=60)


def test_a_node_whose_device_is_lost_computes_for_nobody_any_more(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(batch: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(harness.executor._stage, "forward", lost)
    harness.executor.start()
    harness.executor.put(submit(A, 1, 0, (5,)))
    assert harness.died.get(timeout=60)
    assert harness.results.empty(), "whoever waits is told by the end of the node"


def test_a_unit_that_cannot_be_made_or_is_not_there_fails_its_sessions_alone(
    harness: Harness,
) -> None:
    harness.executor.start()
    harness.executor.put(submit(A, 1, 0, (5,)), ev.Freeze(A, b"unit", 0, 64))
    harness.executor.put(ev.Attach(B, (b"unit",)), submit(B, 2, 64, (6,)))
    harness.executor.put(ev.Attach(C, (b"unknown",)), submit(C, 3, 64, (7,)))
    harness.executor.put(ev.Drop(b"unit"), ev.Drop(b"unknown"), submit(A, 4, 1, (5,)))
    results = {result.ticket: result for result in harness.take(4)}
    assert isinstance(results[1], ev.Computed)
    assert isinstance(results[4], ev.Computed)
    # As where memory ran out: the hop gives up what nobody uses, the unit as well.
    for ticket, exhausted in ((2, True), (3, False)):
        failed = results[ticket]
        assert isinstance(failed, ev.ComputeFailed)
        assert failed.exhausted == exhausted
    assert harness.executor.running


def test_a_unit_that_could_not_be_made_keeps_no_kv(whole: Stage) -> None:
    units, cache = Units(), whole.new_cache()
    assert isinstance(cache, RaggedCache)
    held = sys.getrefcount(cache)
    units.freeze(cache, ev.Freeze(A, b"unit", 0, 64))
    assert sys.getrefcount(cache) == held

"""Sessions that begin alike: what a hop computes once, keeps, gives to others and gives up."""

from __future__ import annotations

from dataclasses import replace

import pytest
from bench_hop import MODEL, SECRET, SESSION, Bench, hidden, numbers, only
from bench_shop import BLOCKS, CHUNK, PROMPT, UNIT, Shop

from swarmd.core.frames import KV, Close, DType, Open, Past, Payload, Refusal, Step
from swarmd.core.prefix import prefix_keys
from swarmd.core.sampling import SamplingParams
from swarmd.core.span import Span
from swarmd.pipeline.events import (
    Attach,
    Computed,
    Drop,
    Free,
    Freeze,
    Import,
    Imported,
    Received,
    Send,
    Submit,
    Truncate,
)
from swarmd.pipeline.hop import HopPolicy, HopTable, StageFacts
from swarmd.toys import ToyAccount


def test_a_second_session_begins_where_the_first_chunk_of_its_own_begins() -> None:
    shop = Shop()
    assert shop.open(1).kv_length == 0
    assert [(f.start, f.end) for f in shop.prefill(1)] == [(n, n + 4) for n in range(0, 28, 4)]
    # 7 units are there; 24 is the last multiple of a chunk among them.
    assert shop.open(2, (*PROMPT[:29], 7, 7)).kv_length == 24
    assert only(shop.actions, Attach).units == tuple(
        shop.table.sessions[bytes([1]) * 16].prefix[:6]
    )
    assert shop.table.counters.prefix_hit_positions == 24


def test_what_is_computed_twice_at_the_same_time_is_shared_once() -> None:
    shop = Shop()
    shop.open(1)
    shop.open(2)
    assert len(shop.prefill(1)) == 7
    assert shop.prefill(2) == []
    assert len(shop.table.prefixes) == 7


def test_the_last_position_of_a_prompt_is_always_computed() -> None:
    shop = Shop()
    shop.open(1, PROMPT[:16])
    shop.prefill(1, PROMPT[:16])
    assert shop.open(2, PROMPT[:16]).kv_length == 8


def test_prompts_that_differ_share_up_to_where_they_do() -> None:
    shop = Shop()
    shop.open(1)
    shop.prefill(1)
    assert shop.open(2, (*PROMPT[:18], *range(12))).kv_length == 16
    assert shop.open(3, (1, *PROMPT[1:])).kv_length == 0


def test_another_coordinator_shares_nothing() -> None:
    shop = Shop()
    shop.open(1)
    shop.prefill(1)
    assert shop.open(2, boss="mallory").kv_length == 0


def test_a_prompt_without_keys_shares_nothing() -> None:
    shop = Shop()
    shop.open(1, prefix=())
    assert shop.prefill(1) == []
    shop.open(2, prefix_unit=UNIT + 1)
    assert shop.prefill(2) == []


def test_a_node_that_shares_nothing_computes_all() -> None:
    shop = Shop(unit=0)
    shop.open(1)
    assert shop.prefill(1) == []
    assert shop.open(2).kv_length == 0


def test_outputs_of_shared_positions_can_be_replayed_in_their_chunks() -> None:
    shop = Shop()
    shop.open(1)
    shop.prefill(1)
    shop.close(1)
    answer = shop.open(2)
    assert (answer.kv_length, answer.log_start) == (24, 0)
    log = shop.table.sessions[bytes([2]) * 16].log
    assert [(step.position, step.chunks) for step in log.since(0)] == [
        (0, (8,)),
        (8, (8,)),
        (16, (8,)),
    ]
    assert [n for step in log.since(0) for n in numbers(step.hidden)] == list(range(24))
    assert all(step.session == bytes([2]) * 16 and not step.wants for step in log.since(0))


def test_kv_is_reserved_once_for_all_that_share_it() -> None:
    shop = Shop()
    shop.open(1)
    shop.prefill(1)
    alone = sum(shop.account.reserved.values())
    assert alone == 40 * len(BLOCKS)
    shop.open(2)
    assert sum(shop.account.reserved.values()) == alone + (40 - 24) * len(BLOCKS)
    shop.close(1)
    shop.close(2)
    assert shop.table.prefixes.idle_bytes == sum(shop.account.reserved.values()) == 28 * 2
    assert shop.table.free_bytes() == 1000 * len(BLOCKS)


def test_what_nobody_uses_goes_when_room_is_needed_ends_first() -> None:
    shop = Shop(total=60)
    shop.open(1)
    shop.prefill(1)
    shop.close(1)
    assert shop.open(2, tuple(range(30))).refusal is None
    dropped = [action.unit for action in shop.actions if isinstance(action, Drop)]
    assert len(dropped) == 2  # 40 positions were wanted, 32 were free
    shop.close(2)
    assert shop.open(3).kv_length == 16
    assert shop.table.counters.prefix_evicted_positions == 8


def test_what_is_in_use_stays_whatever_is_asked_for() -> None:
    shop = Shop(total=60)
    shop.open(1)
    shop.prefill(1)
    answer = shop.open(2, tuple(range(30)))
    assert answer.refusal is Refusal.KV_EXHAUSTED
    assert not any(isinstance(action, Drop) for action in shop.actions)
    assert len(shop.table.prefixes) == 7


def test_a_refusal_that_no_eviction_would_spare_evicts_nothing() -> None:
    shop = Shop(total=100)
    shop.open(1)
    shop.prefill(1)
    shop.close(1)
    shop.open(2, tuple(range(80)))
    before = len(shop.table.prefixes)
    assert before == 2  # 90 of 100 positions are taken now
    assert shop.open(3, tuple(range(500, 580))).refusal is Refusal.KV_EXHAUSTED
    assert len(shop.table.prefixes) == before
    assert not any(isinstance(action, Attach | Drop) for action in shop.actions)


def test_a_rewind_into_what_is_shared_gives_it_up_and_reserves_its_own() -> None:
    shop = Shop()
    shop.open(1)
    shop.prefill(1)
    shop.close(1)
    shop.open(2)
    actions = shop.step(2, 8, 8, round=1)
    assert only(actions, Truncate).length == 8
    session = shop.table.sessions[bytes([2]) * 16]
    assert sorted(session.shared) == [0, 1]
    assert shop.account.reserved[session.id] == (40 - 8) * len(BLOCKS)
    # It may go on to share what nobody else has.
    shop.step(2, 16, 8, round=1)
    shop.step(2, 24, 6, round=1)
    assert sorted(session.shared) == [0, 1]
    assert len(shop.table.prefixes) == 7


def kv_from(position: int) -> KV:
    tensor = Payload(DType.FLOAT32, (1, 4, 1), bytes(16))
    part = {"key": tensor, "value": tensor}
    return KV(bytes([2]) * 16, 1, 0, position, (part,) * len(BLOCKS))


def test_a_copy_that_is_overwritten_where_it_shares_reserves_its_own() -> None:
    shop = Shop()
    shop.open(1)
    shop.prefill(1)
    shop.close(1)
    shop.open(2, donor="donor")
    actions = shop.table.handle(Received("donor", kv_from(8)), 0.0)
    assert only(actions, Truncate).length == 8
    session = shop.table.sessions[bytes([2]) * 16]
    assert sorted(session.shared) == [0, 1]
    assert shop.account.reserved[session.id] == (40 - 8) * len(BLOCKS)


def test_without_room_for_that_the_copy_is_given_up() -> None:
    shop = Shop(total=75)
    shop.open(1)
    shop.prefill(1)
    shop.open(2, donor="donor")
    shop.open(3, prefix=())
    actions = shop.table.handle(Received("donor", kv_from(0)), 0.0)
    assert only(actions, Free).session == bytes([2]) * 16
    assert only(actions, Send).frame.refusal is Refusal.KV_EXHAUSTED


def test_a_rewind_that_has_no_room_fails_the_session() -> None:
    shop = Shop(total=75)
    shop.open(1)
    shop.prefill(1)
    shop.open(2)
    shop.open(3, prefix=())
    step = Step(bytes([2]) * 16, 1, 1, 0, (8,), (), hidden(0, 8))
    actions = shop.table.handle(Received("before", step), 0.0)
    assert only(actions, Free).session == bytes([2]) * 16
    assert only(actions, Send).frame.refusal is Refusal.KV_EXHAUSTED


def test_the_outputs_that_are_kept_are_bounded() -> None:
    limit = 2000
    shop = Shop(log_bytes=limit)
    for number in range(1, 9):
        ids = tuple(range(number * 100, number * 100 + 30))
        shop.open(number, ids)
        shop.prefill(number, ids)
        shop.close(number)
    kept = sum(
        step.hidden.nbytes
        for unit in shop.table.prefixes._units.values()
        for step in unit.outputs.values()
        if step.hidden
    )
    assert 0 < kept <= limit
    assert 0 < shop.table.counters.prefix_evicted_positions < 8 * 28


def test_a_session_that_came_to_nothing_still_gives_its_units_back() -> None:
    shop = Shop()
    shop.open(1)
    shop.prefill(1)
    shop.close(1)
    shop.open(2)
    assert shop.table.prefixes.idle_bytes == 1 * UNIT * len(BLOCKS)
    shop.table.handle(Received("boss", Close(bytes([2]) * 16, 1)), 0.0)
    assert shop.table.prefixes.idle_bytes == 7 * UNIT * len(BLOCKS)
    assert len(shop.table.prefixes.clear()) == 7
    assert not shop.account.reserved


def test_the_last_hop_shares_as_well() -> None:
    policy = HopPolicy(prefix_unit=UNIT)
    account = ToyAccount(10_000)
    table = HopTable(StageFacts(MODEL, Span(4, 8)), account, policy)
    order = Open(
        session=b"a" * 16,
        secret=SECRET,
        epoch=1,
        fresh=True,
        model_digest=MODEL.digest,
        blocks=Span(4, 8),
        next_peer="",
        prev_peer="before",
        max_positions=40,
        prompt_tokens=len(PROMPT),
        sampling=SamplingParams(),
        token_ids=PROMPT,
        prefix=prefix_keys(PROMPT, MODEL.digest, CHUNK, unit=UNIT),
        prefix_unit=UNIT,
        prefix_grain=CHUNK,
    )
    table.handle(Received("boss", order), 0.0)
    step = Step(order.session, 1, 0, 0, (CHUNK,), (), hidden(0, CHUNK))
    submit = only(table.handle(Received("before", step), 0.0), Submit)
    table.handle(Computed(order.session, submit.ticket), 0.0)
    actions = table.handle(Received("boss", replace(order, session=b"b" * 16)), 0.0)
    assert only(actions, Send).frame.kv_length == CHUNK


def test_keys_depend_on_all_that_the_kv_depends_on() -> None:
    keys = prefix_keys(PROMPT, MODEL.digest, CHUNK, b"salt", UNIT)
    assert len(keys) == len(PROMPT) // UNIT
    assert len(set(keys)) == len(keys)
    assert prefix_keys(PROMPT[:9], MODEL.digest, CHUNK, b"salt", UNIT) == keys[:2]
    others = [
        prefix_keys(PROMPT, MODEL.digest, CHUNK, b"pepper", UNIT),
        prefix_keys(PROMPT, "cd" * 32, CHUNK, b"salt", UNIT),
        prefix_keys(PROMPT, MODEL.digest, CHUNK + 1, b"salt", UNIT),
        prefix_keys((0, *PROMPT[1:]), MODEL.digest, CHUNK, b"salt", UNIT),
    ]
    for other in others:
        assert not set(other) & set(keys)


def test_a_session_of_which_only_its_client_says_what_it_holds_is_shared_with_nobody() -> None:
    shop = Shop()
    shop.open(1, claimed=True)
    assert shop.prefill(1) == []
    assert shop.open(2).kv_length == 0


def test_of_a_session_that_its_client_resumes_nothing_more_is_shared() -> None:
    """The ids may be others now: neither under the old names nor under those that it ends with."""
    shop = Shop()
    shop.open(1)
    shared = [action for action in shop.step(1, 0, CHUNK) if isinstance(action, Freeze)]
    assert len(shared) == CHUNK // UNIT
    shop.open(1, boss="other", epoch=2, fresh=False, claimed=True, prefix=())
    made = [*shop.step(1, CHUNK, CHUNK, epoch=2), *shop.step(1, 2 * CHUNK, CHUNK, epoch=2)]
    keys = prefix_keys(PROMPT, MODEL.digest, CHUNK, unit=UNIT)
    made += shop.table.handle(Received("other", Close(bytes([1]) * 16, 2, keys, UNIT)), 0.0)
    assert not any(isinstance(action, Freeze) for action in made)
    assert shop.open(2, boss="other").kv_length == 0
    assert shop.open(3).kv_length == CHUNK


def test_of_a_session_with_a_past_nothing_is_shared_where_chunks_matter() -> None:
    """Its outputs came one by one: not even at its end may they go by the names of prompts."""
    shop = Shop()
    shop.open(1, past=Past(bytes(16), SECRET, 20))
    assert shop.prefill(1) == []
    keys = prefix_keys(PROMPT, MODEL.digest, CHUNK, unit=UNIT)
    end = shop.table.handle(Received("boss", Close(bytes([1]) * 16, 1, keys, UNIT)), 0.0)
    assert not any(isinstance(action, Freeze) for action in end)
    assert shop.open(2).kv_length == 0


@pytest.mark.parametrize("arrived", [True, False])
def test_of_a_copy_only_what_has_been_put_in_is_shared(arrived: bool) -> None:
    ids = tuple(range(10))
    bench = Bench("6:8", HopPolicy(prefix_unit=UNIT))
    keys = prefix_keys(ids, MODEL.digest, CHUNK, unit=UNIT)
    bench.open(prefix=keys, prefix_unit=UNIT, prefix_grain=CHUNK, donor="donor")
    tensor = Payload(DType.FLOAT32, (1, CHUNK, 1), bytes(4 * CHUNK))
    kv = KV(SESSION, 1, 0, 0, ({"key": tensor, "value": tensor},) * 2)
    order = only(bench.tell(kv, "donor"), Import)
    if arrived:
        bench.handle(Imported(SESSION, order.ticket))
    made = [a for a in bench.tell(Close(SESSION, 1)) if isinstance(a, Freeze)]
    assert [(f.start, f.end) for f in made] == ([(0, 4), (4, 8)] if arrived else [])

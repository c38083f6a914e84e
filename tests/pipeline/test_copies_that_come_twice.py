"""KV may come to a copy twice, and late: what it has said that it holds, it holds."""

from __future__ import annotations

from dataclasses import replace

from bench_hop import SESSION, Bench, frames, only

from swarmd.core.frames import KV, Copied, Copy, DType, Payload
from swarmd.pipeline.events import Export, Exported, HopAction, Import, Imported, Truncate
from swarmd.pipeline.hop import HopPolicy


def holder() -> Bench:
    """A peer that is to hold a copy of two blocks."""
    bench = Bench()
    bench.open(donor="donor")
    return bench


def part(length: int) -> tuple[dict[str, Payload], ...]:
    tensor = Payload(DType.FLOAT32, (1, length, 1), bytes(4 * length))
    return ({"key": tensor, "value": tensor},) * 2


def send(bench: Bench, position: int, length: int, round: int = 0) -> list[HopAction]:
    return bench.tell(KV(SESSION, 1, round, position, part(length)), "donor")


def put_in(bench: Bench, position: int, length: int, round: int = 0) -> list[HopAction]:
    """Send KV, and let it be put in; return what comes of it."""
    order = only(send(bench, position, length, round), Import)
    return bench.handle(Imported(SESSION, order.ticket))


def reaches(bench: Bench, epoch: int = 2) -> int:
    """What the copy answers when it is to take its hop's place."""
    return bench.open(epoch=epoch, fresh=False).kv_length


def test_kv_that_comes_twice_does_not_take_the_place_of_what_came_after_it() -> None:
    bench = holder()
    put_in(bench, 0, 8)
    put_in(bench, 8, 8)
    again = send(bench, 0, 8)
    assert not [action for action in again if isinstance(action, Truncate | Import)]
    for peer in ("donor", "boss"):
        assert frames(again, peer) == [Copied(SESSION, 1, 16)]
    assert bench.counters.duplicates == 1
    assert reaches(bench) == 16


def test_of_what_comes_twice_nothing_is_said_before_it_has_been_put_in() -> None:
    bench = holder()
    put_in(bench, 0, 8)
    order = only(send(bench, 8, 8), Import)
    assert frames(send(bench, 8, 8), "boss") == [Copied(SESSION, 1, 8)]
    assert frames(bench.handle(Imported(SESSION, order.ticket)), "boss") == [Copied(SESSION, 1, 16)]


def test_kv_that_reaches_further_takes_the_place_of_what_it_covers() -> None:
    bench = holder()
    put_in(bench, 0, 8)
    put_in(bench, 8, 4)
    assert frames(put_in(bench, 8, 8), "boss") == [Copied(SESSION, 1, 16)]


def test_what_a_hop_has_computed_anew_takes_the_place_of_what_it_had_before() -> None:
    bench = holder()
    put_in(bench, 0, 16)
    actions = send(bench, 8, 4, round=1)
    assert only(actions, Truncate).length == 8
    assert only(actions, Import).position == 8
    assert reaches(bench) == 12


def test_what_a_hop_held_in_an_earlier_round_is_dropped() -> None:
    bench = holder()
    put_in(bench, 0, 8)
    put_in(bench, 8, 4, round=1)
    assert send(bench, 0, 20) == []
    assert bench.counters.stale_rounds == 1
    assert reaches(bench) == 12


def test_in_a_new_epoch_kv_takes_the_place_of_what_was_copied_before() -> None:
    bench = holder()
    put_in(bench, 0, 16, round=2)
    assert bench.open(epoch=2, fresh=False, donor="donor", computed=16).kv_length == 16
    actions = bench.tell(KV(SESSION, 2, 0, 8, part(4)), "donor")
    assert only(actions, Truncate).length == 8
    assert reaches(bench, epoch=3) == 12


def test_what_a_copy_holds_of_ids_that_are_not_known_is_given_up_in_a_new_epoch() -> None:
    """The coordinator before may have known more ids, and others may be drawn now."""
    bench = holder()
    put_in(bench, 0, 16)
    order = replace(bench.order, epoch=2, fresh=False, donor="donor", computed=10)
    actions = bench.tell(order, "boss")
    assert only(actions, Truncate).length == 10
    assert [frame.kv_length for frame in frames(actions, "boss")] == [10]
    assert reaches(bench, epoch=3) == 10


def test_so_is_what_a_hop_has_computed_that_becomes_a_copy() -> None:
    bench = Bench()
    bench.open()
    bench.apply(0, 16)
    assert bench.open(epoch=2, fresh=False, donor="donor", computed=10).kv_length == 10


def test_a_hop_sends_what_is_sure_until_it_computes_the_rest_anew() -> None:
    bench = Bench(policy=HopPolicy(copy_rate=float("inf")))
    bench.open()
    bench.apply(0, 12)
    bench.open(epoch=2, fresh=False)
    order = Copy(SESSION, 2, "heir", bench.order.blocks, 0, round=1, sure=8)
    sent = exported(bench, bench.tell(order))
    assert [(kv.position, kv.end) for kv in sent] == [(0, 8)], "not what it held above"
    sent = exported(bench, bench.apply(8, 2, round=1, epoch=2))
    assert [(kv.round, kv.position, kv.end) for kv in sent] == [(1, 8, 10)]


def test_a_hop_says_in_which_round_it_holds_what_it_sends() -> None:
    bench = Bench(policy=HopPolicy(copy_rate=float("inf")))
    bench.open()
    bench.apply(0, 8)
    sent = exported(bench, bench.tell(Copy(SESSION, 1, "heir", bench.order.blocks, 0)))
    assert [(kv.round, kv.position, kv.end) for kv in sent] == [(0, 0, 8)]
    sent = exported(bench, bench.apply(4, 8, round=1))
    assert [(kv.round, kv.position, kv.end) for kv in sent] == [(1, 4, 12)]


def exported(bench: Bench, actions: list[HopAction]) -> list[KV]:
    """Take out of the KV what is to be sent; return the frames."""
    op = only(actions, Export)
    done = Exported(SESSION, op.ticket, op.start, part(op.end - op.start))
    return [frame for frame in frames(bench.handle(done), "heir") if isinstance(frame, KV)]


def test_a_copy_that_is_ahead_of_its_hop_is_gone_on_with_once_that_has_come_there() -> None:
    """It has more of the prompt from other sessions."""
    bench = Bench(policy=HopPolicy(copy_rate=float("inf")))
    bench.open()
    bench.apply(0, 4)
    assert not bench.tell(Copy(SESSION, 1, "heir", bench.order.blocks, 8))
    actions = bench.apply(4, 4)
    assert not [action for action in actions if isinstance(action, Export)]
    assert exported(bench, bench.apply(8, 4))[0].position == 8

"""A repair looks for peers of the same precision, and says so where it finds none."""

from __future__ import annotations

from dataclasses import replace

from bench_driver import ROUTE, Bench, hops

from swarmd.core.route import Route
from swarmd.pipeline.events import OtherPrecision
from swarmd.pipeline.repair import other_precision


def of(precision: str, *parts: str) -> Route:
    return tuple(replace(hop, precision=precision) for hop in hops(*parts))


def repaired_by(precision: str) -> Bench:
    bench = Bench()
    bench.run((*of("float32", "a 0:4"), *of("bfloat16", "b 4:8")))
    bench.lose("b")
    bench.found(of(precision, "c 4:8"))
    bench.opened("a")
    bench.opened("c")
    return bench


def test_the_lost_hops_own_precision_is_asked_for() -> None:
    assert repaired_by("bfloat16").need.precisions == ("bfloat16",)


def test_a_repair_by_another_precision_is_said_and_counted_once() -> None:
    bench = repaired_by("float32")
    said = [action for action in bench.done if isinstance(action, OtherPrecision)]
    assert [hop.peer_id for action in said for hop in action.hops] == ["c"]
    assert bench.driver.precision_changes == 1
    bench.lose("a")
    bench.found(of("float32", "d 0:4"))
    bench.opened("d")
    bench.opened("c")
    assert bench.driver.precision_changes == 1


def test_a_repair_by_the_same_precision_is_nothing_to_speak_of() -> None:
    bench = repaired_by("bfloat16")
    assert bench.driver.precision_changes == 0
    assert not any(isinstance(action, OtherPrecision) for action in bench.done)


def test_who_resumes_a_session_compares_with_what_computed_it_before() -> None:
    bench = Bench(epoch=3, route=of("float32", "a 0:4", "b 4:8"))
    bench.unreachable = frozenset({"b"})
    bench.start()
    bench.found(of("bfloat16", "c 4:8"))
    bench.opened("a")
    bench.opened("c")
    assert bench.driver.precision_changes == 1


def test_only_what_is_known_to_differ_does() -> None:
    assert not other_precision(ROUTE, of("float32", "a 0:4", "b 4:8"))
    assert not other_precision(of("float32", "a 0:4"), of("bfloat16", "b 4:8"))
    changed = other_precision(of("float32", "a 0:8"), of("bfloat16", "b 2:6"))
    assert [hop.peer_id for hop in changed] == ["b"]

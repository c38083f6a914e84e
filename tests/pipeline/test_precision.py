"""Who takes a hop's place is of the same precision; where there is no such peer that is said.

A copy that stands by is of the same precision or there is none.
"""

from __future__ import annotations

from dataclasses import replace

import bench_hop
import pytest
from bench_driver import ROUTE, SESSION, Bench, hops, opens, sent

from swarmd.core.frames import KV, Close, Copied, DType, Leaving, Opened, Payload
from swarmd.core.route import Route
from swarmd.core.sampling import SamplingParams
from swarmd.lossy_links import Weather
from swarmd.pipeline.events import (
    DriverAction,
    Import,
    Imported,
    NeedRoute,
    OtherPrecision,
    RouteFound,
)
from swarmd.pipeline.repair import other_precision
from swarmd.simulation import Client, Swarm
from swarmd.toys import toy_model, toy_oracle

MIXED = "float32", "bfloat16/1"
"""Of the two hops of a session on the bench."""


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


# Copies.


def agrees(bench: Bench, peer_id: str, kv_length: int = 0) -> list[DriverAction]:
    """Have a peer agree to its open that can be copied."""
    epoch = bench.driver.epoch
    return bench.tell(peer_id, Opened(SESSION, epoch, kv_length=kv_length, copies=True))


def mixed(standby: int = 0) -> tuple[Bench, list[NeedRoute]]:
    """A session of two hops that differ, and what it asks for then."""
    bench = Bench(standby=standby)
    bench.start()
    bench.found((*of(MIXED[0], "a 0:4"), *of(MIXED[1], "b 4:8")))
    agrees(bench, "a")
    agrees(bench, "b")
    bench.token(10)
    return bench, [action for action in bench.done if isinstance(action, NeedRoute)][1:]


def leaves(bench: Bench, decision: int = 1, stays: bool = False) -> list[DriverAction]:
    return bench.tell("b", Leaving(SESSION, bench.driver.epoch, decision, stays))


def test_a_copy_is_asked_for_in_its_hops_own_precision() -> None:
    bench, asked = mixed(standby=1)
    assert [(need.precisions, need.spare) for need in asked] == [((p,), True) for p in MIXED]
    leaves(bench)
    assert bench.need.precisions == MIXED[1:]


def test_the_successor_of_a_hop_that_leaves_is_asked_for_in_its_own_precision() -> None:
    bench, asked = mixed()
    assert not asked
    leaves(bench)
    assert (bench.need.precisions, bench.need.spare) == (MIXED[1:], False)


@pytest.mark.parametrize("precision", ["float32", "bfloat16/2", "bfloat16/1", ""])
def test_no_copy_stands_by_that_is_known_to_be_of_another_precision(precision: str) -> None:
    bench, asked = mixed(standby=1)
    made = opens(bench.handle(RouteFound(asked[1].ask, of(precision, "y 4:8"))))
    assert list(made) == (["y"] if precision in ("bfloat16/1", "") else [])
    if not made:
        again = [action for action in bench.wait(0.3) if isinstance(action, NeedRoute)]
        assert [need.precisions for need in again] == [MIXED[1:]], "another one may come"


def handed_off_to(precision: str) -> Bench:
    bench, _ = mixed()
    leaves(bench)
    assert "y" in opens(bench.found(of(precision, "y 4:8"))), "anybody is better than nobody"
    agrees(bench, "y", 10)
    assert bench.driver.precision_changes == 0, "nothing has changed yet"
    bench.token(11)
    bench.tell("y", Copied(SESSION, bench.driver.epoch, 11))
    agrees(bench, "a", 11)
    agrees(bench, "y", 11)
    assert bench.driver.handoffs == 1
    return bench


def test_a_handoff_to_another_precision_is_said_and_counted() -> None:
    bench = handed_off_to("float32")
    assert bench.driver.precision_changes == 1
    said = [action for action in bench.done if isinstance(action, OtherPrecision)]
    assert [hop.peer_id for action in said for hop in action.hops] == ["y"]


def test_a_handoff_to_the_same_precision_is_nothing_to_speak_of() -> None:
    assert handed_off_to("bfloat16/1").driver.precision_changes == 0


def test_of_a_hop_that_stays_no_copy_in_another_precision_is_kept() -> None:
    bench, asked = mixed(standby=1)
    leaves(bench)
    bench.handle(RouteFound(asked[1].ask, of("float32", "y 4:8")))
    agrees(bench, "y")
    stayed = leaves(bench, 2, stays=True)
    assert sent(stayed, "y", Close)
    assert not bench.driver.standbys.peers
    again = [action for action in stayed if isinstance(action, NeedRoute)]
    assert [(need.precisions, need.spare) for need in again] == [(MIXED[1:], True)]


def test_a_hop_that_is_started_again_in_another_precision_has_no_copy_in_the_old_one() -> None:
    bench, asked = mixed(standby=1)
    bench.handle(RouteFound(asked[1].ask, of(MIXED[1], "y 4:8")))
    agrees(bench, "y")
    bench.lose("a")
    bench.found(of("float32", "c 0:4"))
    changed = of("float32", "b 4:8")
    bench.driver._search.substitute("b", changed)
    agrees(bench, "c")
    agrees(bench, "b", 10)
    bench.token(11)
    assert not bench.driver.standbys.peers


def test_who_resumes_a_session_takes_no_copy_in_another_precision_for_a_hop() -> None:
    route = (*of(MIXED[0], "a 0:4"), *of(MIXED[1], "b 4:8"))
    for precision, taken in ((MIXED[1], True), ("float32", False)):
        bench = Bench(epoch=3, route=route, standbys=of(precision, "y 4:8"))
        bench.start()
        assert bool(bench.driver.standbys.peers) is taken


def test_a_slow_hop_is_not_left_for_a_copy_in_another_precision() -> None:
    bench, _ = mixed()
    leaves(bench)
    bench.found(of("float32", "y 4:8"))
    agrees(bench, "y")
    bench.driver._replace(bench.driver.route[1], bench.now)
    actions, bench.driver._out = bench.driver._out, []
    asked = [action for action in actions if isinstance(action, NeedRoute)]
    assert [need.precisions for need in asked] == [MIXED[1:]]
    assert bench.driver.repairs == 0


def test_what_came_in_another_dtype_is_counted() -> None:
    hop = bench_hop.Bench()
    hop.open(donor="donor")
    for position, converted in ((0, True), (8, True), (16, False)):
        tensor = Payload(DType.FLOAT32, (1, 8, 1), bytes(4 * 8))
        kv = KV(bench_hop.SESSION, 1, 0, position, ({"key": tensor, "value": tensor},) * 2)
        order = bench_hop.only(hop.tell(kv, "donor"), Import)
        hop.handle(Imported(bench_hop.SESSION, order.ticket, converted))
    assert hop.counters.converted_positions == 16


# Whole swarms, of nodes that differ.

MODEL = toy_model(6, max_len=600)


def mixed_swarm(seed: int) -> tuple[Swarm, Client]:
    """Three spans, each held by two nodes in either precision; a stream with standbys."""
    swarm = Swarm(MODEL, seed, Weather())
    for number, blocks in enumerate(("0:2", "2:4", "4:6")):
        for name in ("f1", "f2", "b1", "b2"):
            precision = "float32" if name[0] == "f" else "bfloat16/1"
            swarm.add(f"{name}.{number}", blocks).precision = precision
    swarm.add("boss")
    client = swarm.client(1, tuple(range(40)), 150, SamplingParams(), standby=1)
    swarm.start(client, "boss")
    swarm.run(60.0, while_true=lambda: len(client.ids) < 20)
    assert len(client.standbys) == 3
    return swarm, client


def kinds(route: Route) -> list[str]:
    return [hop.precision for hop in sorted(route, key=lambda hop: hop.blocks)]


def has_ended(swarm: Swarm, client: Client) -> bool:
    swarm.run(swarm.now + 200, while_true=lambda: client.finished is None)
    args = (client.request.prompt_ids, client.request.sampling, 150, client.request.chunk_size)
    return client.ids == toy_oracle(MODEL, *args)


@pytest.mark.parametrize("seed", range(6))
def test_in_a_mixed_swarm_copies_and_successors_are_of_each_hops_own_precision(seed: int) -> None:
    swarm, client = mixed_swarm(seed)
    assert kinds(client.standbys) == kinds(client.route)
    before, left = kinds(client.route), client.route[seed % 3].peer_id
    (swarm.kill if seed % 2 else swarm.drain)(left)
    swarm.run(swarm.now + 30, while_true=lambda: left in {hop.peer_id for hop in client.route})
    assert left not in {hop.peer_id for hop in client.route}
    assert kinds(client.route) == before
    run = client.run
    assert run is not None
    assert run.driver.precision_changes == 0
    assert has_ended(swarm, client)

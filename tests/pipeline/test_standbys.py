"""When peers are looked for that could hold a copy of a hop's KV, and when they are not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from bench_driver import FEED, REQUEST, ROUTE, SESSION, Bench, hops, opens, steps

from swarmd.core.frames import Leaving, Opened
from swarmd.core.sampling import SamplingParams
from swarmd.pipeline.events import DriverAction, NeedRoute, RouteFound
from swarmd.pipeline.standbys import Standbys
from swarmd.simulation import Swarm
from swarmd.toys import toy_model, toy_oracle

HOP = ROUTE[0]


def searches(standbys: Standbys, until: float) -> list[float]:
    """When peers are looked for, while there are none."""
    times, ask = [], 0
    while standbys.due is not None and standbys.due <= until:
        now, ask = max(standbys.due, 0.0), ask + 1
        assert standbys.look(ask, ROUTE, frozenset(), now) is not None
        standbys.missing(ask, now)
        times.append(now)
    return times


def test_where_nobody_can_hold_a_copy_the_searches_become_rare_until_there_is_news() -> None:
    standbys = Standbys(REQUEST, FEED, 0.25, 4.0)
    standbys.want(HOP, 0.0, leaving=False)
    assert searches(standbys, 16.0) == [0.0, 0.25, 0.75, 1.75, 3.75, 7.75, 11.75, 15.75]
    standbys.look_again(16.0)
    assert searches(standbys, 17.0) == [16.0, 16.25, 16.75]


def test_a_hop_that_leaves_is_in_a_hurry() -> None:
    standbys = Standbys(REQUEST, FEED, 0.25, 4.0)
    standbys.want(HOP, 60.0, leaving=False)
    assert searches(standbys, 1.0) == []
    standbys.want(HOP, 0.0, leaving=True)
    assert searches(standbys, 1.0) == [0.0, 0.25, 0.5, 0.75, 1.0]
    need = standbys.look(99, ROUTE, frozenset(), 1.25)
    assert need is not None
    assert not need.spare


def test_a_search_that_a_new_epoch_has_overtaken_is_made_again() -> None:
    standbys = Standbys(replace(REQUEST, standby=1), FEED, 0.25)
    standbys.want(HOP, 0.0, leaving=False)
    need = standbys.look(1, ROUTE, frozenset(), 0.0)
    assert need is not None
    assert need.spare
    standbys.begin(ROUTE, 2)
    assert standbys.found(1, hops("x 0:4"), ROUTE, 2, 0.0) == []
    assert standbys.due is not None, "or this hop would never have a copy again"


def agree(bench: Bench, peer_id: str, kv_length: int = 0, log_start: int = 0) -> list[DriverAction]:
    """Have a peer agree to its open that can be copied."""
    held = {"kv_length": kv_length, "log_start": log_start}
    return bench.tell(peer_id, Opened(SESSION, bench.driver.epoch, copies=True, **held))


def with_copies() -> Bench:
    """A session of hops a and b, whose copies are on x and y; two tokens have come."""
    bench = Bench(standby=1)
    bench.start()
    bench.found()
    agree(bench, "a")
    asked = [a for a in agree(bench, "b") if isinstance(a, NeedRoute)]
    for need, spare in zip(asked, ("x 0:4", "y 4:8"), strict=True):
        bench.handle(RouteFound(need.ask, hops(spare)))
        agree(bench, spare[0])
    bench.token(10)
    bench.token(11)
    return bench


def test_after_a_repair_the_copies_that_are_left_go_on_after_the_first_token() -> None:
    bench = with_copies()
    assert list(opens(bench.lose("b"))) == ["a", "y"], "the copy takes the place of the hop"
    agree(bench, "a", 12)
    ready = agree(bench, "y", 11, log_start=11)
    assert not opens(ready)
    assert steps(ready), "the stream goes on"
    first = bench.token(12, "y")
    assert steps(first)
    assert {peer: order.donor for peer, order in opens(first).items()} == {"x": "a"}
    assert not opens(bench.token(13, "y")), "once"


def test_a_hop_that_wants_to_leave_has_the_copies_at_once() -> None:
    bench = with_copies()
    bench.lose("b")
    agree(bench, "a", 12)
    assert not opens(agree(bench, "y", 11, log_start=11))
    actions = bench.tell("a", Leaving(SESSION, bench.driver.epoch))
    assert {peer: order.donor for peer, order in opens(actions).items()} == {"x": "a"}


@pytest.mark.parametrize("resumes", [False, True])
def test_after_a_repair_the_stream_goes_on_before_a_new_copy_is_begun(resumes: bool) -> None:
    model = toy_model(6, max_len=600)
    made = Swarm(model, 1)
    for number, blocks in enumerate(("0:2", "2:4", "4:6")):
        for replica in "abc":
            made.add(f"{replica}{number}", blocks)
    made.add("boss")
    made.add("heir")
    client = made.client(1, tuple(range(40)), 400, SamplingParams(), standby=1)
    made.start(client, "boss")
    made.run(60.0, while_true=lambda: len(client.ids) < 20)
    dead, before, copies = client.route[1].peer_id, len(client.ids), len(client.standbys)
    assert copies == 3
    made.kill(dead)
    if resumes:
        made.kill("boss")
        made.start(client, "heir")
    killed = made.now
    made.run(killed + 30.0, while_true=lambda: len(client.ids) < before + 5)
    run = client.run
    assert run is not None
    assert made.now < killed + made.driver_policy.standby_after
    assert len(run.driver.standbys.peers) == 2
    made.run(killed + 30.0, while_true=lambda: len(run.driver.standbys.peers) < 3)
    assert len(run.driver.standbys.peers) == 3
    assert made.now >= killed + made.driver_policy.standby_after
    made.run(made.now + 120, while_true=lambda: client.finished is None)
    args = (client.request.prompt_ids, client.request.sampling, 400, client.request.chunk_size)
    assert client.ids == toy_oracle(model, *args)

"""A copy that lags too far behind, and gets no nearer, is given up, and begun anew in a while."""

from __future__ import annotations

from dataclasses import replace

import pytest
from bench_driver import FEED, REQUEST, ROUTE, SESSION, Bench, finish, hops, opens, sent

from swarmd.core.frames import Close, Copied, Copy, Leaving, Opened
from swarmd.core.sampling import SamplingParams
from swarmd.lossy_links import Weather
from swarmd.pipeline.driver_state import DriverState
from swarmd.pipeline.events import DriverAction, NeedRoute, Routed, RouteFound
from swarmd.pipeline.hop import HopPolicy
from swarmd.pipeline.policy import DriverPolicy
from swarmd.pipeline.standbys import LOOKS, Standbys
from swarmd.simulation import Swarm
from swarmd.toys import toy_model, toy_oracle

LAG = 8
POLICY = DriverPolicy(standby_lag=LAG, standby_rest=10.0)
LOOK = POLICY.keep_every
HOP = ROUTE[0]


def gives_up(*lacks: int) -> bool:
    """Whether a copy is given up at the last of some looks, and at no earlier one."""
    standbys = Standbys(replace(REQUEST, standby=1), FEED, 0.25)
    standbys.want(HOP, 0.0, leaving=False)
    standbys.look(1, ROUTE, frozenset(), 0.0)
    standbys.found(1, hops("x 0:4"), ROUTE, 1, 0.0)
    standbys.opened("x", Opened(SESSION, 1))
    looks = [standbys.lagging(lack, LAG) == ["x"] for lack in lacks]
    assert not any(looks[:-1])
    return looks[-1]


@pytest.mark.parametrize(
    ("lacks", "given_up"),
    [
        ((LAG,) * 9, False),
        ((LAG + 1,) * (1 + LOOKS), True),
        ((1000, 900, 800, 700), False),  # a long prompt is on its way
        ((1000, 900, 900, 899, 899), False),
        ((1000, 900, 950, 940), True),  # nearer than the last time is not nearer than it was
        ((20, 20, LAG, 20, 20), False),
    ],
)
def test_a_copy_is_given_up_when_it_lacks_too_much_and_gets_no_nearer(
    lacks: tuple[int, ...], given_up: bool
) -> None:
    assert gives_up(*lacks) is given_up


def with_copies(leaving: bool = False) -> Bench:
    """A session whose first hop has a copy on x that holds nothing yet."""
    bench = Bench(POLICY, standby=int(not leaving), max_tokens=480)
    bench.start()
    bench.found()
    for peer in "ab":
        bench.tell(peer, Opened(SESSION, bench.driver.epoch, copies=peer == "a"))
    if leaving:
        bench.tell("a", Leaving(SESSION, bench.driver.epoch, 1))
    bench.handle(RouteFound(bench.need.ask, hops("x 0:4")))
    bench.tell("x", Opened(SESSION, bench.driver.epoch, copies=True))
    return bench


def go_on(bench: Bench, held: int | None = None, looks: int = 1) -> list[DriverAction]:
    """Let tokens come until it has been looked after the copies so many times."""
    actions = []
    for _ in range(looks * 5):
        assert bench.driver.state is DriverState.RUNNING
        actions += bench.token(bench.driver.feed.known)
        if held is not None:
            bench.tell("x", Copied(SESSION, bench.driver.epoch, held))
        actions += bench.wait(LOOK / 5)
    return actions


def searches(actions: list[DriverAction]) -> list[NeedRoute]:
    return [action for action in actions if isinstance(action, NeedRoute)]


def test_a_copy_that_nothing_comes_through_to_is_given_up_and_its_room_freed() -> None:
    bench = with_copies()
    actions = go_on(bench, looks=1 + LOOKS)
    assert sent(actions, "a", Copy), "it has been begun anew before"
    assert len(sent(actions, "x", Close)) == 1
    assert bench.driver.standbys.given_up == 1
    told = [action for action in actions if isinstance(action, Routed)]
    assert told[-1].standbys == (), "its client does not count on it any more"
    assert bench.driver.repairs == 0


def test_a_copy_that_keeps_up_is_kept() -> None:
    bench = with_copies()
    for _ in range(10):
        go_on(bench, held=bench.driver.feed.known - 4)
    assert bench.driver.standbys.given_up == 0


def test_the_prompt_counts_when_it_is_computed() -> None:
    """A session may wait in line for long before."""
    bench = with_copies()
    bench.wait(4 * LOOK)
    assert bench.driver.standbys.given_up == 0


def test_another_copy_is_begun_elsewhere_at_once_and_there_after_a_rest_that_doubles() -> None:
    bench = with_copies()
    for rest in (10.0, 20.0, 40.0):
        given_up = bench.driver.standbys.given_up
        while bench.driver.standbys.given_up == given_up:
            go_on(bench)
        bench.wait(0.5)
        assert bench.need.exclude >= {"x"}, "somebody else may do better"
        began = bench.now
        asked: list[NeedRoute] = []
        while not asked or "x" in asked[-1].exclude:
            assert finish(bench.missing((0, 4))) is None
            asked = searches(go_on(bench)) or asked
        assert bench.now - began >= rest - 2 * LOOK
        assert bench.now - began <= rest + 8.0 + 2 * LOOK, "searches are rare, but come to an end"
        made = bench.handle(RouteFound(asked[-1].ask, hops("x 0:4")))
        assert list(opens(made)) == ["x"]
        bench.tell("x", Opened(SESSION, bench.driver.epoch, copies=True))


def test_the_copy_of_a_hop_that_leaves_is_not_given_up() -> None:
    bench = with_copies(leaving=True)
    assert not sent(go_on(bench, looks=10), "x", Close)
    assert bench.driver.standbys.given_up == 0


def test_where_links_are_too_slow_copies_end_and_come_back_when_they_are_not() -> None:
    """Five positions a second are copied, and about twenty computed."""
    model = toy_model(6, max_len=2000)
    policy = HopPolicy(prefix_unit=0, copy_rate=10.0, copy_frame_bytes=8)
    swarm = Swarm(model, 1, Weather(), policy, DriverPolicy(standby_lag=32))
    for number, blocks in enumerate(("0:2", "2:4", "4:6")):
        for replica in "ab":
            swarm.add(f"{replica}{number}", blocks)
    swarm.add("boss")
    client = swarm.client(1, tuple(range(40)), 1500, SamplingParams(), standby=1)
    run = swarm.start(client, "boss")
    standbys = run.driver.standbys
    lags_since: dict[str, float] = {}
    while swarm.now < 40.0:
        swarm.run(swarm.now + 0.5)
        lags = {name for name, node in swarm.nodes.items() if node.table.copies.lag > 32}
        lags_since = {name: lags_since.get(name, swarm.now) for name in lags}
        assert all(swarm.now - since <= (2 + LOOKS) * LOOK for since in lags_since.values())
    assert 3 <= standbys.given_up <= 9, "each hop's copy; some twice"
    assert any(standby.look_at is not None for standby in standbys)
    for node in swarm.nodes.values():
        node.table.copies._policy = HopPolicy(prefix_unit=0)
    swarm.run(swarm.now + 60, while_true=lambda: len(client.ids) < 1450)
    assert len(client.standbys) == 3
    assert sum(node.table.copies.lag for node in swarm.nodes.values()) < 32
    swarm.run(swarm.now + 60, while_true=lambda: client.finished is None)
    args = (client.request.prompt_ids, client.request.sampling, 1500, client.request.chunk_size)
    assert client.ids == toy_oracle(model, *args)
    assert client.repairs == 0

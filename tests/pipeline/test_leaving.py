"""What a node said that leaves: it counts in its epoch, and until it says that it stays."""

from __future__ import annotations

import pytest
from bench_driver import SESSION, Bench, hops, opens, sent, steps
from toy_streams import finish

from swarmd.core.frames import Close, Copied, Copy, Leaving, Opened
from swarmd.core.sampling import SamplingParams
from swarmd.lossy_links import Weather
from swarmd.pipeline.events import DriverAction, NeedRoute, RouteFound, Tick
from swarmd.pipeline.hop import HopPolicy
from swarmd.simulation import Client, Swarm
from swarmd.toys import toy_model


def running(standby: int = 0, max_tokens: int = 50) -> Bench:
    bench = Bench(standby=standby, max_tokens=max_tokens)
    bench.start()
    bench.found()
    for peer in "ab":
        agrees(bench, peer)
    bench.token(10)
    return bench


def agrees(bench: Bench, peer_id: str, kv_length: int = 0) -> list[DriverAction]:
    epoch = bench.driver.epoch
    return bench.tell(peer_id, Opened(SESSION, epoch, kv_length=kv_length, copies=True))


def says(
    bench: Bench, decision: int, stays: bool = False, behind: int = 0, peer_id: str = "a"
) -> list[DriverAction]:
    """Have a peer say that it goes or stays, in this epoch or in one before."""
    epoch = bench.driver.epoch - behind
    return bench.tell(peer_id, Leaving(SESSION, epoch, decision, stays))


def searches(actions: list[DriverAction]) -> list[NeedRoute]:
    return [action for action in actions if isinstance(action, NeedRoute)]


def successor(bench: Bench) -> None:
    """Have x hold all of the first hop's KV but the last position."""
    bench.handle(RouteFound(bench.need.ask, hops("x 0:4")))
    agrees(bench, "x")
    bench.tell("x", Copied(SESSION, bench.driver.epoch, bench.driver.feed.known - 1))


def test_what_was_said_in_another_epoch_counts_no_more() -> None:
    bench = running()
    bench.lose("b")
    bench.found(hops("c 4:8"))
    agrees(bench, "a", 10)
    assert not says(bench, 1, behind=1), "while the new one is opened"
    agrees(bench, "c", 0)
    assert bench.driver.epoch == 2
    for behind in (1, -1):
        assert not searches(says(bench, 1, behind=behind))
    assert not bench.driver.standbys.is_hurried
    assert searches(says(bench, 1))


def two_leave_and_one_is_lost() -> Bench:
    """Hops a and c leave, with copies on x and z; b is lost, and d found for it."""
    bench = Bench(max_tokens=50)
    bench.start()
    bench.found(hops("a 0:3", "b 3:6", "c 6:8"))
    for peer in "abc":
        agrees(bench, peer)
    bench.token(10)
    for peer, spare in (("a", "x 0:3"), ("c", "z 6:8")):
        says(bench, 1, peer_id=peer)
        bench.handle(RouteFound(bench.need.ask, hops(spare)))
        agrees(bench, spare[0], 3)
    bench.lose("b")
    bench.found(hops("d 3:6"))
    agrees(bench, "a", 11)
    says(bench, 1, peer_id="a")
    agrees(bench, "d")
    agrees(bench, "c", 11)
    return bench


def test_a_copy_is_kept_for_a_hop_that_says_it_leaves_as_the_last_one() -> None:
    bench = two_leave_and_one_is_lost()
    says(bench, 1, peer_id="c")
    assert not sent(bench.done, "z", Close)
    assert bench.driver.standbys.leaves("c")
    bench.now += bench.driver.policy.keep_every
    bench.handle(Tick())
    assert not sent(bench.done, "z", Close)


def test_a_copy_of_a_hop_that_leaves_no_more_is_given_back_in_a_while() -> None:
    bench = two_leave_and_one_is_lost()
    bench.now += bench.driver.policy.keep_every
    bench.handle(Tick())
    assert sent(bench.done, "z", Close)
    assert not sent(bench.done, "x", Close)


def test_what_comes_again_or_late_changes_nothing() -> None:
    bench = running()
    assert searches(says(bench, 3))
    assert not says(bench, 3)
    says(bench, 4, stays=True)
    for decision in (3, 4, 1):
        assert not says(bench, decision)
        assert not bench.driver.standbys.is_hurried
    assert searches(says(bench, 5))
    assert not says(bench, 4, stays=True)
    assert bench.driver.standbys.is_hurried


def test_a_session_whose_hop_stays_ends_its_pause_and_its_copy() -> None:
    bench = running()
    says(bench, 1)
    successor(bench)
    bench.token(11)
    assert bench.driver.feed.paused
    actions = says(bench, 2, stays=True)
    assert sent(actions, "x", Close)
    assert [(order.peer_id, str(order.blocks)) for order in sent(actions, "a", Copy)] == [
        ("", "0:4")
    ]
    assert steps(actions)[0].position == 11
    assert not opens(bench.tell("x", Copied(SESSION, bench.driver.epoch, 11)))
    assert (bench.driver.handoffs, bench.driver.repairs) == (0, 0)


def test_where_standbys_are_wanted_the_copy_of_a_hop_that_stays_is_one() -> None:
    bench = running(standby=1)
    says(bench, 1)
    bench.handle(RouteFound(searches(bench.done)[1].ask, hops("x 0:4")))
    agrees(bench, "x", 9)
    assert not sent(says(bench, 2, stays=True), "x", Close)
    assert [peer.peer_id for peer in bench.driver.standbys.peers] == ["x"]
    bench.tell("x", Copied(SESSION, bench.driver.epoch, 10))
    assert bench.driver.handoffs == 0
    assert list(opens(bench.lose("a"))) == ["x", "b"], "it is there when the hop is lost"


@pytest.mark.parametrize("says_it_again", [True, False])
def test_a_hop_that_goes_says_so_in_each_epoch_and_one_that_does_not_has_stayed(
    says_it_again: bool,
) -> None:
    bench = running()
    says(bench, 1)
    bench.lose("b")
    bench.found(hops("c 4:8"))
    agrees(bench, "a", 10)
    if says_it_again:
        says(bench, 1)
    agrees(bench, "c", 0)
    bench.token(11, "c")
    assert bench.driver.standbys.is_hurried is says_it_again


def test_a_peer_with_a_copy_that_is_started_again_is_heard_when_it_leaves_once_more() -> None:
    bench = running(standby=1)
    ask = searches(bench.done)[1].ask
    for _ in range(2):
        bench.handle(RouteFound(ask, hops("x 0:4")))
        agrees(bench, "x")
        assert sent(says(bench, 1, peer_id="x"), "x", Close)
        ask = searches(bench.wait(0.3))[0].ask


# Whole swarms.

MODEL = toy_model(6, max_len=900)


def swarm_of(seed: int) -> Swarm:
    """Three spans, two holders each; copies are slow, so that handoffs take seconds."""
    policy = HopPolicy(prefix_unit=0, copy_rate=60.0, copy_frame_bytes=8)
    swarm = Swarm(MODEL, seed, Weather(), policy)
    for number, blocks in enumerate(("0:2", "2:4", "4:6")):
        for replica in "ab":
            swarm.add(f"{replica}{number}", blocks)
    swarm.add("boss")
    return swarm


def leave_nothing(swarm: Swarm, client: Client) -> None:
    finish(swarm, client)
    swarm.run(swarm.now + 30)
    assert not any(node.account.reserved for node in swarm.nodes.values())


@pytest.mark.parametrize("index", [0, 1, 2])
def test_sessions_of_a_node_that_stays_stay_there_and_leave_nothing_elsewhere(index: int) -> None:
    swarm = swarm_of(index)
    client = swarm.client(1, tuple(range(300)), 300, SamplingParams())
    swarm.start(client, "boss")
    swarm.run(60.0, while_true=lambda: len(client.ids) < 5)
    route, leaving = client.route, client.route[index].peer_id
    swarm.drain(leaving)
    run = client.run
    assert run is not None
    swarm.run(swarm.now + 5, while_true=lambda: not run.driver.standbys.open_peers)
    (heir,) = run.driver.standbys.open_peers
    swarm.stay(leaving)
    swarm.run(swarm.now + 1)
    assert not swarm.nodes[heir.peer_id].table.sessions, "its KV is free again"
    assert swarm.nodes[leaving].table.copies.lag == 0, "and nothing is sent there any more"
    leave_nothing(swarm, client)
    assert client.route == route
    assert run.driver.handoffs == client.repairs == 0

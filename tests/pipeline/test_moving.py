"""Nodes that leave hand their sessions off, and copies stand by for those that die."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from bench_driver import SESSION, Bench, emitted, hops, opens, sent, steps

from swarmd.core.frames import Copied, Copy, Leaving, Opened, Poll, Refusal
from swarmd.core.sampling import SamplingParams
from swarmd.lossy_links import Weather
from swarmd.pipeline.events import DriverAction, PeerLost
from swarmd.pipeline.hop import HopPolicy
from swarmd.pipeline.policy import DriverPolicy
from swarmd.simulation import Client, SimNode, Swarm
from swarmd.toys import toy_model, toy_oracle

MODEL = toy_model(6, max_len=600)
SAMPLING = SamplingParams(repetition_penalty=1.5)
"""Needs the ids so far, which have to move, too."""
PROMPT = tuple(range(40))


def swarm(seed: int = 1, policy: HopPolicy | None = None) -> Swarm:
    """Three spans, two holders each."""
    made = Swarm(MODEL, seed, Weather(), policy or HopPolicy(prefix_unit=0))
    for number, blocks in enumerate(("0:2", "2:4", "4:6")):
        for replica in "ab":
            made.add(f"{replica}{number}", blocks)
    made.add("boss")
    return made


def client(made: Swarm, number: int = 1, max_tokens: int = 60, standby: int = 0) -> Client:
    return made.client(number, PROMPT, max_tokens, SAMPLING, standby=standby)


def run_until(made: Swarm, someone: Client, tokens: int) -> None:
    made.run(made.now + 60, while_true=lambda: len(someone.ids) < tokens)
    assert len(someone.ids) >= tokens


def finish(made: Swarm, *clients: Client) -> None:
    made.run(made.now + 120, while_true=lambda: any(c.finished is None for c in clients))
    made.run(made.now + 60)
    for someone in clients:
        assert someone.finished is not None
        assert someone.finished.error is None
        request = someone.request
        args = (request.prompt_ids, request.sampling, request.max_tokens, request.chunk_size)
        assert someone.ids == toy_oracle(MODEL, *args)


def total(made: Swarm, name: str) -> int:
    return sum(getattr(node.table.counters, name) for node in made.nodes.values())


def hop_of(made: Swarm, someone: Client, index: int) -> SimNode:
    return made.nodes[someone.route[index].peer_id]


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_node_that_leaves_hands_its_sessions_off_and_nothing_is_computed_again(
    index: int,
) -> None:
    made = swarm()
    clients = [client(made, number) for number in (1, 2, 3)]
    for someone in clients:
        made.start(someone, "boss")
    run_until(made, clients[0], 5)
    leaving = hop_of(made, clients[0], index)
    made.drain(leaving.peer_id)
    made.run(made.now + 30, while_true=lambda: bool(leaving.table.sessions))
    assert not leaving.table.sessions
    assert any(someone.finished is None for someone in clients)
    finish(made, *clients)
    assert total(made, "recomputed_positions") == total(made, "replayed_positions") == 0
    assert total(made, "taken_over") >= 1
    assert sum(someone.repairs for someone in clients) == 0
    assert all(leaving.peer_id not in {h.peer_id for h in c.route} for c in clients)


def test_a_coordinator_that_leaves_lets_another_one_go_on_and_nothing_is_computed_again() -> None:
    made = swarm()
    someone = client(made)
    first = "a0"
    made.start(someone, first)
    run_until(made, someone, 5)
    made.drain(first)
    made.run(made.now + 30, while_true=lambda: someone.resumes == 0)
    node = made.nodes[first]
    assert not node.drivers
    made.run(made.now + 5, while_true=lambda: bool(node.table.sessions))
    assert not node.table.sessions
    finish(made, someone)
    assert total(made, "recomputed_positions") == total(made, "replayed_positions") == 0


def test_two_nodes_that_leave_one_after_the_other_hand_off_twice() -> None:
    made = swarm()
    made.add("c1", "2:4")
    someone = client(made, max_tokens=200)
    made.start(someone, "boss")
    run_until(made, someone, 5)
    first = hop_of(made, someone, 1).peer_id
    made.drain(first)
    made.run(made.now + 0.1)
    second = someone.route[1].peer_id
    others = {"a1", "b1", "c1"} - {first}
    made.drain(second if second != first else sorted(others)[0])
    finish(made, someone)
    assert total(made, "recomputed_positions") == 0


def test_a_node_without_a_successor_keeps_its_sessions_until_one_comes() -> None:
    made = swarm()
    made.kill("b1")
    someone = client(made, max_tokens=300)
    made.run(2.0)
    made.start(someone, "boss")
    run_until(made, someone, 5)
    made.drain("a1")
    run_until(made, someone, 50)
    assert someone.route[1].peer_id == "a1"
    made.add("c1", "2:4")
    made.announce("c1")
    run_until(made, someone, 200)
    assert someone.route[1].peer_id == "c1"
    finish(made, someone)
    assert total(made, "recomputed_positions") == 0


def test_a_successor_that_dies_while_it_is_fed_changes_nothing() -> None:
    made = swarm()
    made.add("c1", "2:4")
    someone = client(made, max_tokens=200)
    made.start(someone, "boss")
    run_until(made, someone, 5)
    leaving = someone.route[1].peer_id
    made.drain(leaving)
    run = someone.run
    assert run is not None
    made.run(made.now + 5, while_true=lambda: not run.driver.standbys.peers)
    made.kill(run.driver.standbys.peers[0].peer_id)
    finish(made, someone)
    assert someone.route[1].peer_id != leaving


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_standby_goes_on_where_a_hop_died_and_no_prompt_is_replayed(index: int) -> None:
    made = swarm()
    someone = client(made, standby=1)
    made.start(someone, "boss")
    run_until(made, someone, 20)
    assert len(someone.standbys) == 3
    copied = total(made, "copied_positions")
    assert copied >= 3 * 55
    dead = someone.route[index].peer_id
    (heir,) = [p.peer_id for p in someone.standbys if p.blocks == someone.route[index].blocks]
    made.kill(dead)
    made.run(made.now + 30, while_true=lambda: someone.repairs == 0 or len(someone.ids) < 25)
    assert someone.route[index].peer_id == heir
    assert total(made, "replayed_positions") <= 8
    assert total(made, "recomputed_positions") <= 8
    finish(made, someone)
    assert made.nodes[heir].table.counters.taken_over == 1


def test_standbys_are_known_to_the_client_and_serve_the_next_coordinator() -> None:
    made = swarm()
    someone = client(made, standby=1)
    made.start(someone, "a0")
    run_until(made, someone, 20)
    heirs = {peer.peer_id for peer in someone.standbys}
    made.kill("a0")
    dead = someone.route[0].peer_id
    if dead != "a0":
        made.kill(dead)
    made.start(someone, "boss")
    finish(made, someone)
    assert total(made, "replayed_positions") <= 8
    assert someone.route[0].peer_id in heirs


def test_copies_end_with_their_session() -> None:
    made = swarm()
    someone = client(made, standby=1)
    made.start(someone, "boss")
    finish(made, someone)
    for node in made.nodes.values():
        assert not node.table.sessions
        assert not node.account.reserved
        assert not node.table.copies.under_way


def test_a_node_that_leaves_does_not_wait_with_the_copies_that_it_holds() -> None:
    made = swarm()
    someone = client(made, standby=1, max_tokens=200)
    made.start(someone, "boss")
    run_until(made, someone, 20)
    holder = someone.standbys[1].peer_id
    made.drain(holder)
    made.run(made.now + 1)
    assert not made.nodes[holder].table.sessions
    finish(made, someone)


def test_a_copy_is_sent_no_faster_than_the_rate_allows() -> None:
    made = swarm(policy=HopPolicy(prefix_unit=0, copy_rate=40.0, copy_frame_bytes=8))
    someone = client(made, standby=1, max_tokens=100)
    made.start(someone, "boss")
    began = made.now
    run_until(made, someone, 90)
    seconds = made.now - began
    for node in made.nodes.values():
        assert node.table.counters.copied_positions * 2 <= 40 * seconds + 16
    finish(made, someone)


@pytest.mark.parametrize("seed", range(1, 6))
def test_a_copy_of_a_hop_that_is_lost_before_it_began_is_given_up_at_once(seed: int) -> None:
    made = swarm(seed)
    for more in "cdef":
        made.add(f"{more}1", "2:4")
    someone = client(made, standby=1, max_tokens=100)
    run = made.start(someone, "boss")
    peers = run.driver.standbys

    def is_asked_for() -> bool:
        lost = someone.route[1:2]
        return any(s.hop in lost and s.peers and not s.is_open for s in peers)

    made.run(made.now + 30, while_true=lambda: not is_asked_for())
    run.handle(PeerLost(someone.route[1].peer_id))
    made.run(made.now + 2)
    assert someone.repairs == 1
    holders = {peer for peer, node in made.nodes.items() if node.table.sessions}
    assert holders == {hop.peer_id for hop in (*someone.route, *someone.standbys)}
    finish(made, someone)


def copied(window: int, prompt: int, lacks: int = 0) -> Bench:
    """A session whose first hop leaves; its successor holds all of the prompt, or nearly."""
    bench = Bench(DriverPolicy(window=window), prompt_ids=tuple(range(prompt)))
    bench.start()
    bench.found()
    for peer in "ab":
        bench.tell(peer, Opened(SESSION, bench.driver.epoch, copies=True))
    bench.tell("a", Leaving(SESSION, bench.driver.epoch))
    bench.found(hops("c 0:4"))
    bench.opened("c")
    bench.tell("c", Copied(SESSION, bench.driver.epoch, prompt - 1 - lacks))
    return bench


def test_a_session_does_not_pause_for_its_handoff_while_its_hops_are_fed_the_past() -> None:
    """The copy may be older than a repair that feeds them anew."""
    bench = copied(window=2, prompt=60)
    for position in range(4, 56, 4):
        assert steps(bench.token(position)), f"nothing follows position {position}"
    assert bench.driver.repairs == 0


def test_a_session_that_pauses_and_is_rewound_goes_on() -> None:
    bench = copied(window=64, prompt=60)
    bench.token(4)
    assert bench.driver.feed.paused
    assert steps(bench.gap("b", 8))[0].position == 8


def test_a_copy_is_far_from_whole_when_its_hop_computes_it_all_again() -> None:
    bench = copied(window=64, prompt=60)
    bench.gap("b", 8)
    assert steps(bench.token(60)), "no pause for what is not nearly there"


def test_the_token_under_way_at_a_pause_does_not_end_it() -> None:
    """Or a copy that always lacks so much would never be put in place."""
    bench = copied(window=64, prompt=60, lacks=DriverPolicy().handoff_lag)
    bench.token(4)
    assert bench.driver.feed.paused
    assert not steps(bench.token(60))
    assert "c" in opens(bench.tell("c", Copied(SESSION, bench.driver.epoch, 60)))


def test_a_copy_is_to_keep_what_is_known_for_sure_and_to_get_the_rest_anew() -> None:
    """A resumed session: its hops compute the last position again, perhaps of another id."""
    bench = Bench(known_ids=(10, 11), max_tokens=9, epoch=1, route=hops("a 0:4", "b 4:8"))
    bench.start()
    for peer in "ab":
        held = bench.driver.feed.known
        bench.tell(peer, Opened(SESSION, bench.driver.epoch, kv_length=held, copies=True))
    bench.tell("a", Leaving(SESSION, bench.driver.epoch))
    last = bench.driver.feed.known - 1
    asked = bench.found(hops("c 0:4"))
    assert opens(asked)["c"].computed == last
    bench.opened("c", kv_length=last)
    order = sent(bench.done, "a", Copy)[-1]
    assert (order.position, order.round, order.sure) == (last, bench.driver.feed.round, last)
    assert not opens(bench.token(12))
    assert "c" in opens(bench.tell("c", Copied(SESSION, bench.driver.epoch, last + 1)))


def loses_it(bench: Bench) -> list[DriverAction]:
    return bench.lose("c")


def is_refused_by_it(bench: Bench) -> list[DriverAction]:
    return bench.fail("c", Refusal.KV_EXHAUSTED)


def sees_it_leave(bench: Bench) -> list[DriverAction]:
    return bench.tell("c", Leaving(SESSION, bench.driver.epoch))


ENDS = [loses_it, is_refused_by_it, sees_it_leave]


@pytest.mark.parametrize("ends", ENDS)
def test_a_session_that_paused_goes_on_with_its_token_when_its_successor_is_gone(
    ends: Callable[[Bench], list[DriverAction]],
) -> None:
    bench = copied(window=64, prompt=60)
    bench.token(4)
    assert bench.driver.feed.paused
    assert not steps(ends(bench)), "all is under way yet"
    assert steps(bench.token(60))[0].position == 60
    assert bench.driver.repairs == 0


@pytest.mark.parametrize("ends", ENDS)
def test_a_session_that_stands_still_goes_on_at_once_when_its_successor_is_gone(
    ends: Callable[[Bench], list[DriverAction]],
) -> None:
    bench = copied(window=64, prompt=60)
    assert not steps(bench.token(60)), "the copy lacks one position"
    assert steps(ends(bench))[0].position == 60
    assert emitted(bench.token(61)) == [561]


def test_the_token_after_a_pause_is_watched_as_any_other() -> None:
    bench = copied(window=64, prompt=60)
    bench.token(60)
    bench.lose("c")
    assert sent(bench.wait(bench.driver.policy.watch.at_first / 2), "a", Poll)

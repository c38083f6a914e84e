"""What a session survives, one promise at a time, on a simulated swarm."""

from __future__ import annotations

import pytest

from swarmd.core.errors import CoverageError, PromptTooLong
from swarmd.core.sampling import SamplingParams
from swarmd.lossy_links import Weather
from swarmd.pipeline.hop import HopPolicy
from swarmd.simulation import Client, Swarm
from swarmd.toys import toy_model, toy_oracle

MODEL = toy_model(num_blocks=9)
PROMPT = tuple(range(40))
TOKENS = 30
NODES = {"a1": "0:3", "a2": "0:3", "b1": "3:6", "b2": "3:6", "c1": "6:9", "c2": "6:9"}


def make(nodes: dict[str, str] = NODES, **rest: object) -> Swarm:
    """A swarm with a coordinator `boss` that is no hop."""
    swarm = Swarm(MODEL, **rest)  # type: ignore[arg-type]
    swarm.add("boss")
    swarm.add("heir")
    for peer, blocks in nodes.items():
        swarm.add(peer, blocks)
    return swarm


def begin(swarm: Swarm, tokens: int = 0, at: str = "boss", number: int = 1) -> Client:
    """Start a session and let so many tokens come."""
    sampling = SamplingParams(temperature=1.0, seed=number, presence_penalty=0.3)
    client = swarm.client(number, PROMPT, TOKENS, sampling, chunk_size=16)
    swarm.start(client, at)
    swarm.run(60, lambda: len(client.ids) < tokens)
    return client


def end(swarm: Swarm, client: Client) -> Client:
    """Let a session end, and hold its ids against those of one process."""
    swarm.run(600, lambda: client.finished is None)
    assert client.finished is not None
    assert client.finished.error is None
    request = client.request
    assert client.ids == toy_oracle(MODEL, PROMPT, request.sampling, TOKENS, 16)
    return client


def hop(client: Client, index: int) -> str:
    return client.route[index].peer_id


def recomputed(client: Client) -> int:
    """What its last coordinator says of positions that were computed again."""
    assert client.run is not None
    return client.run.driver.recomputed


def table(swarm: Swarm, peer: str):  # type: ignore[no-untyped-def]
    return swarm.nodes[peer].table


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_lost_hop_is_replaced_and_the_text_stays_the_same(index: int) -> None:
    swarm = make()
    client = begin(swarm, tokens=10)
    before = client.route
    swarm.kill(hop(client, index))
    end(swarm, client)
    assert client.repairs == 1
    assert client.stall < 1.0
    changed = [old.peer_id != new.peer_id for old, new in zip(before, client.route, strict=True)]
    assert changed == [at == index for at in range(3)]
    survivors = [hop for at, hop in enumerate(before) if at != index]
    for survivor in survivors:
        counters = table(swarm, survivor.peer_id).counters
        assert counters.adopted == 1
        assert counters.recomputed_positions <= 1, "only the lost hop is rebuilt"
    again = len(PROMPT) + 9
    assert again <= recomputed(client) <= again + 2, "whoever feeds the replacement"
    counters = table(swarm, client.route[index].peer_id).counters
    assert again - 1 <= counters.recomputed_positions <= again + 2, "and it says so itself"


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_hop_lost_during_prefill_is_replaced(index: int) -> None:
    swarm = make(weather=Weather(compute=(0.05, 0.05)))
    client = begin(swarm)
    swarm.run(60, lambda: not client.route)
    swarm.run(swarm.now + 0.12)
    assert client.ids == []
    swarm.kill(hop(client, index))
    end(swarm, client)
    assert client.repairs == 1


def test_a_replay_refills_the_log_so_that_a_second_fault_finds_it_whole() -> None:
    swarm = make()
    client = begin(swarm, tokens=10)
    swarm.kill(hop(client, 0))
    swarm.run(60, lambda: len(client.ids) < 15)
    first, last = hop(client, 0), hop(client, 2)
    before = table(swarm, first).counters.recomputed_positions
    swarm.kill(hop(client, 1))
    end(swarm, client)
    assert client.repairs == 2
    assert table(swarm, first).counters.replayed_positions >= len(PROMPT) + 14
    assert table(swarm, first).counters.recomputed_positions <= before + 1
    assert table(swarm, last).counters.recomputed_positions <= 2


def test_two_hops_lost_at_once_are_both_replaced() -> None:
    swarm = make()
    client = begin(swarm, tokens=10)
    swarm.kill(hop(client, 0))
    swarm.kill(hop(client, 1))
    end(swarm, client)
    assert table(swarm, hop(client, 2)).counters.recomputed_positions <= 1


def test_a_replacement_that_dies_during_the_repair_is_replaced_too() -> None:
    swarm = make({**NODES, "b3": "3:6"})
    client = begin(swarm, tokens=10)
    swarm.kill(hop(client, 1))
    others = {"b1", "b2", "b3"} - {hop(client, 1)}
    swarm.run(60, lambda: not any(table(swarm, peer).sessions for peer in others))
    (chosen,) = (peer for peer in others if table(swarm, peer).sessions)
    swarm.kill(chosen)
    end(swarm, client)
    assert {hop(client, 1)} == others - {chosen}


def test_without_a_log_the_ids_are_replayed_through_all_hops() -> None:
    swarm = make(hop_policy=HopPolicy(replay_log_bytes=0))
    client = begin(swarm, tokens=10)
    first = hop(client, 0)
    swarm.kill(hop(client, 1))
    end(swarm, client)
    assert client.repairs == 1
    assert table(swarm, first).counters.evicted_positions > 0
    assert table(swarm, first).counters.replayed_positions == 0
    assert table(swarm, first).counters.recomputed_positions >= len(PROMPT) + 9


def test_stages_that_cannot_rewind_start_over() -> None:
    swarm = Swarm(MODEL)
    swarm.add("boss")
    for peer, blocks in NODES.items():
        swarm.add(peer, blocks, rewinds=False)
    client = begin(swarm, tokens=10)
    swarm.kill(hop(client, 1))
    end(swarm, client)
    assert table(swarm, hop(client, 0)).counters.recomputed_positions >= len(PROMPT) + 9


def test_a_span_is_entered_and_left_in_the_middle() -> None:
    swarm = make({"a": "0:5", "b": "3:6", "wide": "1:9"})
    client = begin(swarm, tokens=10)
    if hop(client, 1) == "b":
        swarm.kill("b")
    end(swarm, client)
    assert client.route[0].blocks.end == client.route[1].blocks.start
    assert client.route[1].peer_id == "wide"
    assert client.route[1].blocks.start > 1


def test_no_activation_goes_through_the_coordinator_not_even_during_a_repair() -> None:
    swarm = make()
    client = begin(swarm, tokens=10)
    swarm.kill(hop(client, 1))
    end(swarm, client)
    sent = swarm.links.activation_bytes
    assert sent.get("boss", 0) == 0
    assert sent[hop(client, 0)] > 0
    assert sent.get(hop(client, 2), 0) == 0


def test_a_coordinator_that_is_the_first_hop_serves_both() -> None:
    swarm = make()
    client = begin(swarm, tokens=10, at="a1")
    end(swarm, client)


# The coordinator and the client.


@pytest.mark.parametrize("forgotten", [0, 1, 4])
def test_another_coordinator_goes_on_with_what_survives(forgotten: int) -> None:
    swarm = make()
    client = begin(swarm, tokens=10)
    route = client.route
    swarm.kill("boss")
    swarm.run(swarm.now + 3)
    del client.ids[len(client.ids) - forgotten :]
    swarm.start(client, "heir")
    end(swarm, client)
    assert client.route == route
    for part in route:
        counters = table(swarm, part.peer_id).counters
        assert (counters.opened, counters.adopted) == (1, 1)
        assert counters.recomputed_positions <= forgotten + 2
    assert forgotten <= recomputed(client) <= forgotten + 2


def test_a_coordinator_and_a_hop_are_lost_at_once() -> None:
    swarm = make()
    client = begin(swarm, tokens=10)
    swarm.kill("boss")
    swarm.kill(hop(client, 1))
    swarm.run(swarm.now + 2)
    known = len(PROMPT) + len(client.ids) - 1
    swarm.start(client, "heir")
    end(swarm, client)
    assert known <= recomputed(client) <= known + 2


def test_after_the_grace_nothing_survives_but_the_text_does() -> None:
    swarm = make()
    client = begin(swarm, tokens=10)
    swarm.kill("boss")
    swarm.run(swarm.now + 12)
    assert not any(node.account.reserved for node in swarm.nodes.values() if node.alive)
    known = len(PROMPT) + len(client.ids) - 1
    swarm.start(client, "heir")
    end(swarm, client)
    assert recomputed(client) == known
    for part in client.route:
        assert table(swarm, part.peer_id).counters.recomputed_positions == known


def test_when_the_client_leaves_kv_is_free_everywhere_within_two_seconds() -> None:
    swarm = make(weather=Weather(delay=(0.1, 0.2)))
    client = begin(swarm, tokens=10)
    swarm.stop(client)
    swarm.run(swarm.now + 2)
    for node in swarm.nodes.values():
        assert node.account.reserved == {}
        assert len(node.stage) == 0
        assert node.table.budget.used == 0


# Coverage and room.


def test_a_new_session_without_coverage_fails_at_once_with_the_blocks() -> None:
    swarm = make({"a": "0:3", "c": "6:9"})
    client = begin(swarm)
    swarm.run(2)
    assert client.finished is not None
    assert isinstance(client.finished.error, CoverageError)
    assert client.finished.error.missing == ((3, 6),)


def test_a_running_session_waits_for_a_peer_to_appear() -> None:
    swarm = make({"a": "0:3", "b": "3:6", "c": "6:9"})
    client = begin(swarm, tokens=10)
    swarm.kill("b")
    swarm.run(swarm.now + 20)
    assert client.finished is None
    swarm.add("late", "3:6")
    swarm.announce("late")
    end(swarm, client)
    assert 20 < client.stall < 22
    assert table(swarm, "a").counters.recomputed_positions <= 1


def test_a_running_session_fails_when_nobody_appears() -> None:
    swarm = make({"a": "0:3", "b": "3:6", "c": "6:9"})
    client = begin(swarm, tokens=10)
    swarm.kill("b")
    lost_at = swarm.now
    swarm.run(lost_at + 100, lambda: client.finished is None)
    assert client.finished is not None
    assert isinstance(client.finished.error, CoverageError)
    assert client.finished.error.missing == ((3, 6),)
    assert 30 <= swarm.now - lost_at < 32
    swarm.run(swarm.now + 2)
    assert not any(node.table.sessions for node in swarm.nodes.values() if node.alive)


def test_a_session_waits_until_there_is_room_and_holds_nothing_meanwhile() -> None:
    swarm = Swarm(MODEL)
    swarm.add("boss")
    for peer, blocks in {"a": "0:3", "b": "3:9"}.items():
        room = 250 if peer == "a" else 10_000
        swarm.add(peer, blocks, kv_bytes=room)
    first = begin(swarm, tokens=5)
    second = begin(swarm, number=2)
    swarm.run(swarm.now + 0.2)
    assert second.ids == []
    assert second.finished is None
    end(swarm, first)
    end(swarm, second)


def test_a_session_that_could_never_fit_is_refused() -> None:
    swarm = Swarm(MODEL)
    swarm.add("boss")
    swarm.add("a", "0:9", kv_bytes=9 * (len(PROMPT) + TOKENS) - 1)
    client = begin(swarm)
    swarm.run(10)
    assert client.finished is not None
    assert isinstance(client.finished.error, PromptTooLong)
    assert "70 positions asked for, 69 at most fit here" in str(client.finished.error)


def test_a_draining_hop_ends_what_it_has_begun() -> None:
    swarm = make()
    client = begin(swarm, tokens=10)
    swarm.drain(hop(client, 1))
    end(swarm, client)
    assert client.repairs == 0


def test_a_hop_that_hangs_without_breaking_its_links_is_replaced() -> None:
    swarm = make()
    client = begin(swarm, tokens=10)
    stuck = hop(client, 1)
    swarm.freeze(stuck, 500)
    end(swarm, client)
    assert hop(client, 1) != stuck
    assert client.stall < 40


def test_a_broken_link_between_two_hops_that_live_is_worked_around() -> None:
    swarm = make()
    client = begin(swarm, tokens=10)
    swarm.links.cut(hop(client, 0), hop(client, 1))
    end(swarm, client)
    assert client.repairs == 1
    assert client.stall < 1.0


def test_sessions_do_not_notice_each_other() -> None:
    swarm = make()
    clients = [begin(swarm, number=number) for number in range(1, 9)]
    swarm.run(0.5)
    swarm.kill("b1")
    for client in clients:
        end(swarm, client)

"""Nodes die in mid-stream, and the user of the stream does not notice but for a pause."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import pytest
from e2e_swarm import no_faults, wait_for_replicas

from swarmd.cli.local_swarm import LocalNode, LocalSwarm
from swarmd.client import Client
from swarmd.core.errors import CoverageError
from swarmd.core.results import Completion

PROMPT = "def fibonacci(n):"
LONG_PROMPT = "\n\n".join(f"def function_{i}(value):\n    return value + {i}" for i in range(120))
TOKENS = 80
KILL_AT = 30


def run_and_kill(
    nodes: LocalSwarm, client: Client, victim: Callable[[Sequence[int], int], int], **options: int
) -> Completion:
    """Generate, and kill after KILL_AT tokens whom `victim(route pids, coordinator pid)` names."""
    tokens = client.generate(PROMPT, max_tokens=TOKENS, ignore_eos=True, **options)
    for count, _ in enumerate(tokens, start=1):
        if count == KILL_AT:
            pids = [hop.pid for hop in tokens.route]
            nodes.node_of(victim(pids, tokens.coordinator.pid)).kill()
    return tokens.result


def test_a_killed_hop_is_replaced_and_the_text_stays_the_same(
    client: Client, whole_swarm: LocalSwarm
) -> None:
    undisturbed = client.complete(PROMPT, max_tokens=TOKENS, ignore_eos=True)
    # One holder of each span in turn: nobody has to come back in between.
    for index in range(3):
        done = run_and_kill(whole_swarm, client, lambda route, _, at=index: route[at])
        assert done.token_ids == undisturbed.token_ids, index
        assert done.text == undisturbed.text, index
        # The first hop is the coordinator too: there it is the client that goes on elsewhere.
        assert (done.repairs, done.resumes) >= ((1, 0) if index else (0, 1)), index
        assert {hop.pid for hop in done.route} <= {n.pid for n in whole_swarm.nodes if n.alive}
        assert done.recomputed_tokens >= done.num_prompt_tokens + KILL_AT - 1, index


@pytest.fixture
def bystander(whole_swarm: LocalSwarm) -> Iterator[LocalNode]:
    """One more node, without room for anybody's KV: it can coordinate, but never be a hop."""
    node = whole_swarm.add("3:6", "--kv-memory", "160KiB")  # 64 tokens: less than any session here
    whole_swarm.wait_ready()
    wait_for_replicas(whole_swarm)
    yield node
    node.kill()
    whole_swarm.nodes.remove(node)


def test_a_coordinator_that_is_no_hop_sees_no_activations_and_is_replaced_when_it_is_killed(
    client: Client, whole_swarm: LocalSwarm, bystander: LocalNode
) -> None:
    undisturbed = client.complete(PROMPT, max_tokens=TOKENS, ignore_eos=True)
    rest = [a for a in whole_swarm.addresses if a != bystander.address]
    with Client([bystander.address, *rest], timeout=60.0) as direct:
        before = direct.status().counters
        done = run_and_kill(whole_swarm, direct, lambda route, _: route[1], allow_redirect=False)
        after = direct.status().counters
        assert done.coordinator.pid == bystander.pid
        assert bystander.pid not in {hop.pid for hop in done.route}
        assert done.repairs >= 1
        whole = done.num_prompt_tokens + KILL_AT - 1
        assert done.recomputed_tokens >= whole, "by the hop that took the dead one's place"
        for name in ("link_activation_bytes_sent", "link_activation_bytes_received"):
            assert after[name] == before[name]
        assert after["link_frames_received"] > before["link_frames_received"]

        done = run_and_kill(
            whole_swarm, direct, lambda _, coordinator: coordinator, allow_redirect=False
        )
    assert not bystander.alive
    assert done.resumes == 1
    assert done.token_ids == undisturbed.token_ids
    # What survives is adopted, and the coordinator was no hop: only tokens that its client had not
    # got yet were computed again. It would be all of them if the hops had been opened anew.
    assert done.recomputed_tokens < whole


def test_a_hop_killed_during_prefill_is_replaced(client: Client, whole_swarm: LocalSwarm) -> None:
    undisturbed = client.complete(LONG_PROMPT, max_tokens=24, ignore_eos=True)
    came: list[int] = []
    came_before: list[int] = []
    with ExitStack() as doors:
        ask = {
            node.address: doors.enter_context(Client(node.address, timeout=30.0))
            for node in whole_swarm.nodes
        }
        before = {address: computed(door) for address, door in ask.items()}
        tokens = client.generate(LONG_PROMPT, max_tokens=24, ignore_eos=True, cache_salt="afresh")

        def kill_soon() -> None:
            while not tokens.route:
                time.sleep(0.001)
            hop = tokens.route[1]
            # Well within the prefill: there are dozens of chunks, and it has had the first.
            while computed(ask[hop.address]) == before[hop.address]:
                pass
            whole_swarm.node_of(hop.pid).kill()
            came_before.append(len(came))

        killer = threading.Thread(target=kill_soon)
        killer.start()
        for token in tokens:
            came.append(token.id)
        killer.join()
    assert came_before == [0]
    assert tokens.result.repairs >= 1
    assert tuple(came) == undisturbed.token_ids


def computed(door: Client) -> float:
    """How many positions the node behind this client has computed."""
    return door.status().counters["compute_tokens"]


def test_a_second_hop_may_die_after_the_first(client: Client, whole_swarm: LocalSwarm) -> None:
    undisturbed = client.complete(PROMPT, max_tokens=TOKENS, ignore_eos=True)
    tokens = client.generate(PROMPT, max_tokens=TOKENS, ignore_eos=True)
    for count, _ in enumerate(tokens, start=1):
        if count in (20, 50):
            whole_swarm.node_of(tokens.route[1 if count == 20 else 2].pid).kill()
    assert tokens.result.token_ids == undisturbed.token_ids
    assert tokens.result.repairs >= 2


def test_kv_is_free_soon_after_the_client_has_gone(client: Client, whole_swarm: LocalSwarm) -> None:
    tokens = client.generate(PROMPT, max_tokens=2000, ignore_eos=True)
    for _ in range(5):
        next(tokens)
    route = [hop.address for hop in tokens.route]
    assert all(kv_in_use(address) > 0 for address in route)
    tokens.close()
    deadline = time.monotonic() + 10.0
    while any(kv_in_use(address) for address in route):
        assert time.monotonic() < deadline, "KV is still in use"


def kv_in_use(address: str) -> int:
    """Bytes reserved on the node at this address, as it says itself right now."""
    with Client(address, timeout=30.0) as one:
        return int(one.status().counters["hop_kv_reserved_bytes"])


def test_a_model_with_a_hole_is_refused_by_name_and_a_running_session_waits(
    client: Client, whole_swarm: LocalSwarm
) -> None:
    undisturbed = client.complete(PROMPT, max_tokens=TOKENS, ignore_eos=True)
    holders = [n for n in whole_swarm.nodes if "6:8" in " ".join(n.args)]
    tokens = client.generate(PROMPT, max_tokens=TOKENS, ignore_eos=True)
    revived: list[threading.Thread] = []
    for count, _ in enumerate(tokens, start=1):
        if count == KILL_AT:
            for node in holders:
                node.kill()
            began = time.monotonic()
            with pytest.raises(CoverageError) as failure:
                client.complete(PROMPT, max_tokens=2, timeout=30.0)
            assert failure.value.missing == ((6, 8),)
            assert "6:8" in str(failure.value)
            assert time.monotonic() - began < 20.0
            revived.append(threading.Thread(target=holders[0].restart))
            revived[0].start()
    revived[0].join()
    assert tokens.result.token_ids == undisturbed.token_ids
    assert tokens.result.repairs >= 1


def test_the_directory_process_may_die_without_anybody_noticing(
    client: Client, whole_swarm: LocalSwarm
) -> None:
    import psutil

    undisturbed = client.complete(PROMPT, max_tokens=TOKENS, ignore_eos=True)
    with no_faults(whole_swarm):
        tokens = client.generate(PROMPT, max_tokens=TOKENS, ignore_eos=True)
        for count, _ in enumerate(tokens, start=1):
            if count == KILL_AT:
                for hop in tokens.route:
                    for child in psutil.Process(hop.pid).children():
                        os.kill(child.pid, signal.SIGKILL)
    assert tokens.result.token_ids == undisturbed.token_ids
    for node in whole_swarm.nodes:
        assert node.alive


def test_a_node_that_is_asked_to_stop_leaves_with_zero(
    client: Client, whole_swarm: LocalSwarm
) -> None:
    leaving = whole_swarm.nodes[5]
    assert leaving.stop(timeout=60.0) == 0
    deadline = time.monotonic() + 30.0
    while any(peer.pid == leaving.pid for peer in client.status().peers):
        assert time.monotonic() < deadline, "its announcement is still there"
        time.sleep(0.05)

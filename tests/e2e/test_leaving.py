"""Nodes leave in mid-stream, or die with a copy standing by: the text stays the same."""

from __future__ import annotations

import signal
from collections.abc import Mapping

import pytest
from e2e_swarm import revive

from swarmd.cli.local_swarm import LocalSwarm
from swarmd.client import Client, SyncGeneration
from swarmd.core.errors import RequestError
from swarmd.core.results import Completion

PROMPT = "def fibonacci(n):"
TOKENS = 160
LEAVE_AT = 30


def counters(nodes: LocalSwarm) -> dict[int, Mapping[str, float]]:
    """What each node has counted, by process id."""
    counted = {}
    for node in nodes.nodes:
        if node.alive:
            with Client(node.address, timeout=30.0) as one:
                counted[node.pid] = one.status().counters
    return counted


def growth(
    name: str, before: dict[int, Mapping[str, float]], after: dict[int, Mapping[str, float]]
) -> float:
    """By how much a counter has grown, over the nodes that are still there."""
    return sum(after[pid][name] - before[pid][name] for pid in after)


def stream(client: Client, **options: int) -> SyncGeneration:
    return client.generate(PROMPT, max_tokens=TOKENS, ignore_eos=True, **options)


def test_only_so_many_standbys_may_be_asked_for(client: Client) -> None:
    with pytest.raises(RequestError, match="standby is 0 or 1"):
        client.complete(PROMPT, max_tokens=1, standby=2)


def test_nodes_that_leave_hand_their_streams_off_and_nothing_is_computed_again(
    client: Client, whole_swarm: LocalSwarm
) -> None:
    undisturbed = client.complete(PROMPT, max_tokens=TOKENS, ignore_eos=True)
    # Each of them holds other blocks, so that nobody has to come back in between.
    for place in (1, 2, "coordinator"):
        leaves_one(client, whole_swarm, place, undisturbed)


def leaves_one(
    client: Client, whole_swarm: LocalSwarm, place: int | str, undisturbed: Completion
) -> None:
    """Ask that hop (or the coordinator) of a stream to leave, and see that nothing is missed."""
    before = counters(whole_swarm)
    tokens = stream(client)
    leaving, hops, coordinator = None, 0, False
    for count, _ in enumerate(tokens, start=1):
        if count == LEAVE_AT:
            route, driver = [hop.pid for hop in tokens.route], tokens.coordinator.pid
            pid = driver if isinstance(place, str) else route[place]
            hops, coordinator = route.count(pid), pid == driver
            leaving = whole_swarm.node_of(pid)
            leaving.signal(signal.SIGTERM)
    done = tokens.result
    assert leaving is not None
    assert leaving.process.wait(30.0) == 0, place
    after = counters(whole_swarm)
    assert done.token_ids == undisturbed.token_ids, place
    assert done.text == undisturbed.text, place
    assert done.repairs == 0, place
    assert done.resumes == int(coordinator), place
    assert leaving.pid not in {hop.pid for hop in done.route}, place
    for name in ("hop_recomputed_positions", "hop_replayed_positions"):
        assert growth(name, before, after) == 0, (place, name)
    assert growth("hop_taken_over", before, after) == hops, place


TRIES = 4
"""A machine that has too much to do may have no copies in time, or take a hop for slow as well."""


def test_a_standby_takes_the_place_of_a_killed_hop_and_no_prompt_is_replayed(
    client: Client, whole_swarm: LocalSwarm
) -> None:
    prompt = "\n\n".join(f"def f_{i}(x):\n    return x + {i}" for i in range(40))
    undisturbed = client.complete(prompt, max_tokens=TOKENS, ignore_eos=True)
    for place in (0, 1):
        came: list[dict[str, float]] = []
        while not any(map(spared_the_prompt, came)):
            assert len(came) < TRIES, (place, came)
            revive(whole_swarm)
            before = counters(whole_swarm)
            done = kills_one(client, whole_swarm, prompt, place, f"{place} {len(came)}")
            assert done.token_ids == undisturbed.token_ids, place
            assert done.repairs + done.resumes >= 1, place
            after = counters(whole_swarm)
            came.append({name: growth(name, before, after) for name in (*AGAIN, TAKEN_OVER)})


AGAIN = ("hop_recomputed_positions", "hop_replayed_positions")
TAKEN_OVER = "hop_taken_over"


def spared_the_prompt(grown: Mapping[str, float]) -> bool:
    """Whether a copy took a hop's place, and next to nothing was computed or sent again."""
    return grown[TAKEN_OVER] >= 1 and all(grown[name] < 100 for name in AGAIN)  # of 600


def kills_one(
    client: Client, whole_swarm: LocalSwarm, prompt: str, place: int, salt: str
) -> Completion:
    """Kill that hop of a stream in the middle; return how it ended.

    With a salt of its own: of a prompt that some hops know, and one that was restarted does not,
    these compute the beginning again with it.
    """
    tokens = client.generate(prompt, max_tokens=TOKENS, ignore_eos=True, standby=1, cache_salt=salt)
    for count, _ in enumerate(tokens, start=1):
        if count == LEAVE_AT:
            whole_swarm.node_of(tokens.route[place].pid).kill()
    return tokens.result

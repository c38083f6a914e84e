"""Nodes leave in mid-stream, or die with a copy standing by: the text stays the same."""

from __future__ import annotations

import signal
from collections.abc import Mapping

import pytest
from e2e_swarm import counters, growth, revive

from swarmd.cli.local_swarm import LocalSwarm
from swarmd.client import Client, SyncGeneration
from swarmd.core.errors import RequestError
from swarmd.core.results import Completion

PROMPT = "def fibonacci(n):"
TOKENS = 160
LEAVE_AT = 30
TRIES = 4
"""A machine that has too much to do may have no copies in time, or take a hop for slow as well."""
AGAIN = ("hop_recomputed_positions", "hop_replayed_positions")
TAKEN_OVER = "hop_taken_over"


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
        came: list[dict[str, float]] = []
        while not came or any(came[-1].values()):
            assert len(came) < TRIES, (place, came)
            if came:
                revive(whole_swarm)
            came.append(leaves_one(client, whole_swarm, place, undisturbed))


def leaves_one(
    client: Client, whole_swarm: LocalSwarm, place: int | str, undisturbed: Completion
) -> dict[str, float]:
    """Ask that hop (or the coordinator) of a stream to leave, and see that nothing is missed.

    Return what came besides: nothing but where the machine had too much to do.
    """
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
    assert leaving.pid not in {hop.pid for hop in done.route}, place
    return {
        **{name: growth(name, before, after) for name in AGAIN},
        "repairs": done.repairs,
        "resumes": done.resumes - int(coordinator),
        "hops not taken over": hops - growth(TAKEN_OVER, before, after),
    }


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

"""Prompts that begin alike are computed once, and give the ids that they give alone."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from e2e_swarm import READY_S
from forked import forked

from swarmd.cli.local_swarm import LocalSwarm
from swarmd.client import Client, SyncGeneration

SYSTEM = "\n\n".join(f"def helper_{i}(value):\n    return value * {i}" for i in range(40))
CHUNK = 64
FLAGS = ("--dtype", "float32", "--threads", "1", "--kv-memory", "64MiB", "--chunk-size", "64")


@pytest.fixture(scope="module")
def pair(model_dir: Path) -> Iterator[Client]:
    """A client of two nodes: without replicas every session takes the same route."""
    with LocalSwarm(str(model_dir), ("0:4", "4:8"), flags=FLAGS, launch=forked) as nodes:
        nodes.wait_ready(READY_S)
        with Client(nodes.addresses[0], timeout=60.0) as one:
            yield one


def test_a_second_prompt_begins_where_the_first_has_been(pair: Client) -> None:
    plain = [
        pair.complete(SYSTEM + tail, max_tokens=24, ignore_eos=True, cache_salt=f"alone {tail}")
        for tail in ("\n\ndef first(", "\n\nclass Second:")
    ]
    assert [done.cached_tokens for done in plain] == [0, 0]
    first = pair.complete(SYSTEM + "\n\ndef first(", max_tokens=24, ignore_eos=True)
    second = pair.complete(SYSTEM + "\n\nclass Second:", max_tokens=24, ignore_eos=True)
    assert second.cached_tokens >= second.num_prompt_tokens - 2 * CHUNK > 0
    assert second.cached_tokens % CHUNK == 0
    assert [first.token_ids, second.token_ids] == [done.token_ids for done in plain]


def test_the_next_turn_of_a_conversation_begins_where_the_last_one_ended(pair: Client) -> None:
    question = [7 * i % 400 for i in range(200)]
    first = pair.complete(question, max_tokens=100, ids_only=True, ignore_eos=True)
    turn = [*question, *first.token_ids, 5, 6, 7]
    second = pair.complete(turn, max_tokens=20, ids_only=True, ignore_eos=True)
    # All but the rest of a unit of 64, though the answer was computed token by token.
    assert second.cached_tokens >= 256
    afresh = pair.complete(turn, max_tokens=20, ids_only=True, ignore_eos=True, cache_salt="afresh")
    assert afresh.cached_tokens == 0
    assert second.token_ids == afresh.token_ids


def test_tenants_of_different_salts_learn_nothing_of_each_other(pair: Client) -> None:
    for salt in ("one tenant", "another"):
        done = pair.complete(SYSTEM, max_tokens=2, ignore_eos=True, cache_salt=salt)
        assert done.cached_tokens == 0
    again = pair.complete(SYSTEM, max_tokens=2, ignore_eos=True, cache_salt="another")
    assert again.cached_tokens > 0


def test_a_crowd_that_begins_alike_computes_the_beginning_once(pair: Client) -> None:
    tails = [f"\n\ndef agent_{i}(" for i in range(6)]

    def ask(tail: str, salt: str) -> tuple[int, tuple[int, ...]]:
        done = pair.complete(SYSTEM + tail, max_tokens=8, ignore_eos=True, cache_salt=salt)
        return done.cached_tokens, done.token_ids

    with ThreadPoolExecutor(len(tails)) as pool:
        together = list(pool.map(lambda tail: ask(tail, "crowd"), tails))
    assert sorted(cached > 0 for cached, _ in together) == [False] + [True] * (len(tails) - 1)
    alone = [ask(tail, f"alone {tail}")[1] for tail in tails]
    assert [ids for _, ids in together] == alone


def test_a_session_that_began_with_shared_kv_survives_the_death_of_a_hop(
    whole_swarm: LocalSwarm,
) -> None:
    # Long, so that no replica is nearer than who has it, however their speeds are measured.
    prompt = 3 * SYSTEM + "\n\ndef survivor("
    with Client(whole_swarm.addresses[0], timeout=60.0) as client:

        def ask() -> SyncGeneration:
            # What is computed is found by the same coordinator only. Sent on, the next session may
            # come to another one: where a node that a former test has killed is trusted again.
            return client.generate(prompt, max_tokens=60, ignore_eos=True, allow_redirect=False)

        first = ask()
        for _ in first:
            pass
        tokens = ask()
        for count, _ in enumerate(tokens, start=1):
            if count == 20:
                whole_swarm.node_of(tokens.route[1].pid).kill()
        done = tokens.result
    assert done.repairs >= 1
    assert done.cached_tokens > 0
    assert done.token_ids == first.result.token_ids

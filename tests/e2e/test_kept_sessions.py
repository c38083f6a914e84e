"""Sessions kept between turns: continued without prefill, forked, and gone when the lease ends."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from e2e_swarm import READY_S
from forked import forked
from transformers import AutoModelForCausalLM

from swarmd.cli.local_swarm import LocalSwarm
from swarmd.client import Client
from swarmd.core.errors import KVExhausted, LeaseEnded, PromptTooLong, RequestError
from swarmd.core.results import Completion, KeptSession

FLAGS = (
    *("--dtype", "float32", "--threads", "1", "--chunk-size", "64"),
    *("--kv-memory", "4MiB", "--keep-alive-limit", "120", "--no-prefix-cache"),
)
"""1,365 tokens on each of two nodes, and half of them may be kept."""
PROMPT = [7 * i % 400 for i in range(300)]


@pytest.fixture(scope="module")
def pair(model_dir: Path) -> Iterator[LocalSwarm]:
    with LocalSwarm(str(model_dir), ("0:4", "4:8"), flags=FLAGS, launch=forked) as nodes:
        nodes.wait_ready(READY_S)
        yield nodes


class Keeper(Client):
    """A client whose leases last for as long as a test may take, and end with it."""

    def __init__(self, nodes: Sequence[str]) -> None:
        super().__init__(nodes, timeout=60.0)
        self._kept: list[KeptSession] = []

    def complete(self, *prompt: Any, **options: Any) -> Completion:
        done = super().complete(*prompt, **options)
        if done.kept is not None:
            self._kept.append(done.kept)
        return done

    def release_all(self) -> None:
        for kept in self._kept:
            with suppress(LeaseEnded):
                self.release(kept)


LONG = 100.0


@pytest.fixture
def client(pair: LocalSwarm) -> Iterator[Client]:
    with Keeper(pair.addresses) as one:
        yield one
        one.release_all()
    wait_until_kv_is_free(pair.addresses)


def wait_until_kv_is_free(addresses: Sequence[str]) -> None:
    """Wait until all leases have ended."""
    deadline = time.monotonic() + 20.0
    for address in addresses:
        with Client(address) as client:
            while client.status().counters["hop_kv_reserved_bytes"]:
                assert time.monotonic() < deadline, "KV is still in use"
                time.sleep(0.05)


def ask(client: Client, prompt: list[int], tokens: int, **rest: object):  # type: ignore[no-untyped-def]
    return client.complete(prompt, max_tokens=tokens, ids_only=True, ignore_eos=True, **rest)  # type: ignore[arg-type]


def alone(model_dir: Path, prompt: list[int], tokens: int) -> tuple[int, ...]:
    """What transformers says."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    made = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=tokens,
        do_sample=False,
        pad_token_id=0,
    )
    return tuple(made[0, len(prompt) :].tolist())


def kv_bytes(client: Client) -> float:
    return client.status().counters["hop_kv_reserved_bytes"]


def test_a_next_turn_goes_on_without_prefill(client: Client, model_dir: Path) -> None:
    first = ask(client, PROMPT, 30, keep_alive=LONG)
    assert first.kept is not None
    assert first.kept.token_ids == (*PROMPT, *first.token_ids)
    second = ask(client, [5, 6, 7], 20, continue_from=first.kept, keep_alive=LONG)
    # All but the last id, which no hop has been given yet.
    assert second.cached_tokens == len(PROMPT) + 30 - 1
    assert second.num_prompt_tokens == len(PROMPT) + 30 + 3
    assert second.token_ids == alone(model_dir, [*first.kept.token_ids, 5, 6, 7], 20)
    third = ask(client, [], 10, continue_from=str(second.kept))
    assert third.cached_tokens == len(PROMPT) + 30 + 3 + 20 - 1
    assert third.token_ids == alone(model_dir, list(second.kept.token_ids), 10)


def test_forks_share_their_past_and_give_what_they_give_alone(
    client: Client, model_dir: Path
) -> None:
    first = ask(client, PROMPT, 30, keep_alive=LONG)
    held = kv_bytes(client)
    tails = [[n, n + 1] for n in range(6)]
    streams = [
        client.generate(
            tail, max_tokens=20, ids_only=True, ignore_eos=True, continue_from=first.kept
        )
        for tail in tails
    ]
    heads = [next(stream) for stream in streams]
    # Six copies would not even fit. Not shared are a unit of 64 that is not full, and what is new.
    assert kv_bytes(client) - held < 2 * held
    with ThreadPoolExecutor(len(streams)) as pool:
        rest = list(pool.map(list, streams))
    for tail, head, others, stream in zip(tails, heads, rest, streams, strict=True):
        assert stream.result.cached_tokens == len(PROMPT) + 30 - 1
        got = (head.id, *(token.id for token in others))
        assert got == alone(model_dir, [*first.kept.token_ids, *tail], 20)


def test_a_fork_may_leave_in_the_middle(client: Client, model_dir: Path) -> None:
    first = ask(client, PROMPT, 30, keep_alive=LONG)
    other = ask(client, [9], 10, continue_from=first.kept.first(len(PROMPT) + 10))
    assert other.cached_tokens >= len(PROMPT) + 9
    assert other.token_ids == alone(model_dir, [*PROMPT, *first.token_ids[:10], 9], 10)


def test_a_lease_that_has_ended_is_an_error_that_says_what_to_do(
    client: Client, model_dir: Path
) -> None:
    first = ask(client, PROMPT, 10, keep_alive=0.2)
    time.sleep(0.3)
    with pytest.raises(
        LeaseEnded, match=r"ended .* s ago, after 0\.2 s: send the whole prompt again"
    ):
        ask(client, [5], 10, continue_from=first.kept)
    again = ask(client, [5], 10, continue_from=first.kept, recompute=True)
    assert again.token_ids == alone(model_dir, [*first.kept.token_ids, 5], 10)


def test_a_lease_can_be_released_early(client: Client) -> None:
    free = kv_bytes(client)
    first = ask(client, PROMPT, 10, keep_alive=LONG)
    assert first.kept is not None
    assert kv_bytes(client) > free
    with pytest.raises(LeaseEnded, match="not kept by this node"):
        client.release(replace(first.kept, secret="00" * 16))
    client.release(str(first.kept))
    wait_until_kv_is_free(client.nodes)
    with pytest.raises(LeaseEnded, match="nothing to release"):
        client.release(first.kept)
    with pytest.raises(LeaseEnded):
        ask(client, [5], 4, continue_from=first.kept)


def test_a_session_that_was_never_kept_is_an_error(client: Client) -> None:
    first = ask(client, PROMPT, 4, keep_alive=LONG)
    for stranger in (
        replace(first.kept, secret="00" * 16),
        KeptSession(first.kept.address, "00" * 16, "00" * 16, 10),
    ):
        with pytest.raises(LeaseEnded, match="not kept by this node"):
            ask(client, [5], 4, continue_from=stranger)
    with pytest.raises(RequestError, match="999 tokens of a kept session that has 304"):
        ask(client, [5], 4, continue_from=replace(first.kept, tokens=999))


def test_keeping_is_bounded_in_time_and_room(client: Client) -> None:
    with pytest.raises(RequestError, match="keeps sessions for 120 s at most"):
        ask(client, PROMPT, 4, keep_alive=121)
    with pytest.raises(PromptTooLong, match="ask without keep_alive, or for fewer tokens"):
        ask(client, PROMPT, 500, keep_alive=LONG)
    ask(client, PROMPT, 300, keep_alive=LONG)
    with pytest.raises(KVExhausted, match="for kept sessions are taken here"):
        ask(client, PROMPT[::-1], 300, keep_alive=LONG)
    assert len(ask(client, PROMPT[::-1], 5).token_ids) == 5


def test_a_conversation_is_continued_as_far_as_it_begins_alike(client: Client) -> None:
    first = client.complete("def first(", max_tokens=70, ignore_eos=True, keep_alive=LONG)
    second = client.complete("\n\n", max_tokens=5, continue_from=first.kept)
    assert second.cached_tokens == first.num_prompt_tokens + 69
    stopped = client.complete(
        "def a():\n", max_tokens=60, stop=["\n"], ignore_eos=True, keep_alive=LONG
    )
    assert stopped.kept.tokens == stopped.num_prompt_tokens + len(stopped.token_ids)
    after = client.complete("x", max_tokens=5, continue_from=stopped.kept)
    assert after.cached_tokens == stopped.kept.tokens - 1

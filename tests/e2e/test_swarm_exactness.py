"""The swarm's ids are those of `transformers.generate` of the whole model in one process."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from e2e_swarm import no_faults
from transformers import AutoModelForCausalLM, AutoTokenizer

from swarmd.cli.local_swarm import LocalSwarm
from swarmd.client import Client

PROMPTS = (
    "def fibonacci(n):",
    "class Stack:",
    "import os\n\ndef walk(path):",
    '"""Parse the command line."""\n\nimport argparse',
)
TOKENS = 48


@cache
def whole_model(directory: Path) -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(directory)


def witness(directory: Path, prompt: str, tokens: int) -> tuple[int, ...]:
    model, tokenizer = whole_model(directory)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    out = model.generate(
        ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, eos_token_id=None
    )
    return tuple(out[0, ids.shape[1] :].tolist())


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_ids_are_those_of_the_whole_model(
    client: Client, whole_swarm: LocalSwarm, model_dir: Path, prompt: str
) -> None:
    with no_faults(whole_swarm):
        done = client.complete(prompt, max_tokens=TOKENS, ignore_eos=True)
    assert done.token_ids == witness(model_dir, prompt, TOKENS)
    assert len(done.route) == 3


def test_a_prompt_of_many_chunks_gives_the_same_ids(client: Client, model_dir: Path) -> None:
    prompt = "\n\n".join(f"def function_{i}(value):\n    return value + {i}" for i in range(24))
    done = client.complete(prompt, max_tokens=16, ignore_eos=True)
    assert done.num_prompt_tokens > 3 * 64, "the prompt must need several chunks of 64"
    assert done.token_ids == witness(model_dir, prompt, 16)


def test_sessions_side_by_side_do_not_touch_each_other(client: Client, model_dir: Path) -> None:
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        results = list(
            pool.map(lambda p: client.complete(p, max_tokens=TOKENS, ignore_eos=True), PROMPTS)
        )
    for prompt, done in zip(PROMPTS, results, strict=True):
        assert done.token_ids == witness(model_dir, prompt, TOKENS)


def test_a_seed_gives_the_same_draws_on_any_route(client: Client) -> None:
    runs = [
        client.complete(PROMPTS[0], max_tokens=TOKENS, temperature=0.9, top_p=0.95, seed=seed)
        for seed in (7, 7, 8)
    ]
    assert runs[0].token_ids == runs[1].token_ids
    assert runs[0].token_ids != runs[2].token_ids


def test_text_is_that_of_the_ids(client: Client, model_dir: Path) -> None:
    tokens = client.generate(PROMPTS[0], max_tokens=TOKENS, ignore_eos=True)
    streamed = "".join(token.text for token in tokens)
    assert streamed == tokens.result.text
    _, tokenizer = whole_model(model_dir)
    prompt = tokenizer(PROMPTS[0]).input_ids
    whole = tokenizer.decode([*prompt, *tokens.result.token_ids], skip_special_tokens=True)
    assert whole == PROMPTS[0] + tokens.result.text


def test_stop_strings_end_the_text_before_them(client: Client) -> None:
    free = client.complete(PROMPTS[0], max_tokens=TOKENS, ignore_eos=True)
    stop = free.text.strip()[5:9]
    done = client.complete(PROMPTS[0], max_tokens=TOKENS, ignore_eos=True, stop=[stop])
    assert done.finish_reason == "stop"
    assert done.stop == stop
    assert done.text == free.text[: free.text.index(stop)]

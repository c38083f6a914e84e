"""Real daemons on a CUDA device, alone and beside one on a CPU: the ids of the whole model.

`TEST_DEVICE=cpu` runs them without one, to try the tests themselves.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from e2e_swarm import READY_S, wait_for_replicas

from swarmd.cli.local_swarm import LocalSwarm
from swarmd.client import Client

DEVICE = os.environ.get("TEST_DEVICE", "cuda")
SHOWN = "cuda:0" if DEVICE == "cuda" else DEVICE
PROMPTS = ("def fibonacci(n):", "class Stack:", "import os\n\ndef walk(path):", "for i in range(")
TOKENS = 64
KILL_AT = 20
FLAGS = ("--threads", "1", "--kv-memory", "64MiB", "--chunk-size", "64", "--dtype", "float32")

pytestmark = pytest.mark.skipif(
    DEVICE.startswith("cuda") and not torch.cuda.is_available(),
    reason="torch finds no CUDA device here",
)


@pytest.fixture(scope="module")
def wanted(model_dir: Path) -> dict[str, tuple[int, ...]]:
    """What `generate` makes of the prompts, in one process on the CPU."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    made = {}
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        out = model.generate(
            ids, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, eos_token_id=None
        )
        made[prompt] = tuple(out[0, ids.shape[1] :].tolist())
    return made


@pytest.fixture(scope="module")
def on_device(model_dir: Path) -> Iterator[LocalSwarm]:
    """Three nodes on one device; the second span twice."""
    flags = (*FLAGS, "--device", DEVICE)
    with LocalSwarm(str(model_dir), ("0:4", "4:8", "4:8"), flags=flags) as nodes:
        nodes.wait_ready(READY_S)
        wait_for_replicas(nodes, replicas=1)
        yield nodes


def test_daemons_on_the_device_say_what_the_whole_model_says(
    on_device: LocalSwarm, wanted: dict[str, tuple[int, ...]]
) -> None:
    with Client(on_device.addresses, timeout=120.0) as client:
        status = client.status()
        assert {peer.device for peer in status.peers} == {SHOWN}
        with ThreadPoolExecutor(len(PROMPTS)) as pool:
            results = list(
                pool.map(lambda p: client.complete(p, max_tokens=TOKENS, ignore_eos=True), PROMPTS)
            )
    for prompt, done in zip(PROMPTS, results, strict=True):
        assert done.token_ids == wanted[prompt]
        assert len(done.route) == 2


def test_a_hop_on_the_device_that_is_killed_is_replaced(
    on_device: LocalSwarm, wanted: dict[str, tuple[int, ...]]
) -> None:
    with Client(on_device.addresses, timeout=120.0) as client:
        tokens = client.generate(PROMPTS[0], max_tokens=TOKENS, ignore_eos=True)
        for count, _ in enumerate(tokens, start=1):
            if count == KILL_AT:
                on_device.node_of(tokens.route[1].pid).kill()
        assert tokens.result.token_ids == wanted[PROMPTS[0]]
        assert tokens.result.repairs >= 1


@pytest.mark.parametrize("order", [(DEVICE, "cpu"), ("cpu", DEVICE)], ids="-".join)
def test_one_span_on_the_device_and_one_on_a_cpu_say_the_same(
    model_dir: Path, wanted: dict[str, tuple[int, ...]], order: tuple[str, str]
) -> None:
    with LocalSwarm(str(model_dir), (), flags=FLAGS) as nodes:
        seed: tuple[str, ...] = ()
        for span, device in zip(("0:4", "4:8"), order, strict=True):
            node = nodes.add(span, "--device", device, *seed)
            seed = ("--peers", node.wait_ready(time.monotonic() + READY_S))
        wait_for_replicas(nodes, replicas=1)
        with Client(nodes.addresses, timeout=120.0) as client:
            shown = {"cpu", SHOWN}
            assert {peer.device for peer in client.status().peers} == shown
            for prompt in PROMPTS:
                done = client.complete(prompt, max_tokens=TOKENS, ignore_eos=True)
                assert done.token_ids == wanted[prompt]

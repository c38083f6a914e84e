"""The plain path, for comparison: `transformers.generate` of the whole model in one process.

Run as a program by benchmarks and tests, so that its threads and memory are its own.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

PROMPT_IDS = tuple(range(100, 164))


def make(directory: str, shape: str, dtype: str) -> dict[str, Any]:
    """Write a Llama with random weights and 32 heads of which 4 hold keys and values."""
    torch.manual_seed(0)
    sizes = json.loads(shape)
    heads = sizes["hidden_size"] // 64
    config = LlamaConfig(
        vocab_size=32_000,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 8),
        max_position_embeddings=2048,
        **sizes,
    )
    kind = getattr(torch, dtype)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to(kind).to_empty(device="cpu")
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.normal_(0.0, 0.02)
    model.save_pretrained(directory)
    return {}


def generate(directory: str, dtype: str, tokens: str, rounds: str) -> dict[str, Any]:
    """Generate greedily, one session; returns ids and the median rate after the first token."""
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype))
    count = int(tokens)
    _timed(model, 8)
    runs = [_timed(model, count) for _ in range(int(rounds))]
    return {"rate": statistics.median(rate for _, rate in runs), "ids": runs[0][0]}


class _Clock:
    """A streamer that notes when tokens come."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is buffered."""


def _timed(model: Any, tokens: int) -> tuple[list[int], float]:
    ids = torch.tensor([PROMPT_IDS])
    clock = _Clock()
    out = model.generate(
        ids,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        eos_token_id=None,
        streamer=clock,
    )
    # The first call is for the prompt, the second for the first token.
    times = clock.times[1:]
    return out[0, len(PROMPT_IDS) :].tolist(), (len(times) - 1) / (times[-1] - times[0])


if __name__ == "__main__":
    commands: dict[str, Callable[..., dict[str, Any]]] = {"make": make, "generate": generate}
    print(json.dumps(commands[sys.argv[1]](*sys.argv[2:])))

"""The plain path, for comparison: the whole model in one process, by transformers' own means.

Run as a program by benchmarks, so that its threads and memory are its own: a command as argument,
its request as JSON on stdin, the answer as the last line of stdout.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM

Request = dict[str, Any]


def make(request: Request) -> dict[str, Any]:
    """Write a Llama with random weights, in which one head of eight holds keys and values.

    Linear maps keep the scale of what they are given and the norms are ones, so that what a token
    is depends on all before it: with smaller weights the ids would follow from the last one alone.
    """
    torch.manual_seed(0)
    sizes = {"vocab_size": 32_000, "max_position_embeddings": 16_384} | request["shape"]
    heads = sizes["hidden_size"] // 64
    config = LlamaConfig(num_attention_heads=heads, num_key_value_heads=max(1, heads // 8), **sizes)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to(getattr(torch, request["dtype"])).to_empty(device="cpu")
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.dim() == 1:
                tensor.fill_(1.0)
            else:
                tensor.normal_(0.0, tensor.shape[-1] ** -0.5)
    model.save_pretrained(request["directory"])
    return {}


def generate(request: Request) -> dict[str, Any]:
    """Generate greedily for each crowd in one static batch; prompts of a crowd are equally long."""
    model = _load(request)
    tokens = request["tokens"]
    _batch(model, request["crowds"][0], min(8, tokens))
    return _crowds(request, lambda crowd: _median(model, crowd, tokens, request["rounds"]))


def continuous(request: Request) -> dict[str, Any]:
    """Generate greedily for each crowd with transformers' continuous batching."""
    model = _load(request)
    return _crowds(request, lambda crowd: _continuous(model, crowd, request["tokens"]))


def _load(request: Request) -> Any:
    torch.set_num_threads(request["threads"])
    kind = getattr(torch, request["dtype"])
    return AutoModelForCausalLM.from_pretrained(request["directory"], dtype=kind)


def _crowds(
    request: Request, measure: Callable[[Sequence[Sequence[int]]], dict[str, Any]]
) -> dict[str, Any]:
    """Measure one crowd after the other while there is time."""
    end = time.perf_counter() + request["budget_s"]
    found: list[dict[str, Any]] = []
    for crowd in request["crowds"]:
        if not found or time.perf_counter() < end:
            found.append({"sessions": len(crowd), **measure(crowd)})
    return {"crowds": found}


class _Clock:
    """A stopping criterion that never stops anything and notes when tokens come."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return torch.zeros(ids.shape[0], dtype=torch.bool)


def _median(model: Any, crowd: Sequence[Sequence[int]], tokens: int, rounds: int) -> dict[str, Any]:
    runs = [_batch(model, crowd, tokens) for _ in range(rounds)]
    figures = ("decode_tokens_per_s", "tokens_per_s", "ttft_s")
    return {name: statistics.median(run[name] for run in runs) for name in figures} | {
        "ids": runs[0]["ids"]
    }


def _batch(model: Any, crowd: Sequence[Sequence[int]], tokens: int) -> dict[str, Any]:
    ids = torch.tensor(crowd)
    clock = _Clock()
    began = time.perf_counter()
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        stopping_criteria=[clock],
    )
    times = clock.times
    return {
        "decode_tokens_per_s": len(crowd) * (len(times) - 1) / (times[-1] - times[0]),
        "tokens_per_s": len(crowd) * len(times) / (times[-1] - began),
        "ttft_s": times[0] - began,
        "ids": out[:, ids.shape[1] :].tolist(),
    }


def _continuous(model: Any, crowd: Sequence[Sequence[int]], tokens: int) -> dict[str, Any]:
    config = GenerationConfig(
        max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    began = time.perf_counter()
    found = model.generate_batch([list(ids) for ids in crowd], generation_config=config)
    took = time.perf_counter() - began
    ids = [found[key].generated_tokens for key in sorted(found, key=_number)]
    if len(ids) != len(crowd) or not all(len(one) == tokens for one in ids):
        raise SystemExit(f"generate_batch returned {[len(one) for one in ids]} tokens")
    return {"tokens_per_s": len(crowd) * tokens / took, "ids": ids}


def _number(key: str) -> int:
    return int("".join(c for c in key if c.isdecimal()) or 0)


COMMANDS: dict[str, Callable[[Request], dict[str, Any]]] = {
    "make": make,
    "generate": generate,
    "continuous": continuous,
}

if __name__ == "__main__":
    print(json.dumps(COMMANDS[sys.argv[1]](json.load(sys.stdin))))

"""The plain path, for comparison: the whole model in one process, by transformers' own means.

Run as a program by benchmarks, so that its threads and memory are its own: a command as argument,
its request as JSON on stdin, an answer per line on stdout.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from swarmd.node import gguf

Request = dict[str, Any]
_PAGE = 64


def make(request: Request) -> Iterator[dict[str, Any]]:
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
    yield {}


def measure(request: Request) -> Iterator[dict[str, Any]]:
    """Load the model and yield what each job finds: `{"crowds": [...]}` or `{"error": ...}`."""
    torch.set_num_threads(request["threads"])
    kind = getattr(torch, request["dtype"])
    model = AutoModelForCausalLM.from_pretrained(request["directory"], dtype=kind)
    end = time.perf_counter() + request["budget_s"]
    for job in request["jobs"]:
        try:
            yield {"crowds": _crowds(model, job, end)}
        except Exception as error:  # the other jobs are worth having
            yield {"error": f"{type(error).__name__}: {error}"[:300]}


def _crowds(model: Any, job: Request, end: float) -> list[dict[str, Any]]:
    """Measure one crowd after the other while there is time; each is of prompts equally long."""
    kind = _continuous if job["kind"] == "continuous" else _batch
    found: list[dict[str, Any]] = []
    for crowd in job["crowds"]:
        if time.perf_counter() > end:
            break
        if not found:
            kind(model, crowd[:2], min(8, job["tokens"]))  # warm-up
        runs = [kind(model, crowd, job["tokens"]) for _ in range(job["rounds"])]
        found.append({"sessions": len(crowd), **_median(runs)})
    return found


def _median(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    names = [name for name in runs[0] if name != "ids"]
    return {name: statistics.median(run[name] for run in runs) for name in names} | {
        "ids": runs[0]["ids"]
    }


class _Clock:
    """A stopping criterion that never stops anything and notes when tokens come."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return torch.zeros(ids.shape[0], dtype=torch.bool)


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
    found = model.generate_batch(
        [list(ids) for ids in crowd],
        generation_config=config,
        continuous_batching_config=_pages(crowd, tokens),
        record_timestamps=True,
        warmup=False,  # which is for CUDA graphs
    )
    outputs = list(found.values())
    if len(outputs) != len(crowd) or any(len(one.timestamps) != tokens for one in outputs):
        raise RuntimeError(f"{len(outputs)} of {len(crowd)} sequences came, not all of them whole")
    times = [one.timestamps for one in outputs]
    start, end = max(one[0] for one in times), min(one[-1] for one in times)
    came = sum(start < moment <= end for one in times for moment in one)
    return {
        "decode_tokens_per_s": came / (end - start) if end > start else 0.0,
        "tokens_per_s": len(crowd) * tokens / (max(one[-1] for one in times) - began),
        "ttft_s": statistics.median(one[0] for one in times) - began,
        "ids": [one.generated_tokens for one in outputs],
    }


def _pages(crowd: Sequence[Sequence[int]], tokens: int) -> ContinuousBatchingConfig:
    """Room for this crowd: left alone it takes most of the memory and half a minute for that."""
    each = -(-(len(crowd[0]) + tokens) // _PAGE) + 1
    return ContinuousBatchingConfig(
        page_size=_PAGE,
        num_blocks=len(crowd) * each + 4,
        max_batch_tokens=max(256, len(crowd)),
        max_requests_per_batch=len(crowd),
        use_cuda_graph=False,
        use_async_batching=False,
        allow_block_sharing=False,
    )


def convert(request: Request) -> Iterator[dict[str, Any]]:
    """Write the model once more as GGUF."""
    gguf.write(Path(request["directory"]), Path(request["target"]))
    yield {}


COMMANDS: dict[str, Callable[[Request], Iterator[dict[str, Any]]]] = {
    "make": make,
    "measure": measure,
    "gguf": convert,
}

if __name__ == "__main__":
    for answer in COMMANDS[sys.argv[1]](json.load(sys.stdin)):
        print(json.dumps(answer), flush=True)

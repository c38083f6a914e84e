"""Tokens per second on a CUDA device: one stage, daemons, and `transformers.generate` beside them.

A Llama of 1.1B parameters with random weights in bfloat16 is made for it and thrown away. Also the
parts of one decode step: how long the device computes, the whole forward, and drawing the tokens.

    python bench/cuda.py [--device cuda] [--shape 1.1b] [--out FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from swarmd.cli.bench.crowd import Crowd, decode_rate
from swarmd.cli.bench.machine import circumstances
from swarmd.cli.bench.models import SHAPES
from swarmd.cli.bench.readings import Meter
from swarmd.cli.local_swarm import LocalSwarm
from swarmd.client import AsyncClient
from swarmd.core.sampling import SamplingParams
from swarmd.core.span import Span
from swarmd.engine.checkpoint import open_checkpoint
from swarmd.engine.load import load_stage
from swarmd.engine.sampler import Draw, Sampler, sample_rows
from swarmd.engine.stage import Batch, Segment, Stage

RESULTS = Path(__file__).parent / "results" / "cuda.json"
SESSIONS = (1, 16, 64)
PROMPT, TOKENS, STEPS = 64, 64, 24
LONG, CHUNKS = 2048, (256, 2048)
WAYS = {"greedy": {}, "nucleus": {"temperature": 0.8, "top_p": 0.95, "seed": 1}}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", default="1.1b", choices=sorted(SHAPES))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--sessions", type=int, nargs="+", default=SESSIONS)
    given = parser.parse_args()
    found = circumstances() | {"shape": given.shape, "dtype": "bfloat16"}
    if given.device.startswith("cuda"):
        found |= {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    counts = given.sessions

    def note(name: str, value: object) -> None:
        found[name] = value
        given.out.write_text(json.dumps(found, indent=1) + "\n")
        print(name, json.dumps(value), flush=True)

    with tempfile.TemporaryDirectory(prefix="swarmd-bench-") as directory:
        model = make(Path(directory), given.shape, given.device)
        note("generate", generate(model, counts))
        del model
        gc.collect()
        note("stage", stage(directory, given.device, counts))
        gc.collect()
        blocks = SHAPES[given.shape]["num_hidden_layers"]
        for name, spans in {
            "one_daemon": (f"0:{blocks}",),
            "two_daemons": (f"0:{blocks // 2}", f"{blocks // 2}:{blocks}"),
        }.items():
            note(name, asyncio.run(daemons(directory, given.device, spans, counts)))


def make(directory: Path, shape: str, device: str) -> Any:
    """Save a random model, and return it on the device."""
    sizes = {"vocab_size": 32_000, "max_position_embeddings": 16_384} | dict(SHAPES[shape])
    heads = sizes["hidden_size"] // 64
    config = LlamaConfig(num_attention_heads=heads, num_key_value_heads=max(1, heads // 8), **sizes)
    config.eos_token_id = None
    torch.manual_seed(0)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu").to(device)
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.dim() == 1:
                tensor.fill_(1.0)
            else:
                tensor.normal_(0.0, tensor.shape[-1] ** -0.5)
    model.save_pretrained(directory)
    del model
    return LlamaForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).to(device).eval()


def prompts(count: int, length: int, vocab: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(4, vocab, (count, length), generator=generator)


def clock(work: Callable[[], object]) -> float:
    """Seconds that it takes, what it has begun on a device included."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def generate(model: Any, counts: Sequence[int]) -> dict[str, Any]:
    """What `transformers.generate` does: one static batch of prompts of one length."""
    rates = {}
    for count in counts:
        ids = prompts(count, PROMPT, model.config.vocab_size).to(model.device)

        def run(tokens: int, ids: torch.Tensor = ids) -> None:
            model.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)

        run(4)
        took = min(clock(lambda: run(TOKENS)) - clock(lambda: run(1)) for _ in range(2))
        rates[count] = round(count * (TOKENS - 1) / took, 1)
    long = prompts(1, LONG, model.config.vocab_size).to(model.device)
    with torch.inference_mode():
        took = min(clock(lambda: model(long, logits_to_keep=1)) for _ in range(4))
    return {"tokens_per_s": rates, "prefill_2048_tokens_per_s": round(LONG / took)}


def stage(directory: str, device: str, counts: Sequence[int]) -> dict[str, Any]:
    """What the engine does with the whole model, without a network."""
    source = open_checkpoint(directory)
    blocks = source.config_dict()["num_hidden_layers"]
    loaded = load_stage(source, Span(0, blocks), device=device, dtype="bfloat16", kv_memory=1 << 34)
    found: dict[str, Any] = {
        "ragged": loaded.ragged,
        "replay_exact": loaded.replay_exact,
        "chunk_exact": loaded.chunk_exact,
        "steps": {count: decode_step(loaded, count) for count in counts},
    }
    found["prefill_2048_tokens_per_s"] = {
        chunk: round(LONG / min(clock(lambda c=chunk: prefill(loaded, 1, LONG, c)) for _ in (1, 2)))
        for chunk in CHUNKS
    }
    return found


def prefill(loaded: Stage, count: int, length: int, chunk: int) -> tuple[list[Any], torch.Tensor]:
    """Compute prompts; return the sessions' caches, and the ids that come next."""
    ids = prompts(count, length, loaded.info.vocab_size)
    caches = [loaded.new_cache() for _ in range(count)]
    following = []
    for cache, row in zip(caches, ids, strict=True):
        for at in range(0, length, chunk):
            piece = row[at : at + chunk]
            segments = (Segment(cache, at, len(piece)),)
            out = loaded.forward(
                Batch(0, len(loaded.span), segments, piece, None, (len(piece) - 1,))
            )
        following.append(int(out.argmax()))
    return caches, torch.tensor(following)


def decode_step(loaded: Stage, count: int) -> dict[str, Any]:
    """The parts of a step in which so many sessions decode, in milliseconds, and its rate."""
    caches, ids = prefill(loaded, count, PROMPT, PROMPT)
    position = PROMPT

    def forward() -> torch.Tensor:
        nonlocal position
        segments = tuple(Segment(cache, position, 1) for cache in caches)
        position += 1
        return loaded.forward(Batch(0, len(loaded.span), segments, ids, None, tuple(range(count))))

    samplers = {
        name: [Sampler(SamplingParams(**way), loaded.info.vocab_size) for _ in range(count)]
        for name, way in WAYS.items()
    }
    times: dict[str, list[float]] = {"forward": [], **{name: [] for name in WAYS}}
    for _ in range(STEPS):
        made: list[torch.Tensor] = []
        times["forward"].append(clock(lambda made=made: made.append(forward())))
        for name, some in samplers.items():
            draws = [Draw(sampler, (), 0, position) for sampler in some]
            drawn: list[Any] = []
            times[name].append(
                clock(lambda m=made, d=draws, o=drawn: o.extend(sample_rows(m[0], d)))
            )
            if name == "greedy":
                ids = torch.tensor([one.id for one in drawn])
    parts = {name: 1000 * statistics.median(values[4:]) for name, values in times.items()}
    found = {f"{name}_ms": round(value, 3) for name, value in parts.items()}
    found["tokens_per_s"] = round(1000 * count / (parts["forward"] + parts["greedy"]), 1)
    if loaded.device.type == "cuda":
        found |= on_the_device(forward)
    return found


def on_the_device(forward: Callable[[], object]) -> dict[str, Any]:
    """How long kernels and copies run in a step, and which take longest."""
    from torch.profiler import ProfilerActivity, profile

    steps = 4
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
        for _ in range(steps):
            forward()
    events = [e for e in seen.key_averages() if e.self_device_time_total > 0]
    events = [e for e in events if e.device_type != torch.autograd.DeviceType.CPU] or events
    kernels = sum(e.count for e in events) / steps
    busy = sum(e.self_device_time_total for e in events) / steps / 1000
    most = sorted(events, key=lambda e: -e.self_device_time_total)[:8]
    host = sorted(seen.key_averages(), key=lambda e: -e.self_cpu_time_total)[:10]
    return {
        "device_busy_ms": round(busy, 3),
        "kernels": round(kernels),
        "longest_ms": {e.key[:80]: round(e.self_device_time_total / steps / 1000, 3) for e in most},
        "host_ms": {e.key[:60]: round(e.self_cpu_time_total / steps / 1000, 3) for e in host},
    }


async def daemons(
    directory: str, device: str, spans: Sequence[str], counts: Sequence[int]
) -> dict[str, Any]:
    """What clients get from `swarmd serve`, as a crowd of greedy sessions of equal length."""
    flags = ("--device", device, "--dtype", "bfloat16", "--kv-memory", "8GiB", "--threads", "2")
    flags += ("--chunk-size", str(max(CHUNKS)))
    rates, found, parts = {}, dict[str, Any](), {}
    with LocalSwarm(directory, spans, flags=flags) as nodes:
        await asyncio.to_thread(nodes.wait_ready, 120.0)
        client = AsyncClient(nodes.nodes[0].address, timeout=300.0)
        meter = Meter(nodes.nodes)
        async with client, meter:

            def crowd(count: int, length: int, tokens: int) -> Crowd:
                rows = prompts(count, length, 30_000 if device != "cpu" else 500).tolist()
                request = {"cache_salt": f"{time.monotonic()}"}
                return Crowd(client, meter, rows, tokens, request)

            while True:
                status = await client.status()
                if status.models and status.models[0].replicas:
                    break
                await asyncio.sleep(0.1)
            await crowd(2, PROMPT, 8).run()
            for count in counts:
                await crowd(count, PROMPT, 16).run()
                done = await crowd(count, PROMPT, TOKENS).run()
                rates[count] = round(decode_rate(done.sessions) or 0.0, 1)
                figures = done.figures()
                names = ("stage_step_ms", "stage_microbatch", "stage_busy", "stage_cpu")
                parts[count] = {name: figures[name] for name in (*names, "client_cpu")}
            firsts = [(await crowd(1, LONG, 2).run()).sessions[0].ttft_s for _ in range(3)]
            found["prefill_2048_tokens_per_s"] = round(LONG / min(firsts))
    return {"tokens_per_s": rates, **found, "parts": parts}


if __name__ == "__main__":
    main()

"""What a stage needs for a microbatch of decodes: time, tokens/s, and the share of attention in it.

One stage (half of a 1.1B-shape Llama with random weights, bfloat16, one thread) decodes for 1 to 64
sessions at a short and a long context, alone or with one prefix that all share.

    python bench/attention.py [--record LABEL]
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from swarmd.core.span import Span
from swarmd.engine import attention
from swarmd.engine.kv_cache import RaggedCache
from swarmd.engine.load import load_stage
from swarmd.engine.source import Progress, TensorMeta
from swarmd.engine.stage import Batch, Segment, Stage

RESULTS = Path(__file__).parent / "results" / "attention.json"
BLOCKS = 22
CONFIG = LlamaConfig(
    vocab_size=32000,
    hidden_size=2048,
    intermediate_size=5632,
    num_hidden_layers=BLOCKS,
    num_attention_heads=32,
    num_key_value_heads=4,
    max_position_embeddings=4096,
    dtype="bfloat16",
)
SESSIONS = (1, 4, 8, 16, 32, 64)
CONTEXTS = (64, 2048)


class RandomSource:
    """A checkpoint of random weights that exists nowhere."""

    name, digest, files_dir = "random", "0" * 64, Path()

    def __init__(self, config: LlamaConfig) -> None:
        self._config = config
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        self._tensors = {
            name: TensorMeta(torch.bfloat16, tuple(value.shape), value.numel() * 2)
            for name, value in model.state_dict().items()
        }

    def config_dict(self) -> dict[str, Any]:
        return {**self._config.to_dict(), "architectures": ["LlamaForCausalLM"]}

    def tensors(self) -> Mapping[str, TensorMeta]:
        return self._tensors

    def fetch(self, names: Iterable[str], progress: Progress | None = None) -> None:
        """Nothing to bring."""

    def read(self, name: str) -> torch.Tensor:
        shape = self._tensors[name].shape
        if len(shape) == 1:
            return torch.ones(shape, dtype=torch.bfloat16)
        return torch.randn(shape, dtype=torch.bfloat16).mul_(0.02)


@dataclass(frozen=True, slots=True)
class Case:
    """Sessions that decode together, from a context of so many positions each."""

    sessions: int
    context: int
    shared: int = 0
    """Leading positions that all have in common, held once."""


@dataclass(frozen=True, slots=True)
class Figure:
    """Medians over the steps of a case."""

    sessions: int
    context: int
    shared: int
    step_ms: float
    tokens_per_s: float
    attention_ms: float
    attention_share: float


class _Timer:
    """Adds up the time in the attention function."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def around(self) -> Iterator[None]:
        inner = attention.ragged_attention

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - began

        attention.AttentionInterface.register(attention.NAME, timed)
        try:
            yield
        finally:
            attention.register()


def caches(stage: Stage, case: Case) -> list[RaggedCache]:
    """Sessions with random keys and values of the case's context."""
    made = []
    for _ in range(case.sessions):
        cache = stage.new_cache()
        assert isinstance(cache, RaggedCache)
        for block in cache.blocks:
            key, value = (torch.randn(4, case.context, 64).to(stage.dtype) for _ in range(2))
            block.write(key, value, 0)
        cache.length = case.context
        made.append(cache)
    return made


def decode(stage: Stage, held: list[RaggedCache], rows: torch.Tensor) -> float:
    """One step of all sessions; return its seconds."""
    segments = tuple(Segment(cache, cache.length, 1) for cache in held)
    ids, hidden = (rows, None) if stage.is_first else (None, rows)
    wanted = tuple(range(len(held))) if stage.is_last else ()
    batch = Batch(stage.span.start, stage.span.end, segments, ids, hidden, wanted)
    began = time.perf_counter()
    stage.forward(batch)
    return time.perf_counter() - began


def inputs(stage: Stage, count: int) -> torch.Tensor:
    if stage.is_first:
        return torch.randint(0, CONFIG.vocab_size, (count,))
    return torch.randn(count, CONFIG.hidden_size).to(stage.dtype)


def measure(stage: Stage, case: Case, steps: int) -> Figure:
    held, rows = caches(stage, case), inputs(stage, case.sessions)
    timer = _Timer()
    with timer.around():
        for _ in range(2):
            decode(stage, held, rows)
        whole, inside = [], []
        for _ in range(steps):
            timer.seconds = 0.0
            whole.append(decode(stage, held, rows))
            inside.append(timer.seconds)
    step, share = statistics.median(whole), statistics.median(inside)
    return Figure(
        case.sessions,
        case.context,
        case.shared,
        round(step * 1e3, 2),
        round(case.sessions / step, 1),
        round(share * 1e3, 2),
        round(share / step, 3),
    )


def profile(stage: Stage, case: Case, rows_shown: int) -> str:
    """Where the time of a step goes, by operation."""
    held, rows = caches(stage, case), inputs(stage, case.sessions)
    decode(stage, held, rows)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        decode(stage, held, rows)
    table = profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=rows_shown)
    return str(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", metavar="LABEL", help="keep the figures under this name")
    parser.add_argument("--span", default="11:22")
    parser.add_argument("--sessions", default=",".join(map(str, SESSIONS)))
    parser.add_argument("--contexts", default=",".join(map(str, CONTEXTS)))
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--profile", type=int, default=0, metavar="ROWS")
    options = parser.parse_args()
    start, end = map(int, options.span.split(":"))
    stage = load_stage(
        RandomSource(CONFIG), Span(start, end), dtype="bfloat16", threads=1, kv_memory=0
    )
    print(f"ragged {stage.ragged} {stage.ragged_reason} replay_exact {stage.replay_exact}")
    print(f"{'sessions':>8} {'context':>8} {'step ms':>8} {'tok/s':>8} {'attn ms':>8} {'share':>6}")
    figures = []
    for context in map(int, options.contexts.split(",")):
        for sessions in map(int, options.sessions.split(",")):
            case = Case(sessions, context)
            if options.profile:
                print(profile(stage, case, options.profile))
            figure = measure(stage, case, options.steps)
            figures.append(figure)
            print(
                f"{figure.sessions:8} {figure.context:8} {figure.step_ms:8.1f} "
                f"{figure.tokens_per_s:8.1f} {figure.attention_ms:8.1f} "
                f"{figure.attention_share:6.2f}",
                flush=True,
            )
    if options.record:
        record(options.record, figures)


def record(label: str, figures: list[Figure]) -> None:
    """Put the figures into the results file, beside those of other labels."""
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    known[label] = {
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "threads": 1,
        "load_before": round(os.getloadavg()[0], 2),
        "figures": [asdict(figure) for figure in figures],
    }
    RESULTS.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()

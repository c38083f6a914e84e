"""What a stage needs for a microbatch: time, tokens/s, and the share of attention in it.

One stage (half of a 1.1B-shape Llama with random weights, bfloat16, one thread) decodes for 1 to 64
sessions at a short and a long context, each with its own past or with one prefix that all share,
and computes prompts in chunks. Needs a minute and a half, and nobody else on the machine.

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
DECODES = (1, 4, 8, 16, 32, 64)
LONG = 2048
CHUNKS = (128, 512)


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
    """Sessions that compute so many rows each, from a context of so many positions."""

    sessions: int
    context: int
    shared: bool = False
    """Whether the context, as far as it fills tiles, is held once for all."""
    rows: int = 1


@dataclass(frozen=True, slots=True)
class Figure:
    """Medians over the steps of a case; of the one thread that computes."""

    case: Case
    step_ms: float
    cpu_ms: float
    """CPU time, which other processes change less."""
    tokens_per_s: float
    """By the CPU time."""
    attention_ms: float
    attention_share: float

    def __str__(self) -> str:
        case = self.case
        kind = "shared" if case.shared else "chunk" if case.rows > 1 else ""
        return (
            f"{case.sessions:8} {case.context:8} {case.rows:5} {kind:7} {self.step_ms:8.1f} "
            f"{self.cpu_ms:7.1f} {self.tokens_per_s:9.1f} {self.attention_ms:8.1f} "
            f"{self.attention_share:6.2f}"
        )


HEADER = "sessions  context  rows kind     step ms  cpu ms  tokens/s  attn ms  share"


class _Timer:
    """Adds up the time in the attention function."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def around(self) -> Iterator[None]:
        inner = attention.ragged_attention

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.thread_time()
            try:
                return inner(*args, **kwargs)
            finally:
                self.seconds += time.thread_time() - began

        attention.AttentionInterface.register(attention.NAME, timed)
        try:
            yield
        finally:
            attention.register()


def caches(stage: Stage, case: Case) -> list[RaggedCache]:
    """Sessions with random keys and values of the case's context."""
    made: list[RaggedCache] = []
    for _ in range(case.sessions):
        cache = stage.new_cache()
        assert isinstance(cache, RaggedCache)
        if made and case.shared:
            cache.attach([made[0].freeze(0, case.context)])
        elif case.context:
            for block in cache.blocks:
                key, value = (torch.randn(4, case.context, 64).to(stage.dtype) for _ in range(2))
                block.write(key, value, 0)
            cache.length = case.context
        made.append(cache)
    return made


def step(stage: Stage, held: list[RaggedCache], rows: torch.Tensor) -> tuple[float, float]:
    """Compute the next rows of all sessions, as many for each; return seconds, and of CPU."""
    count = len(rows) // len(held)
    segments = tuple(Segment(cache, cache.length, count) for cache in held)
    ids, hidden = (rows, None) if stage.is_first else (None, rows)
    wanted = tuple(range(count - 1, len(rows), count)) if stage.is_last else ()
    batch = Batch(stage.span.start, stage.span.end, segments, ids, hidden, wanted)
    began, cpu_began = time.perf_counter(), time.thread_time()
    stage.forward(batch)
    return time.perf_counter() - began, time.thread_time() - cpu_began


def inputs(stage: Stage, count: int) -> torch.Tensor:
    if stage.is_first:
        return torch.randint(0, CONFIG.vocab_size, (count,))
    return torch.randn(count, CONFIG.hidden_size).to(stage.dtype)


def measure(stage: Stage, case: Case, steps: int) -> Figure:
    held, rows = caches(stage, case), inputs(stage, case.sessions * case.rows)
    timer = _Timer()
    whole, inside = [], []
    with timer.around():
        for number in range(steps + 2):
            timer.seconds = 0.0
            seconds = step(stage, held, rows)
            if case.rows > 1:
                for cache in held:
                    cache.truncate(case.context)
            if number >= 2:
                whole.append(seconds)
                inside.append(timer.seconds)
    wall, cpu = (statistics.median(times) for times in zip(*whole, strict=True))
    attending = statistics.median(inside)
    return Figure(
        case,
        round(wall * 1e3, 2),
        round(cpu * 1e3, 2),
        round(case.sessions * case.rows / cpu, 1),
        round(attending * 1e3, 2),
        round(attending / cpu, 3),
    )


def profile(stage: Stage, case: Case, rows_shown: int) -> str:
    """Where the time of a step goes, by operation."""
    held, rows = caches(stage, case), inputs(stage, case.sessions * case.rows)
    step(stage, held, rows)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        step(stage, held, rows)
    table = profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=rows_shown)
    return str(table)


def cases(shares: bool) -> Iterator[Case]:
    for sessions in DECODES:
        yield Case(sessions, 64)
    for sessions in DECODES[:-1]:
        yield Case(sessions, LONG)
    if shares:
        for sessions in DECODES[3:]:
            yield Case(sessions, LONG, shared=True)
    for rows in CHUNKS:
        yield Case(1, 0, rows=rows)
        yield Case(1, LONG - rows, rows=rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", metavar="LABEL", help="keep the figures under this name")
    parser.add_argument("--span", default="11:22", help="blocks; the last ones have the head")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--profile", type=int, default=0, metavar="ROWS")
    options = parser.parse_args()
    start, end = map(int, options.span.split(":"))
    stage = load_stage(
        RandomSource(CONFIG), Span(start, end), dtype="bfloat16", threads=1, kv_memory=0
    )
    print(HEADER)
    figures = []
    for case in cases(getattr(stage, "shares_prefixes", False)):
        if options.profile:
            print(profile(stage, case, options.profile))
        figures.append(measure(stage, case, options.steps))
        print(figures[-1], flush=True)
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
        "figures": [{**asdict(figure.case), **_figures(figure)} for figure in figures],
    }
    RESULTS.write_text(json.dumps(known, indent=1) + "\n")


def _figures(figure: Figure) -> dict[str, float]:
    return {name: value for name, value in asdict(figure).items() if name != "case"}


if __name__ == "__main__":
    main()

"""`swarmd bench`: measures a swarm on this machine against one process that runs the whole model.

Ratios are of one run; the tokens are compared as well. Results go to a JSON file.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swarmd.cli import console
from swarmd.core.errors import SwarmdError, UsageError

if TYPE_CHECKING:
    from swarmd.cli.local_swarm import LocalSwarm
    from swarmd.core.results import SwarmStatus

SHAPES = {
    "1.1b": {"num_hidden_layers": 22, "hidden_size": 2048, "intermediate_size": 5632},
    "small": {"num_hidden_layers": 4, "hidden_size": 512, "intermediate_size": 1408},
}
PROMPT_IDS = tuple(range(100, 164))
SCENARIOS = ("decode",)


@dataclass(frozen=True, slots=True)
class DecodeResult:
    """One session over two processes of one thread, against one process of one thread."""

    shape: str
    dtype: str
    tokens: int
    swarm_tokens_per_s: float
    transformers_tokens_per_s: float
    ratio: float
    cpu_ms_per_token_and_hop: float
    """CPU time of a daemon outside `Stage.forward`, per token."""
    forward_ms_per_token_and_hop: float
    equal_ids: int
    """Leading ids in which both agree; in bf16 they may part, since single rows round otherwise."""


@console.verb
def bench(
    scenario: Annotated[str, typer.Argument(help=f"One of {', '.join(SCENARIOS)}.")] = "decode",
    shape: Annotated[str, typer.Option(help=f"One of {', '.join(SHAPES)}.")] = "1.1b",
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32.")] = "bfloat16",
    tokens: Annotated[int, typer.Option(min=8, max=512, help="To generate per run.")] = 48,
    rounds: Annotated[int, typer.Option(min=1, max=20, help="The median counts.")] = 3,
    output: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    as_json: console.JsonOption = False,
) -> int | None:
    """Measure this machine's swarm against one process; see bench/results for figures."""
    if scenario not in SCENARIOS or shape not in SHAPES:
        raise UsageError(f"no scenario {scenario!r} of shape {shape!r}; see swarmd bench --help")
    with _model_directory(shape, dtype) as directory:
        result = asdict(_decode(directory, shape, dtype, tokens, rounds))
    record = {"scenario": scenario, **_circumstances(), **result}
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(record, indent=1) + "\n")
    if as_json:
        console.print_json(record)
    else:
        for name, value in record.items():
            print(f"{name:32} {value}")
    return None


def _circumstances() -> dict[str, object]:
    """What a figure depends on besides the code."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "load_before": round(os.getloadavg()[0], 2),
        "command": " ".join(["swarmd", *sys.argv[1:]]),
    }


@contextmanager
def _model_directory(shape: str, dtype: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="swarmd-bench-") as name:
        _python("make", name, json.dumps(SHAPES[shape]), dtype)
        yield Path(name)


def _decode(directory: Path, shape: str, dtype: str, tokens: int, rounds: int) -> DecodeResult:
    from swarmd.cli.local_swarm import LocalSwarm

    blocks = SHAPES[shape]["num_hidden_layers"]
    spans = (f"0:{blocks // 2}", f"{blocks // 2}:{blocks}")
    flags = ("--threads", "1", "--dtype", dtype, "--kv-memory", "256MiB", "--log-level", "warning")
    with LocalSwarm(str(directory), spans, flags=flags, env={"OMP_NUM_THREADS": "1"}) as nodes:
        nodes.wait_ready(300.0)
        swarm = _swarm_rounds(nodes, tokens, rounds)
    alone = _python("generate", str(directory), dtype, str(tokens), str(rounds))
    return DecodeResult(
        shape=shape,
        dtype=dtype,
        tokens=tokens,
        swarm_tokens_per_s=round(swarm["rate"], 3),
        transformers_tokens_per_s=round(alone["rate"], 3),
        ratio=round(swarm["rate"] / alone["rate"], 3),
        cpu_ms_per_token_and_hop=round(swarm["cpu_ms"], 3),
        forward_ms_per_token_and_hop=round(swarm["forward_ms"], 3),
        equal_ids=_common(swarm["ids"], alone["ids"]),
    )


def _swarm_rounds(nodes: LocalSwarm, tokens: int, rounds: int) -> dict[str, Any]:
    from swarmd.client import Client

    with Client(nodes.addresses[0], timeout=600.0) as client:
        client.complete(PROMPT_IDS, max_tokens=8, ids_only=True, ignore_eos=True)
        before = [_cpu_and_busy(nodes)]
        runs = []
        for _ in range(rounds):
            done = client.complete(PROMPT_IDS, max_tokens=tokens, ids_only=True, ignore_eos=True)
            runs.append(done)
            before.append(_cpu_and_busy(nodes))
    (cpu_0, busy_0), (cpu_1, busy_1) = before[0], before[-1]
    shares = rounds * tokens * len(nodes.nodes)
    rates = sorted(run.tokens_per_s for run in runs)
    return {
        "rate": rates[len(rates) // 2],
        "ids": list(runs[0].token_ids),
        "cpu_ms": ((cpu_1 - cpu_0) - (busy_1 - busy_0)) * 1000 / shares,
        "forward_ms": (busy_1 - busy_0) * 1000 / shares,
    }


def _cpu_and_busy(nodes: LocalSwarm) -> tuple[float, float]:
    """CPU seconds of all daemons, without their children, and of these those in forwards."""
    import psutil

    cpu = busy = 0.0
    for node in nodes.nodes:
        times = psutil.Process(node.pid).cpu_times()
        cpu += times.user + times.system
        busy += _status(node.address).counters["compute_forward_cpu_s"]
    return cpu, busy


def _status(address: str) -> SwarmStatus:
    from swarmd.client import Client

    with Client(address, timeout=60.0) as client:
        return client.status()


def _common(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(a))


def _python(*arguments: str) -> dict[str, Any]:
    """Run the other side of the comparison in a process of its own; returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "swarmd.node.witness", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SwarmdError(f"the comparison failed: {done.stderr.strip()[-500:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer

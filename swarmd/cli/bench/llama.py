"""llama.cpp over its RPC servers, as a baseline, where somebody has built it.

Its own `llama-batched-bench` measures; weights are those of the model, tokens are random ones, so
that nothing is compared but speed. Looked for on the PATH.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from swarmd.cli.bench.models import Model, cache_dir
from swarmd.cli.bench.report import Baseline, Row
from swarmd.cli.bench.run import Run
from swarmd.cli.bench.witness import witness
from swarmd.cli.local_swarm import free_port
from swarmd.core.errors import SwarmdError

NAME = "llama.cpp, RPC servers"
BENCH = ("llama-batched-bench",)
SERVER = ("ggml-rpc-server", "rpc-server")
READY_S = 30.0


def measure(
    run: Run, model: Model, prompts: Sequence[int], tokens: int, sessions: Sequence[int]
) -> Baseline:
    """Run all sizes of crowds with all lengths of prompts; as many servers as there are stages."""
    bench, server = _found(BENCH), _found(SERVER)
    if bench is None or server is None:
        missing = (BENCH if bench is None else SERVER)[0]
        return Baseline(NAME, unavailable=f"no {missing} on the PATH: build llama.cpp with RPC")
    try:
        weights, (count, threads) = _converted(model), (run.settings.stages, run.settings.threads)
        with _servers(server, count, threads) as addresses:
            command = [bench, *_arguments(weights, addresses, prompts, tokens, sessions)]
            what = f"baseline {NAME}: {count} x {threads} threads"
            found = run.undisturbed(what, lambda: _bench(command, max(60.0, run.left_s)))
    except (SwarmdError, OSError) as error:
        return Baseline(NAME, unavailable=str(error))
    return Baseline(NAME, tuple(_row(line) for line in found))


def _found(names: Sequence[str]) -> str | None:
    return next((path for path in map(shutil.which, names) if path), None)


def _converted(model: Model) -> Path:
    """The weights as GGUF, written once for each state of the file that they are from."""
    source = model.directory / "model.safetensors"
    state = f"{source.resolve()} {source.stat().st_mtime_ns}"
    mark = hashlib.sha256(state.encode()).hexdigest()[:16]
    target = cache_dir() / f"{mark}.gguf"
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(f".{os.getpid()}")
        witness("gguf", {"directory": str(model.directory), "target": str(part)})
        part.rename(target)
    return target


@contextmanager
def _servers(binary: str, count: int, threads: int) -> Iterator[list[str]]:
    """Start servers and wait until they listen."""
    ports = [free_port() for _ in range(count)]
    flags = ("-H", "127.0.0.1", "-t", str(threads))
    servers = [
        subprocess.Popen(
            [binary, *flags, "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for port in ports
    ]
    try:
        for port, process in zip(ports, servers, strict=True):
            _wait(port, process)
        yield [f"127.0.0.1:{port}" for port in ports]
    finally:
        for process in servers:
            process.kill()
            process.wait()


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + READY_S
    while True:
        if process.poll() is not None or time.monotonic() > end:
            raise SwarmdError("an RPC server of llama.cpp did not start")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
            return
        except OSError:
            time.sleep(0.05)


def _arguments(
    weights: Path,
    addresses: Sequence[str],
    prompts: Sequence[int],
    tokens: int,
    sessions: Sequence[int],
) -> list[str]:
    def joined(values: Sequence[object]) -> str:
        return ",".join(map(str, values))

    room = max(sessions) * (max(prompts) + tokens)
    return [
        *("-m", str(weights), "--rpc", joined(addresses), "-ngl", "999", "-t", "1"),
        *("-c", str(room), "-b", "2048", "-ub", "512", "--output-format", "jsonl"),
        *("-npp", joined(prompts), "-ntg", str(tokens), "-npl", joined(sessions)),
    ]


def _bench(command: Sequence[str], timeout_s: float) -> list[dict[str, Any]]:
    """Run it and return its lines; what came until the time was up counts."""
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=timeout_s)
        out, said = done.stdout, done.stderr
    except subprocess.TimeoutExpired as late:
        out, said = late.stdout or b"", b"not done in time"
    lines = (line for line in out.decode(errors="replace").splitlines() if line.startswith("{"))
    found = [json.loads(line) for line in lines]
    if not found:
        words = said.decode(errors="replace").strip().splitlines()
        raise SwarmdError(f"llama-batched-bench said nothing; {words[-1][:300] if words else ''}")
    return found


def _row(line: dict[str, Any]) -> Row:
    sessions = line["pl"]
    return {
        "sessions": sessions,
        "prompt": line["pp"],
        "decode_tokens_per_s": float(line["speed_tg"]),
        "tokens_per_s": sessions * line["tg"] / line["t"],
        "prompt_tokens_per_s": float(line["speed_pp"]),
    }

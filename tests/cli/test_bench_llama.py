"""llama.cpp as a baseline: found on the PATH, asked for the right sizes, and let go."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from swarmd.cli.bench import llama, models
from swarmd.cli.bench.run import Run, Steps
from swarmd.cli.bench.settings import Settings

SERVER = f"""#!{sys.executable}
import socket, sys
port = int(sys.argv[sys.argv.index("-p") + 1])
with open(__file__ + ".ports", "a") as ports:  # first: who finds it listening goes on
    ports.write(f"{{port}}\\n")
with socket.create_server(("127.0.0.1", port)) as server:
    while True:
        server.accept()
"""
BENCH = f"""#!{sys.executable}
import json, sys
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
open(__file__ + ".flags", "w").write(json.dumps(flags))
print("loading")
for size in map(int, flags["-npl"].split(",")):
    print(json.dumps({{"pp": 64, "tg": 8, "pl": size, "speed_pp": 100.5, "speed_tg": 2.0 * size,
                      "t": 4.0}}))
"""


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that is the PATH, and a model that has been converted already."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(llama, "_converted", lambda model: tmp_path / "model.gguf")
    return tmp_path


def install(path: Path, script: str) -> None:
    path.write_text(script)
    path.chmod(0o700)


def run_of(stages: int = 2) -> Run:
    return Run(Settings(stages=stages, threads=3, allow_busy=True), Steps("test", quiet=True))


def demo() -> models.Model:
    return models.find("demo", "bfloat16")


def test_what_is_not_there_is_named(tools: Path) -> None:
    missing = llama.measure(run_of(), demo(), [64], 8, [1])
    assert missing.unavailable == ("no llama-batched-bench on the PATH: build llama.cpp with RPC")
    install(tools / "llama-batched-bench", BENCH)
    assert "no ggml-rpc-server" in llama.measure(run_of(), demo(), [64], 8, [1]).unavailable


def test_servers_are_started_used_and_ended(tools: Path) -> None:
    install(tools / "llama-batched-bench", BENCH)
    install(tools / "rpc-server", SERVER)
    found = llama.measure(run_of(stages=3), demo(), [64], 8, [1, 16])
    assert found.unavailable == ""
    assert found.rows == (
        {
            "sessions": 1,
            "prompt": 64,
            "decode_tokens_per_s": 2.0,
            "tokens_per_s": 2.0,
            "prompt_tokens_per_s": 100.5,
        },
        {
            "sessions": 16,
            "prompt": 64,
            "decode_tokens_per_s": 32.0,
            "tokens_per_s": 32.0,
            "prompt_tokens_per_s": 100.5,
        },
    )
    flags = (tools / "llama-batched-bench.flags").read_text()
    assert f'"-c": "{16 * 72}"' in flags
    ports = sorted(map(int, (tools / "rpc-server.ports").read_text().split()))
    assert len(ports) == 3
    assert all(f"127.0.0.1:{port}" in flags for port in ports)
    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


def test_a_tool_that_fails_is_not_available(tools: Path) -> None:
    install(tools / "rpc-server", SERVER)
    install(tools / "llama-batched-bench", "#!/bin/sh\necho 'bad model' >&2; exit 1\n")
    found = llama.measure(run_of(), demo(), [64], 8, [1])
    assert found.unavailable == "llama-batched-bench said nothing; bad model"
    install(tools / "rpc-server", "#!/bin/sh\nexit 1\n")
    found = llama.measure(run_of(), demo(), [64], 8, [1])
    assert found.unavailable == "an RPC server of llama.cpp did not start"


def test_weights_are_converted_once_for_each_state_of_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked: list[str] = []

    def witness(command: str, request: dict[str, str]) -> None:
        asked.append(command)
        Path(request["target"]).write_bytes(b"GGUF")

    monkeypatch.setattr(llama, "witness", witness)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    model = models.Model("m", tmp_path, "bfloat16", 2, 40, 64, 1.0)
    first = llama._converted(model)
    assert first.parent == models.cache_dir(os.environ)
    assert llama._converted(model) == first
    os.utime(tmp_path / "model.safetensors", ns=(1, 1))
    assert llama._converted(model) != first
    assert asked == ["gguf", "gguf"]

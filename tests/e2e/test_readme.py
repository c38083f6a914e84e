"""Every command of the README is executed, against loopback and a hub on this machine.

Addresses of the text are mapped to ports here; the model keeps its name and layout, with few random
weights. A command that this file does not know how to execute fails the test.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_repo import ChatShape, write_chat_repo
from hub_server import HubServer

from swarmd.cli.local_swarm import free_port

ROOT = Path(__file__).parents[2]
REPO = "Qwen/Qwen2.5-0.5B-Instruct"
SHAPE = ChatShape(layers=24, hidden=64, heads=4, kv_heads=2, intermediate=128, vocab=1024)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
READY_S = 240.0


def blocks(language: str) -> list[str]:
    return [
        text for kind, text in BLOCK.findall((ROOT / "README.md").read_text()) if kind == language
    ]


def commands() -> list[list[str]]:
    """The README's shell commands, in order, as arguments."""
    return [shlex.split(line) for text in blocks("sh") for line in text.splitlines() if line]


class Reader:
    """Somebody who follows the README on one machine."""

    def __init__(self, directory: Path, hub: HubServer) -> None:
        self._directory = directory
        self._ports: dict[str, int] = {}
        self._env = {**os.environ, **hub.environ(directory / "home"), "OMP_NUM_THREADS": "1"}
        self._env["PYTHONUNBUFFERED"] = "1"
        self._nodes: list[tuple[subprocess.Popen[bytes], Path]] = []

    def local(self, text: str) -> str:
        """Map the documentation's addresses to free ports of loopback."""

        def port(match: re.Match[str]) -> str:
            if match[0] not in self._ports:
                self._ports[match[0]] = free_port()
            return f"127.0.0.1:{self._ports[match[0]]}"

        return re.sub(r"192\.0\.2\.\d+:\d+", port, text)

    def swarmd(self, arguments: list[str]) -> list[str]:
        return [sys.executable, "-m", "swarmd.cli.main", *map(self.local, arguments)]

    def serve(self, arguments: list[str]) -> None:
        """Start a node and wait until it says that it serves."""
        if "--announce" in arguments:
            # All addresses, at the port that stands for the one that is announced.
            announced = self.local(arguments[arguments.index("--announce") + 1])
            everywhere = "0.0.0.0:" + announced.rpartition(":")[2]
            arguments = [everywhere if a == "0.0.0.0:7420" else a for a in arguments]
            assert everywhere in arguments
        number = len(self._nodes)
        log = self._directory / f"node{number}.log"
        state = ("--state-dir", str(self._directory / f"state{number}"))
        extra = ("--threads", "1", "--kv-memory", "64MiB", "--dht-listen", "127.0.0.1:0")
        if "--listen" not in arguments:
            extra = (*extra, "--listen", "127.0.0.1:0")
        with log.open("wb") as out:
            process = subprocess.Popen(
                self.swarmd([*arguments, *state, *extra]),
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self._env,
                cwd=ROOT,
            )
        self._nodes.append((process, log))
        deadline = time.monotonic() + READY_S
        while "\nserving " not in "\n" + log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)

    def run(self, arguments: list[str], stdin: str = "") -> str:
        done = subprocess.run(
            self.swarmd(arguments),
            input=stdin,
            capture_output=True,
            text=True,
            env=self._env,
            cwd=ROOT,
            timeout=120,
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    def would_install(self, what: str) -> None:
        """Have pip look at it, without a change: the package test installs the wheel."""
        command = [sys.executable, "-m", "pip", "install", what, "--dry-run", "--no-deps"]
        done = subprocess.run(
            [*command, "--no-index", "--no-build-isolation"],
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=120,
        )
        assert "Would install swarmd-" in done.stdout, done.stdout + done.stderr

    def python(self, code: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", self.local(code)],
            capture_output=True,
            text=True,
            env=self._env,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def stop(self) -> None:
        for process, _ in self._nodes:
            process.kill()
            process.wait()


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    write_chat_repo(tmp_path / "repo", SHAPE)
    with HubServer() as hub:
        hub.add_repo(REPO, tmp_path / "repo")
        one = Reader(tmp_path, hub)
        yield one
        one.stop()


@pytest.mark.timeout(600)
def test_every_command_of_the_readme_works(reader: Reader) -> None:
    known = commands()
    assert ["make", "demo"] in known
    assert ["make", "test"] in known
    assert ["pip", "install", "."] in known
    (code,) = blocks("python")
    for command in known:
        match command:
            case ["make", target]:
                # The targets themselves: `make test` is what runs this, the demo has its own test.
                plan = subprocess.run(
                    ["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True
                )
                assert {"demo": "swarmd demo", "test": "pytest"}[target] in plan.stdout
            case ["pip", "install", "."]:
                reader.would_install(command[2])
            case ["pip", "install", ".[node]"]:
                # Where the base is found; what the extra brings, the package test holds.
                project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
                assert "node" in project["optional-dependencies"]
            case ["swarmd", "serve", *_]:
                reader.serve(command[1:])
            case ["swarmd", "status", *_]:
                assert f"{REPO}: 24 of 24 blocks, replicas 1" in reader.run(command[1:])
            case ["swarmd", "generate", *_]:
                assert reader.run(command[1:]).strip()
            case ["swarmd", "chat", *_]:
                assert reader.run([*command[1:], "--max-tokens", "8"], stdin="hello\n/quit\n")
            case ["swarmd", "drain", *_]:
                assert reader.python(code), "the Python example, while the swarm is whole"
                assert reader.run(command[1:])
            case _:
                pytest.fail(f"the README has a command that nobody executes: {command}")

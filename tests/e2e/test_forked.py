"""A process that the fork server starts is like an executed one, in all that tests go by."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import psutil
import pytest
from command_line import PATIENCE_S
from e2e_swarm import READY_S
from forked import SERVER, ForkedProcess, ForkServer, forked

from swarmd.cli.local_swarm import LocalNode, Process

FACTS = """
import json, os, random, resource, secrets, signal, sys, threading, uuid
import numpy

print(json.dumps({
    "same": {
        "arguments": sys.argv[1:],
        "cwd": os.getcwd(),
        "path": sys.path,
        "main": sys.modules["__main__"].__spec__.name,
        "descriptors": sorted(os.listdir("/proc/self/fd"))[:-1],
        "input": sys.stdin.read(),
        "signals": [str(signal.getsignal(n)).split(" at ")[0] for n in signal.valid_signals()],
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "wakeup": signal.set_wakeup_fd(-1),
        "buffered": [sys.stdout.write_through, sys.stderr.write_through],
        "threads": threading.active_count(),
        "limits": resource.getrlimit(resource.RLIMIT_NOFILE),
        "umask": os.umask(0),
    },
    "drawn": [
        random.random(), numpy.random.random(), str(uuid.uuid4()), secrets.token_hex(),
        random.Random().random(), numpy.random.default_rng().random(),
    ],
    "env": dict(os.environ),
}))
"""
SET_BY_IMPORTS = ("GRPC_", "TOKENIZERS_PARALLELISM", "TRANSFORMERS_VERBOSITY")


@pytest.fixture(autouse=True)
def asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_DAEMONS", raising=False)


Start = Callable[[str, list[str], Mapping[str, str], BinaryIO], Process]


def execute(module: str, args: list[str], env: Mapping[str, str], output: BinaryIO) -> Process:
    return subprocess.Popen(
        (sys.executable, "-m", module, *args),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=env,
    )


def fork(module: str, args: list[str], env: Mapping[str, str], output: BinaryIO) -> Process:
    process = SERVER.fork(module, args, env, output)
    assert process is not None, "the fork server does not serve"
    return process


def said(start: Start, tmp_path: Path, module: str, *args: str) -> tuple[int, str]:
    """How the process has ended, and what it has printed."""
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "SWARMD_TEST_MARK": "seen"}
    with (tmp_path / "output").open("w+b") as output:
        code = start(module, list(args), env, output).wait(PATIENCE_S)
        output.seek(0)
        return code, output.read().decode()


def facts(start: Start, tmp_path: Path) -> dict[str, Any]:
    """What a process sees of itself. The module runs any code, once, and is in every Python."""
    code, printed = said(start, tmp_path, "timeit", "-n", "1", "-r", "1", FACTS)
    assert code == 0, printed
    found: dict[str, Any] = json.loads(printed.splitlines()[0])
    return found


def test_a_forked_process_sees_what_an_executed_one_does(tmp_path: Path) -> None:
    expected, one, other = (facts(start, tmp_path) for start in (execute, fork, fork))
    assert one["same"] == other["same"] == expected["same"]
    assert one["env"]["SWARMD_TEST_MARK"] == "seen"
    for name in one["env"].keys() ^ expected["env"].keys():
        assert name.startswith(SET_BY_IMPORTS), name
    assert expected["env"].items() <= one["env"].items()
    # Two nodes that draw alike would have one identity, and one session.
    assert not {*map(str, one["drawn"])} & {*map(str, other["drawn"])}


@pytest.mark.parametrize(
    ("line", "code"),
    [(("version",), 0), (("--no-such-flag",), 2), (("status", "--node", "127.0.0.1:1"), 1)],
)
def test_it_prints_and_ends_as_an_executed_one(
    tmp_path: Path, line: tuple[str, ...], code: int
) -> None:
    found = [said(start, tmp_path, "swarmd.cli.main", *line) for start in (execute, fork)]
    assert found[0] == found[1]
    assert found[1][0] == code
    assert found[1][1]


def test_an_error_that_nobody_catches_is_told_and_ends_with_one(tmp_path: Path) -> None:
    code, printed = said(fork, tmp_path, "timeit", "-n", "1", "-r", "1", "1 / 0")
    assert code == 1
    assert "ZeroDivisionError" in printed


def node_of(model: Path, directory: Path, **variables: str) -> LocalNode:
    ports = ("--listen", "127.0.0.1:0", "--dht-listen", "127.0.0.1:0")
    flags = ("--blocks", "0:2", "--kv-memory", "16MiB", "--threads", "1", "--dtype", "float32")
    env = {**os.environ, "PYTHONUNBUFFERED": "1", **variables}
    return LocalNode((str(model), *ports, *flags), directory, env, launch=forked)


def test_a_daemon_is_forked_killed_and_known_to_be_dead(model_dir: Path, tmp_path: Path) -> None:
    node = node_of(model_dir, tmp_path)
    assert isinstance(node.process, ForkedProcess)
    node.wait_ready(time.monotonic() + READY_S)
    with pytest.raises(subprocess.TimeoutExpired):
        node.process.wait(0.01)
    node.kill()
    assert node.process.returncode == -signal.SIGKILL
    assert not psutil.pid_exists(node.pid), "it has not even been reaped"
    node.signal(signal.SIGKILL)  # to nobody, whose number somebody else may have by now
    node.restart()
    node.wait_ready(time.monotonic() + READY_S)
    assert node.stop() == 0


def test_what_libraries_read_when_they_are_imported_is_read_by_an_executed_one(
    model_dir: Path, tmp_path: Path
) -> None:
    node = node_of(model_dir, tmp_path / "node", HF_HOME=str(tmp_path / "home"))
    assert isinstance(node.process, subprocess.Popen)
    node.kill()


def runs(pid: int) -> bool:
    """Whether there is such a process, other than one whose end nobody has taken note of."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_all_end_with_the_server_and_then_others_are_executed(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ForkServer()
    monkeypatch.setattr("forked.SERVER", server)
    with (tmp_path / "output").open("wb") as output:
        endless = server.fork("timeit", ["import time; time.sleep(1000)"], os.environ, output)
    assert endless is not None
    assert server.process is not None
    server.process.kill()
    server.process.wait()
    assert endless.wait(PATIENCE_S) == -signal.SIGKILL
    while runs(endless.pid):
        time.sleep(0.01)
    node = node_of(model_dir, tmp_path / "node")
    assert isinstance(node.process, subprocess.Popen)
    node.kill()
    server.stop()

"""A command told to end by a signal takes along the processes and files that it has made."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from swarmd.cli import endings
from swarmd.cli.bench import verb
from swarmd.cli.bench.report import Report
from swarmd.cli.bench.run import Run
from swarmd.cli.bench.settings import Settings
from swarmd.cli.demo import _wait
from swarmd.cli.endings import Terminated
from swarmd.cli.local_swarm import LocalSwarm

SWARM = """
import os, signal, subprocess, sys, time
from swarmd.cli import console
from swarmd.cli.local_swarm import LocalSwarm

def launch(args, env, log, prefix):
    process = subprocess.Popen(["sleep", "600"])
    print(process.pid, flush=True)
    if "early" in sys.argv:
        os.kill(os.getpid(), signal.SIGTERM)
    return process

def stand():
    with LocalSwarm("model", ("0:1", "1:2"), launch=launch) as nodes:
        print(nodes.directory, flush=True)
        while True:
            time.sleep(600)
"""
AS_VERB = f"{SWARM}\nsys.exit(console.verb(stand)())"
AS_SCRIPT = f"{SWARM}\nstand()"


def start(script: str, *args: str, ignored: signal.Signals | None = None) -> subprocess.Popen[str]:
    def set_signals() -> None:
        for number in (signal.SIGTERM, signal.SIGHUP):  # the tests may run under nohup
            signal.signal(number, signal.SIG_IGN if number == ignored else signal.SIG_DFL)

    pipe = subprocess.PIPE
    command = [sys.executable, "-c", script, *args]
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, preexec_fn=set_signals)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("script", "number", "code"),
    [
        (AS_VERB, signal.SIGTERM, 143),
        (AS_VERB, signal.SIGHUP, 129),
        (AS_SCRIPT, signal.SIGTERM, 143),
    ],
    ids=["term", "hup", "script"],
)
def test_a_signal_ends_the_swarm_with_its_command(
    script: str, number: signal.Signals, code: int
) -> None:
    with start(script) as command:
        assert command.stdout is not None
        pids = [int(command.stdout.readline()) for _ in range(2)]
        directory = Path(command.stdout.readline().strip())
        assert directory.is_dir()
        assert all(map(is_alive, pids))
        command.send_signal(number)
        _, err = command.communicate(timeout=60)
    assert (command.returncode, err) == (code, "")
    assert not any(map(is_alive, pids))
    assert not directory.exists()


def test_a_signal_while_a_node_is_started_does_not_lose_that_node() -> None:
    with start(AS_VERB, "early") as command:
        out, err = command.communicate(timeout=60)
    assert (command.returncode, err) == (143, "")
    (pid,) = map(int, out.split())
    assert not is_alive(pid)


def test_a_hangup_that_is_ignored_stays_so() -> None:
    with start(AS_VERB, ignored=signal.SIGHUP) as command:
        assert command.stdout is not None
        for _ in range(3):
            command.stdout.readline()
        command.send_signal(signal.SIGHUP)
        command.send_signal(signal.SIGTERM)
        command.communicate(timeout=60)
    assert command.returncode == 143


# -- in this process -------------------------------------------------------------------------------


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a process that ignores nothing, and in which none of the other tests' swarms stands."""
    alone = endings._Endings()
    for name in ("begin", "end", "held"):
        monkeypatch.setattr(endings, name, getattr(alone, name))
    before = {number: signal.signal(number, signal.SIG_DFL) for number in endings._SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_second_of_two_signals_at_once_breaks_nothing_off(
    monkeypatch: pytest.MonkeyPatch, fresh: None
) -> None:
    monkeypatch.setattr(endings, "_ONE_WISH_S", 3600.0)
    with endings.in_order():
        with pytest.raises(Terminated) as ended:
            signal.raise_signal(signal.SIGHUP)
        assert ended.value.code == 129
        signal.raise_signal(signal.SIGTERM)


def test_handlers_stay_until_the_last_swarm_has_gone(fresh: None) -> None:
    first, second = LocalSwarm("model", ()), LocalSwarm("model", ())
    first.stop()
    first.stop()
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    second.stop()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_signal_interrupts_a_benchmark(fresh: None, tmp_path: Path) -> None:
    """Also where no swarm stands, as while a baseline runs in a process of its own."""

    def measure(run: Run) -> Report:
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        return Report("t", skipped="nothing to do")

    quick = Settings(allow_busy=True)
    assert verb._run("t", measure, quick, tmp_path / "out.json", True) == 0
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("told_by", [KeyboardInterrupt(), Terminated(signal.SIGTERM)])
def test_ctrl_c_is_how_a_demo_that_is_kept_ends_well(
    monkeypatch: pytest.MonkeyPatch, told_by: KeyboardInterrupt
) -> None:
    class Nodes:
        """A swarm with a node that lives until somebody interrupts."""

        alive = True

        @property
        def nodes(self) -> list[Nodes]:
            return [self]

    def interrupted(seconds: float) -> None:
        raise told_by

    monkeypatch.setattr(time, "sleep", interrupted)
    kept: Any = Nodes()
    if isinstance(told_by, Terminated):
        with pytest.raises(Terminated):
            _wait(kept)
    else:
        _wait(kept)

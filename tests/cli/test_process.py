"""The command as a process: what it imports, how it ends on signals, and what a terminal does."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer
from scripted_node import ScriptedNode, serving, token, whole
from without_extras import BLOCKER

from swarmd.cli.demo import demo_model
from swarmd.cli.local_swarm import free_port
from swarmd.client import AsyncClient

MAIN = "from swarmd.cli.main import main; main()"


def command(*line: str, before: str = "") -> list[str]:
    return [sys.executable, "-c", f"{before}\n{MAIN}", *line]


async def start(*line: str, before: str = "", **options: Any) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    streams = {"stdin": subprocess.DEVNULL, "stdout": pipe, "stderr": pipe} | options
    return await asyncio.create_subprocess_exec(*command(*line, before=before), **streams)


async def result(process: asyncio.subprocess.Process) -> tuple[int | None, str, str]:
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, (out or b"").decode(), err.decode()


async def two_then_nothing(node: ScriptedNode, request: Any, context: Any) -> AsyncIterator[Any]:
    yield node.started(request)
    yield token(0)
    yield token(1)
    await asyncio.Event().wait()


async def endless(node: ScriptedNode, request: Any, context: Any) -> AsyncIterator[Any]:
    yield node.started(request)
    index = 0
    while True:
        yield token(index)
        index += 1


async def test_the_client_verbs_run_where_only_the_base_install_is() -> None:
    node = ScriptedNode()
    async with serving(node):
        for line in (
            ["generate", "p", "--max-tokens", "2", "--stats"],
            ["status"],
            ["drain", node.address],
            ["version"],
        ):
            where = [] if line[0] in ("drain", "version") else ["--node", node.address]
            code, out, err = await result(await start(*line, *where, before=BLOCKER))
            assert (code, bool(out)) == (0, True), (line, err)
            assert "Traceback" not in err


async def test_serve_names_what_to_install(tmp_path: Path) -> None:
    anywhere = ("--listen", "127.0.0.1:0", "--state-dir", str(tmp_path))
    for model in (str(demo_model()), "some-model", str(tmp_path)):
        code, out, err = await result(await start("serve", model, *anywhere, before=BLOCKER))
        assert (code, out) == (1, "")
        assert err.startswith("swarmd: serving needs ")
        assert "pip install 'swarmd[node]'" in err


def report_of(*heavy: str) -> str:
    """Code that makes a process say at its end which of these it has imported."""
    return (
        "import atexit, sys\n"
        f"heavy = {heavy}\n"
        "atexit.register(lambda: print([n for n in heavy if n in sys.modules], file=sys.stderr))"
    )


async def test_help_imports_neither_grpc_nor_rich() -> None:
    probe = report_of("grpc", "google", "rich", "asyncio", "torch")
    code, out, err = await result(await start("--help", before=probe))
    assert (code, err) == (0, "[]\n")
    assert "generate" in out


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A hub that has no models; the environment points at it."""
    for name in ("HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with HubServer() as server:
        for name, value in server.environ(tmp_path / "hf").items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.mark.parametrize(
    ("model", "reached", "code", "complaint"),
    [
        ("./no/directory", False, 2, "is neither a directory on this machine nor a model's name"),
        ("Org/Modle", False, 1, "is no directory here, .* was never opened .* refused"),
        ("Org/Modle", True, 2, "refuses access to Org/Modle .*check the name"),
        ("{empty}", False, 2, "has no config.json"),
    ],
)
async def test_a_slip_in_the_model_is_told_without_torch(
    tmp_path: Path, hub: HubServer, model: str, reached: bool, code: int, complaint: str
) -> None:
    if not reached:
        hub.stop()  # on loopback the refusal comes at once
    flags = ("--listen", "127.0.0.1:0", "--dht-listen", "127.0.0.1:0")
    line = ("serve", model.format(empty=tmp_path), *flags, "--state-dir", str(tmp_path / "state"))
    probe = report_of("torch", "transformers", "grpc", "huggingface_hub")
    ended, out, err = await result(await start(*line, before=probe))
    assert (ended, out) == (code, "")
    told, imported = err.splitlines()
    assert re.search(complaint, told, re.IGNORECASE), told
    assert imported == "[]"


def told_of(*heavy: str) -> str:
    """Code that makes a process say at once when it imports one of these."""
    return f"""
import sys

class Told:
    def find_spec(name, path=None, target=None):
        if name in {heavy}:
            print("imported", name, file=sys.stderr, flush=True)

sys.meta_path.insert(0, Told)
"""


TELLS_OF_GARBAGE = """
import gc

def freeze(freeze=gc.freeze):
    freeze()
    print("frozen", gc.get_freeze_count(), file=sys.stderr, flush=True)

def enable(enable=gc.enable):
    enable()
    print("enabled", file=sys.stderr, flush=True)

gc.freeze, gc.enable = freeze, enable
"""
"""Code that makes a process say how many objects are never looked through, and that others are."""


async def test_a_node_loads_its_model_without_what_it_does_not_use(tmp_path: Path) -> None:
    """Each of these would be half a second of CPU more before it serves, or tens of megabytes.

    As would be looking for garbage in what it does load.
    """
    probe = (
        told_of("scipy.linalg", "torch._inductor", "torch.distributed.tensor") + TELLS_OF_GARBAGE
    )
    ports = ("--listen", "127.0.0.1:0", "--dht-listen", "127.0.0.1:0")
    limits = ("--threads", "1", "--kv-memory", "16MiB", "--dtype", "float32")
    line = ("serve", str(demo_model()), *ports, *limits, "--state-dir", str(tmp_path))
    process = await start(*line, before=probe)
    assert process.stdout is not None
    try:
        said = await asyncio.wait_for(process.stdout.readline(), 120)
        assert said.startswith(b"serving "), said
    finally:
        process.send_signal(signal.SIGTERM)
        code, _, err = await result(process)
    assert code == 0
    assert [line for line in err.splitlines() if line.startswith("imported ")] == []
    assert int(re.findall(r"^frozen (\d+)\nenabled$", err, re.MULTILINE)[0]) > 100_000


@asynccontextmanager
async def node_of_its_own(
    tmp_path: Path, **options: Any
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A node that serves the whole demo model, and its address."""
    address = f"127.0.0.1:{free_port()}"
    ports = ("--listen", address, "--dht-listen", "127.0.0.1:0", "--insecure")
    limits = ("--threads", "1", "--kv-memory", "16MiB", "--dtype", "float32")
    line = ("serve", str(demo_model()), *ports, *limits, "--state-dir", str(tmp_path))
    process = await start(*line, **options)
    assert process.stdout is not None
    try:
        said = await asyncio.wait_for(process.stdout.readline(), 120)
        assert said.startswith(b"serving "), said
        yield process, address
    finally:
        if process.returncode is None:
            process.kill()


async def test_a_terminal_that_goes_away_lets_streams_end(tmp_path: Path) -> None:
    terminal, near = pty.openpty()

    def take_the_terminal() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
        fcntl.ioctl(near, termios.TIOCSCTTY, 0)

    at_terminal: dict[str, Any] = {
        "stdin": near,
        "stderr": near,
        "start_new_session": True,
        "preexec_fn": take_the_terminal,
    }
    async with node_of_its_own(tmp_path, **at_terminal) as (process, address):
        os.close(near)
        async with AsyncClient(address) as client:
            stream = client.generate("def", max_tokens=300, ignore_eos=True)
            seen = [(await anext(stream)).id]
            os.close(terminal)
            process.send_signal(signal.SIGHUP)  # as a shell does to its jobs, besides the kernel
            seen += [token.id async for token in stream]
        assert len(seen) == 300
        assert await asyncio.wait_for(process.wait(), 60) == 0


async def test_a_hangup_is_ignored_where_it_was(tmp_path: Path) -> None:
    def as_nohup() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    async with node_of_its_own(tmp_path, preexec_fn=as_nohup) as (process, address):
        process.send_signal(signal.SIGHUP)
        async with AsyncClient(address) as client:
            done = await client.complete("def", max_tokens=4, ignore_eos=True)
        assert len(done.token_ids) == 4
        process.send_signal(signal.SIGTERM)
        assert (await result(process))[0] == 0


async def test_ctrl_c_ends_it_quietly_and_frees_the_session() -> None:
    node = ScriptedNode(script=two_then_nothing)
    async with serving(node):
        process = await start("generate", "p", "--node", node.address)
        assert process.stdout is not None
        seen = await asyncio.wait_for(process.stdout.readuntil(b"w1 "), 60)
        process.send_signal(signal.SIGINT)
        code, _, err = await result(process)
        assert (seen, code, err) == (b"w0 w1 ", 130, "")
        await asyncio.wait_for(node.cancelled.wait(), 20)


async def test_a_reader_that_goes_away_ends_it_quietly_and_frees_the_session() -> None:
    node = ScriptedNode(script=endless)
    async with serving(node):
        near, far = os.pipe()
        process = await start("generate", "p", "--node", node.address, stdout=far)
        os.close(far)
        assert await asyncio.to_thread(os.read, near, 1) == b"w"
        os.close(near)
        code, _, err = await result(process)
        assert (code, err) == (141, "")
        await asyncio.wait_for(node.cancelled.wait(), 20)


async def test_a_lost_coordinator_leaves_no_noise_on_stderr() -> None:
    first, second = ScriptedNode(break_after=2), ScriptedNode()
    async with serving(first, second):
        nodes = f"{first.address},{second.address}"
        process = await start("generate", "p", "--max-tokens", "4", "--node", nodes)
        assert await result(process) == (0, whole(4)[1] + "\n", "")


class Terminal:
    """The far end of a pseudo-terminal on which a process runs."""

    def __init__(self) -> None:
        self._far, self.near = pty.openpty()
        os.set_blocking(self._far, False)
        self.shown = b""

    async def until(self, text: bytes) -> None:
        """Wait until the text has been shown, after what was waited for before."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(60):
            while text not in self.shown:
                ready = asyncio.Event()
                loop.add_reader(self._far, ready.set)
                await ready.wait()
                loop.remove_reader(self._far)
                self.shown += os.read(self._far, 65536)
        self.shown = self.shown.partition(text)[2]

    def type(self, text: bytes) -> None:
        os.write(self._far, text)

    def close(self) -> None:
        os.close(self._far)


async def test_chat_on_a_terminal_survives_an_interrupted_answer() -> None:
    node = ScriptedNode(script=two_then_nothing)
    async with serving(node):
        terminal = Terminal()
        tty: dict[str, Any] = {
            "stdin": terminal.near,
            "stdout": terminal.near,
            "stderr": terminal.near,
        }
        process = await start("chat", "--node", node.address, **tty)
        os.close(terminal.near)
        await terminal.until(b"> ")
        terminal.type(b"hello\n")
        await terminal.until(b"w1 ")
        process.send_signal(signal.SIGINT)
        await terminal.until(b"> ")
        await asyncio.wait_for(node.cancelled.wait(), 20)
        terminal.type(b"/quit\n")
        assert await asyncio.wait_for(process.wait(), 60) == 0
        terminal.close()

"""A node runs out of memory, or of disk: it refuses what it cannot do, and lives."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.chaos.lab import Lab, long_prompt, until
from bench.chaos.verdict import Bar, Findings
from swarmd.cli.local_swarm import LocalNode

STATE_BYTES = 256 << 10
LONG = 230
"""Functions in a prompt: 4,140 tokens."""


async def memory(lab: Lab) -> Findings:
    """A node may allocate no more memory: what it cannot do others do, and it lives."""
    await lab.revive()
    found = Findings(calm=await lab.calm(lab.work()), may_fail=True)
    # Far more than anything before has needed: what was freed is used again without asking.
    prompts = [long_prompt(client % 2, LONG) for client in range(lab.settings.clients)]
    work = lab.work(prompts=prompts, tokens=24, shared=False)
    await asyncio.to_thread(lab.witness, [(p, work.tokens) for p in dict.fromkeys(prompts)])
    node = next(n for n in lab.nodes.nodes if "3:6" in n.args)
    _limit(node, spare=1 << 20)
    async with lab.load(work) as load:
        pass
    found.streams = load.streams
    status = await lab.status(node.address)
    exhausted = status.counters["hop_memory_exhausted"] if status else 0.0
    found.counted = int(exhausted > 0 or "MemoryError" in node.log())
    if node.alive:
        _limit(node, spare=None)
    async with lab.load(lab.work()) as after:
        pass
    found.streams += after.streams
    found.facts = {
        "alive": node.alive,
        "sessions_given_up_for_want_of_memory": round(exhausted),
        "memory_errors_in_its_log": node.log().count("MemoryError"),
        "errors_under_the_limit": sum(bool(s.error) for s in load.streams),
        "said": [line[:200] for line in node.log().splitlines() if "alloc" in line][:4],
    }
    found.bars = [
        Bar("daemons_that_died", not node.alive, 0),
        Bar("errors_while_another_had_room", found.facts["errors_under_the_limit"], 0),
        Bar("errors_afterwards", sum(bool(s.error) for s in after.streams), 0),
    ]
    return found


def _limit(node: LocalNode, spare: int | None) -> None:
    import psutil

    _, hard = resource.prlimit(node.pid, resource.RLIMIT_AS)
    soft = hard if spare is None else psutil.Process(node.pid).memory_info().vms + spare
    resource.prlimit(node.pid, resource.RLIMIT_AS, (soft, hard))


async def disk(lab: Lab) -> Findings:
    """The disk with the state directory fills up while a node runs, and is full when it starts."""
    await lab.revive()
    found = Findings(calm=await lab.calm(lab.work()))
    directory = lab.nodes.directory / f"node{len(lab.nodes.nodes)}" / "state"
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(small_disk(directory))
        except (OSError, subprocess.CalledProcessError) as error:
            return Findings(skipped=f"a tmpfs cannot be mounted here: {error}")
        node = lab.nodes.add("3:6")
        stack.callback(lab.nodes.nodes.remove, node)
        stack.callback(node.kill)
        await lab.ready()
        await lab.settle()
        _fill(directory / "filler")
        async with lab.load(lab.work(again=True)) as load:
            await asyncio.sleep(10.0)
            # Somebody new is seen, who cannot be remembered.
            other = next(n for n in lab.nodes.nodes if "6:8" in n.args)
            load.mark_all()
            other.kill()
            other.restart()
            await lab.ready()
            await lab.settle()
            load.stop()
        found.streams = load.streams
        running = node.alive
        said = [line for line in node.log().splitlines() if "space" in line.lower()]
        node.kill()
        node.restart()
        await until(lambda: node.is_ready() or not node.alive)
        started = node.is_ready()
        words = [line for line in node.log().splitlines() if "space" in line.lower()]
        for file in directory.iterdir():
            if file.is_file():
                file.unlink()
        if node.alive:
            node.kill()
        _fill(directory / "filler")
        node.restart()  # nothing of its own is there, and nothing can be written
        await until(lambda: node.is_ready() or not node.alive)
        found.facts = {
            "runs_on": running,
            "said": said[-1:],
            "starts_again": started,
            "said_then": words[-1:],
            "starts_without_identity": node.is_ready(),
            "exit_code": node.process.returncode,
            "said_last": node.log().splitlines()[-1:],
        }
        last = node.log()
        named = node.is_ready() or ("space" in last.lower() and "Traceback" not in last)
        found.bars = [Bar("daemons_that_died", not running, 0), Bar("ends_unnamed", not named, 0)]
    return found


@contextmanager
def small_disk(directory: Path) -> Iterator[None]:
    """Mount a small tmpfs there. Raises CalledProcessError where that is not permitted."""
    directory.mkdir(parents=True, exist_ok=True)
    mount = ("mount", "-t", "tmpfs", "-o", f"size={STATE_BYTES}", "tmpfs", str(directory))
    subprocess.run(mount, check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(("umount", "-l", str(directory)), check=False, capture_output=True)


def _fill(file: Path) -> None:
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as out:
        while True:
            out.write(b"x" * 4096)
            os.fsync(out.fileno())

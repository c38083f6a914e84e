"""Clients that vanish: two thirds with their process, a third silently, their sockets left open.

Run as a program it is one process with many clients.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time

from bench.chaos.lab import FREE_S, PROMPTS, Lab
from bench.chaos.verdict import Bar, Findings
from swarmd.client import AsyncClient
from swarmd.core.errors import SwarmdError

PROCESSES = 6
TOKENS = 400
"""So many that hardly one ends before it vanishes, and all of them have room for their KV."""
SILENT = (2, 5)
"""Of the processes; the others are killed."""


async def vanish(lab: Lab) -> Findings:
    """Clients vanish all at once: two thirds are killed, a third stops reading without a word."""
    await lab.revive()
    found = Findings(calm=await lab.calm(lab.work()))
    clients = 1000 if lab.settings.full else 100
    crowd = [_start(lab, number, clients) for number in range(PROCESSES)]
    try:
        counts = await _until_quiet(crowd)
        held, sessions = await lab.held()
        for number, process in enumerate(crowd):
            os.kill(process.pid, signal.SIGSTOP if number in SILENT else signal.SIGKILL)
        free_s, leaked = await lab.until_free(2 * FREE_S)
        # Those who come after them find everything as it was.
        async with lab.load(lab.work()) as load:
            pass
        found.streams = load.streams
    finally:
        for process in crowd:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()
    silent = sum(counts[number][0] for number in SILENT)
    found.facts = {
        "clients": clients,
        "that_had_tokens": sum(begun for begun, _ in counts),
        "silent_ones_that_had_tokens": silent,
        "refused_or_failed": sum(refused for _, refused in counts),
        "kv_bytes_before": held,
        "sessions_before": sessions,
        "all_free_s": round(free_s, 1),
    }
    found.bars = [Bar("all_free_s", free_s, FREE_S), Bar("kv_bytes_left", leaked, 0)]
    found.counted = int(silent > 0 and held > 0)
    return found


def _start(lab: Lab, number: int, clients: int) -> subprocess.Popen[str]:
    share = clients // PROCESSES + (number < clients % PROCESSES)
    command = [sys.executable, "-m", "bench.chaos.crowds", str(share), *lab.nodes.addresses]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


async def _until_quiet(crowd: list[subprocess.Popen[str]]) -> list[tuple[int, int]]:
    """Wait until every process has said how many of its clients have tokens, and how many not."""
    lines = await asyncio.gather(*(asyncio.to_thread(_line, process) for process in crowd))
    counts = [line.split() for line in lines]
    return [(int(begun), int(refused)) for begun, refused in counts]


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


# -- one process of the crowd ---------------------------------------------------------------------


async def crowd(clients: int, addresses: list[str]) -> None:
    """Begin so many requests; print how many have tokens and how many were refused, when it stays.

    Then read on until killed.
    """
    begun = refused = 0

    async def one(number: int) -> None:
        nonlocal begun, refused
        turn = number % len(addresses)
        async with AsyncClient([*addresses[turn:], *addresses[:turn]], timeout=600.0) as client:
            try:
                first = True
                prompt = PROMPTS[number % len(PROMPTS)]
                async for _ in client.generate(prompt, max_tokens=TOKENS, ignore_eos=True):
                    begun, first = begun + first, False
            except SwarmdError:
                refused += 1

    tasks = [asyncio.create_task(one(number)) for number in range(clients)]
    before, since, began = (0, 0), time.monotonic(), time.monotonic()
    while begun + refused < clients and time.monotonic() - began < 40:
        await asyncio.sleep(0.2)
        if (begun, refused) != before:
            before, since = (begun, refused), time.monotonic()
        elif time.monotonic() - since > 5.0 and begun:
            break
    print(begun, refused, flush=True)
    await asyncio.gather(*tasks)


if __name__ == "__main__":
    asyncio.run(crowd(int(sys.argv[1]), sys.argv[2:]))

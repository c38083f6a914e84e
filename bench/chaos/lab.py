"""The swarm that scenarios disturb: three spans held twice, its reference, its way back to calm.

Which fault comes when is the scenarios'.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.chaos.load import Load, Work
from bench.chaos.verdict import Calm, Stream
from swarmd.cli.demo import demo_model
from swarmd.cli.local_swarm import LocalNode, LocalSwarm
from swarmd.client import AsyncClient
from swarmd.core.errors import SwarmdError
from swarmd.core.results import SwarmStatus

SPANS = ("0:3", "6:8", "0:3", "3:6", "3:6", "6:8")
"""The first two are the doors of the others: without them each block is still held by somebody."""
READY_S = 240.0
SETTLE_S = 60.0
ROOM = 8192
"""Positions. The demo model's rotary embedding goes on beyond its 4,096 as transformers' does."""
FREE_S = 35.0
"""In which the KV of whatever has ended must be free."""
PROMPTS = (
    "def fibonacci(n):",
    "class Stack:",
    "import os\n\ndef walk(path):",
    '"""Parse the command line."""\n\nimport argparse',
    "def read_file(path):",
    "class Node:\n    def __init__(self",
    "def main() -> int:",
    "async def serve(host, port):",
)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what happens in other processes, which can only be asked."""
    while True:
        if condition():
            return
        await asyncio.sleep(0.02)


def serving(status: SwarmStatus) -> set[int]:
    """Process ids of the nodes that serve, as one of them sees it."""
    return {peer.pid for peer in status.peers if peer.state == "serving"}


def long_prompt(number: int, functions: int = 60) -> str:
    """A prompt of some 20 tokens a function, unlike those of other numbers from the start on."""
    body = (f"def function_{number}_{i}(value):\n    return value + {i}" for i in range(functions))
    return f'"""Part {number}."""\n\n' + "\n\n".join(body)


@dataclass(frozen=True, slots=True)
class Settings:
    """How scenarios are run."""

    dtype: str = "float32"
    seed: int = 1
    clients: int = 8
    tokens: int = 60
    full: bool = False
    """As long and with as many clients as the targets say."""
    runs: int | None = None
    """How often; None leaves it to the scenario."""
    silence_s: float = 20.0
    """How long a stopped or cut off node is silent."""
    patience_s: float = 20.0
    """How long it is waited for afterwards."""
    calm_rounds: int = 2
    """How often the work is run undisturbed for comparison, after once to warm up; 0: that once."""


@dataclass(slots=True)
class Lab:
    """A swarm with what is known of it."""

    nodes: LocalSwarm
    settings: Settings
    reference: dict[tuple[str, int], Sequence[int]] = field(default_factory=dict)
    """The right ids by prompt and number of tokens."""
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.settings.seed)

    # The swarm --------------------------------------------------------------------------------

    @property
    def prompts(self) -> tuple[str, ...]:
        """A prompt for each client."""
        count = self.settings.clients
        return tuple(PROMPTS[i % len(PROMPTS)] for i in range(count))

    @property
    def long_prompts(self) -> tuple[str, ...]:
        return tuple(long_prompt(i) for i in range(self.settings.clients))

    def node(self, pid: int) -> LocalNode:
        """The node with this process id."""
        return self.nodes.node_of(pid)

    def load(self, work: Work) -> Load:
        """Clients for the nodes that run now."""
        return Load(self.nodes.addresses, work)

    def work(self, **changes: Any) -> Work:
        """The usual work, with changes."""
        return dataclasses.replace(Work(self.prompts, self.settings.tokens), **changes)

    async def revive(self) -> None:
        """Start the dead again; wait until all see all, and nobody holds KV."""
        for node in self.nodes.nodes:
            if not node.alive:
                node.restart()
        await self.ready()
        await self.settle()

    async def ready(self) -> None:
        await asyncio.to_thread(self.nodes.wait_ready, READY_S)

    async def settle(self) -> None:
        """Wait until every node sees exactly those that live as serving. Raises SwarmdError."""
        deadline = time.monotonic() + SETTLE_S
        while True:
            pids = {node.pid for node in self.nodes.nodes if node.alive}
            seen = await asyncio.gather(*map(self.status, self.nodes.addresses))
            if all(one is not None and serving(one) == pids for one in seen):
                return
            if time.monotonic() > deadline:
                raise SwarmdError(f"the nodes do not see each other after {SETTLE_S:g} s")
            await asyncio.sleep(0.1)

    async def status(self, address: str) -> SwarmStatus | None:
        """What one node says of the swarm; None if it does not answer."""
        try:
            async with AsyncClient(address, timeout=10.0) as client:
                return await client.status()
        except SwarmdError:
            return None

    async def counters(self) -> dict[str, dict[str, float]]:
        """Counters of all nodes that answer, by address."""
        addresses = self.nodes.addresses
        found = await asyncio.gather(*map(self.status, addresses))
        return {a: dict(s.counters) for a, s in zip(addresses, found, strict=True) if s}

    async def held(self) -> tuple[int, int]:
        """KV bytes and sessions that all nodes together hold now."""
        found = (await self.counters()).values()
        return (
            int(sum(one.get("hop_kv_reserved_bytes", 0) for one in found)),
            int(sum(one["hop_sessions"] + one["coordinator_sessions"] for one in found if one)),
        )

    async def until_free(self, limit: float = FREE_S) -> tuple[float, int]:
        """Wait until no KV is held and no session is left: seconds that it took, and bytes left."""
        began = time.monotonic()
        while True:
            held, sessions = await self.held()
            took = time.monotonic() - began
            if not (held or sessions) or took > limit:
                return took, held
            await asyncio.sleep(0.25)

    # What is right ----------------------------------------------------------------------------

    async def calm(self, work: Work, rounds: int | None = None) -> Calm:
        """Run the work undisturbed; what comes is the reference where there is none yet."""
        streams: list[Stream] = []
        rounds = self.settings.calm_rounds if rounds is None else rounds
        for turn in range(rounds + 1):
            async with self.load(work) as load:
                load.stop()
            for stream in load.streams:
                if stream.error:
                    raise SwarmdError(f"undisturbed, and yet: {stream.error}")
                self.reference.setdefault((stream.prompt, stream.tokens), list(stream.ids))
            # The first round warms up: links are opened, and prompts computed.
            streams = [*streams, *load.streams] if turn > 1 else load.streams
        return Calm.of(streams)

    def witness(self, wanted: Sequence[tuple[str, int]]) -> None:
        """Take the reference from the whole model in one process: only in fp32 is it the same."""
        if self.settings.dtype != "float32":
            return
        new = [key for key in wanted if key not in self.reference]
        self.reference.update(zip(new, whole_model(demo_model(), new), strict=True))


def roomy_model(directory: str) -> str:
    """Write the demo model there as one that takes contexts of twice the length; return where."""
    shutil.copytree(demo_model(), directory, dirs_exist_ok=True)
    config = Path(directory) / "config.json"
    said = json.loads(config.read_text())
    config.write_text(json.dumps(said | {"max_position_embeddings": ROOM}))
    return directory


def whole_model(directory: Path, wanted: Sequence[tuple[str, int]]) -> list[list[int]]:
    """Return what `transformers.generate` says to each prompt, so many tokens, in fp32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    answers = []
    for prompt, tokens in wanted:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        out = model.generate(
            ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, eos_token_id=None
        )
        answers.append(out[0, ids.shape[1] :].tolist())
    return answers

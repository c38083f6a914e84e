"""One simulated swarm with its clients and what befalls it, all from a seed.

A run that fails does so again: `python -m swarmd.sim SEED`.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from swarmd.core.sampling import SamplingParams
from swarmd.core.span import Span
from swarmd.pipeline.hop import HopPolicy
from swarmd.pipeline.policy import DriverPolicy
from swarmd.sim.client import Client
from swarmd.sim.clientele import LEASES, PLENTY
from swarmd.sim.directory import Ledger
from swarmd.sim.invariants import BOUND, Invariants
from swarmd.sim.machine import Machine
from swarmd.sim.network import Climate, Network
from swarmd.sim.node import Process
from swarmd.sim.story import Story
from swarmd.sim.timeline import Timeline
from swarmd.toys import toy_model

WHOLE_LOGS = 1 << 30
NARROW = {"backlog_bytes": 512, "copy_peer_bytes": 256}
"""What every second swarm lets wait for links: replays and copies go piece by piece."""
STARVING = 3
"""Of four swarms the one with this remainder of its seed has nodes that starve."""
MEMORY = Path("/dev/shm")
"""Where simulated disks are, if there is such a place: a tenth of a seed's time otherwise."""
FIRST_ID = 0xA0
"""Peer ids are numbers in hexadecimal, as those of real nodes are."""
GRACE = 40.0
"""Seconds after which nothing may be left of clients that are gone."""
SERVING_IN = 60.0


class World:
    """A swarm. `run` is the whole story; tests may tell their own."""

    def __init__(self, seed: int, climate: Climate | None = None) -> None:
        draw = self.random = random.Random(seed)
        self.seed = seed
        self.timeline = Timeline()
        place = MEMORY if MEMORY.is_dir() else None
        self.place = Path(tempfile.mkdtemp(prefix="swarmd-sim-", dir=place))
        self.num_blocks = draw.randint(3, 9)
        self.model = toy_model(self.num_blocks, max_len=256)
        self.climate = climate or drawn_climate(draw)
        self.rewinds = draw.random() < 0.85
        self.chunk_exact = draw.random() < 0.5
        self.random_routes = draw.random() < 0.3
        self.whole_logs = draw.random() < 0.4
        self.kv_bytes = draw.choice([PLENTY, PLENTY, 256 * self.num_blocks])
        keeps = self.kv_bytes == PLENTY and self.rewinds and draw.random() < 0.6
        self.hop_policy = HopPolicy(
            replay_log_bytes=WHOLE_LOGS if self.whole_logs else draw.choice([1 << 14, 0]),
            prefix_unit=draw.choice([4, 8] if keeps else [0, 4, 8]),
            keep_bytes=PLENTY // 2 if keeps else 0,
            keep_limit=max(LEASES),
            **(NARROW if seed % 2 else {}),
        )
        self.starves = seed % 4 == STARVING
        """Whether machines may get too little time, and say so."""
        self.movable = draw.choice([0, 0, 0, 2, 3])
        """How many machines take the blocks that are needed most, and go to others later."""
        self.driver_policy = DriverPolicy(
            window=draw.choice([2, 8, 64]), replay_step=draw.choice([4, 256])
        )
        self.lease = 30.0
        self.loading = (0.2, 2.0)
        self.chunk_size = draw.choice([2, 4, 8, 3, 16])
        self.invariants = Invariants(self)
        self.network = Network(self.timeline, draw, self.climate)
        self.network.watch = self.invariants.watch
        self.ledger = Ledger(self.timeline, draw, self.climate.view_delay)
        self.machines: dict[str, Machine] = {}
        self.seeds: list[str] = []
        self.clients: list[Client] = []
        self.calm_at = 0.0
        """When the last fault will have healed."""
        self.doomed = False
        """Whether some blocks are lost for good."""
        self.history: Counter[str] = Counter()
        """What has happened, by its name."""

    def draw(self, limits: tuple[float, float]) -> float:
        return self.random.uniform(*limits)

    # What there is.

    def add(self, start: int, end: int, peer_id: str = "") -> Machine:
        """Add a machine, which is not started yet."""
        return self._add(Span(start, end), peer_id)

    def add_movable(self) -> Machine:
        """Add a machine that takes the blocks that are needed most, and goes to others later."""
        machine = self._add(None, "")
        machine.room = self.random.randint(1, (self.num_blocks + 1) // 2)
        machine.is_roomy = self.random.random() < 0.5
        return machine

    def _add(self, span: Span | None, peer_id: str) -> Machine:
        peer_id = peer_id or f"{FIRST_ID + len(self.machines):x}"
        machine = Machine(self, peer_id, span, self.kv_bytes)
        if self.random.random() < 0.2:
            machine.chunk_size = self.random.randint(1, 16)
        self.machines[peer_id] = machine
        return machine

    def client(
        self,
        prompt: tuple[int, ...],
        max_tokens: int,
        penalty: float = 0.0,
        kind: type[Client] = Client,
    ) -> Client:
        """Add a client, which does not begin yet."""
        number = len(self.clients) + 1
        params = SamplingParams(temperature=1.0, seed=number, presence_penalty=penalty)
        client = kind(self, number, prompt, max_tokens, params)
        self.clients.append(client)
        return client

    def processes(self) -> list[Process]:
        """Return those that live."""
        return [machine.running for machine in self.machines.values() if machine.alive]

    def loaded(self) -> list[Process]:
        """Return those that live and have loaded blocks, if only once."""
        return [process for process in self.processes() if process.loaded]

    def name_living(self) -> None:
        """Give newcomers somebody to ask, where all whom they are told of are gone."""
        living = [machine.address for machine in self.machines.values() if machine.alive]
        if not set(living) & set(self.seeds):
            self.seeds += living[:2]

    # What happens.

    def start(self) -> None:
        """Start all machines, and wait until every one knows of all."""
        self.seeds = [machine.address for machine in list(self.machines.values())[:2]]
        for index, machine in enumerate(self.machines.values()):
            machine.boot(founder=index == 0)
        self.run_until(self._all_serve, SERVING_IN)
        assert self._all_serve(), "not everybody serves"
        self._look()

    def _look(self) -> None:
        self.invariants.every_second()
        self.timeline.after(1.0, self._look)

    def _all_serve(self) -> bool:
        count = len(self.machines)
        return all(
            process.accepts and len(process.presence.view.serving(self.model.digest)) == count
            for process in self.processes()
        )

    def run_until(self, done: Callable[[], bool], seconds: float) -> bool:
        """Let things happen until something is so; return whether it came to be."""
        self.timeline.run(self.timeline.now + seconds, lambda: not done())
        return done()

    def run_for(self, seconds: float) -> None:
        self.timeline.run(self.timeline.now + seconds)

    def run(self) -> World:
        """Live through it all. Raises AssertionError where something is not as it must be."""
        state = random.getstate()
        random.seed(self.seed)  # the shells draw their jitter there
        try:
            Story(self).live()
        finally:
            random.setstate(state)
            self.close()
        return self

    def check_clients(self) -> None:
        """Wait for all clients to end, and hold each against what must be."""
        self.run_until(lambda: all(client.ended for client in self.clients), BOUND + self.calm_at)
        for client in self.clients:
            self.invariants.of_client(client)

    def check_rest(self) -> None:
        """Let grace pass; then nothing is left."""
        self.run_for(GRACE)
        for process in self.loaded():
            self.invariants.of_process(process)

    def close(self) -> None:
        """End all processes, and remove what was on disks."""
        for machine in self.machines.values():
            machine.kill()
        shutil.rmtree(self.place, ignore_errors=True)


def drawn_climate(draw: random.Random) -> Climate:
    """Return some climate: the roughest is not the best at finding faults."""
    return Climate(
        delay=(0.0005, draw.choice([0.005, 0.02, 0.1])),
        compute=(0.0005, draw.choice([0.005, 0.02])),
        notice=(0.001, draw.choice([0.08, 1.0])),
        duplicates=draw.choice([0.0, 0.1]),
        replays=draw.choice([0.0, 0.0, 0.03]),
        compute_failures=draw.choice([0.0, 0.0, 0.005]),
        view_delay=(0.01, draw.choice([0.1, 1.0, 4.0])),
    )

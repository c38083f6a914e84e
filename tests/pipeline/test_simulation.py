"""Whole swarms with seeded faults: whatever happens, the ids are those of one process.

A failing seed reproduces: `Storm(seed).run()`.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, replace

import pytest

from swarmd.core.errors import CoverageError, KVExhausted
from swarmd.core.frames import (
    Close,
    DType,
    Failed,
    Gap,
    Keep,
    Open,
    Opened,
    Payload,
    Refusal,
    Resume,
    SessionFrame,
    Step,
    Token,
)
from swarmd.core.sampling import SamplingParams
from swarmd.lossy_links import Weather
from swarmd.pipeline.events import HopAction
from swarmd.pipeline.hop import HopPolicy, HopTable
from swarmd.pipeline.hop_session import HopSession, HopState
from swarmd.pipeline.policy import DriverPolicy
from swarmd.pipeline.request import open_frames
from swarmd.simulation import Client, Swarm
from swarmd.toys import TOY_HIDDEN, toy_model, toy_oracle

SEEDS = int(os.environ.get("SWARMD_STORMS", "50"))
"""How many storms; each takes some hundredths of a second."""
BOUND = 400.0
"""Seconds of fake time in which every request must end."""
WHOLE_LOGS = 1 << 30
NARROW = {"backlog_bytes": 256, "copy_peer_bytes": 256}
"""Replays go piece by piece in every second storm."""
HAPPENS = (
    "adopted",
    "duplicates",
    "evicted_positions",
    "orphaned",
    "prefix_evicted_positions",
    "prefix_hit_positions",
    "recomputed_positions",
    "replayed_positions",
    "stale_epochs",
    "unknown_session",
    "wrong_sender",
)
"""Counters that would stay at zero in fair weather."""


@dataclass
class Stage:
    blocks: str
    peers: list[str]


class Storm:
    """One swarm, some clients, and faults at random times; at least one holder of every block."""

    def __init__(self, seed: int) -> None:
        self.random = draw = random.Random(seed)
        self.num_blocks = draw.randint(3, 9)
        self.rewinds = draw.random() < 0.85
        self.swarm = Swarm(
            toy_model(self.num_blocks, max_len=256),
            seed,
            Weather(
                delay=(0.0005, draw.choice([0.005, 0.02, 0.1])),
                compute=(0.0005, draw.choice([0.005, 0.02])),
                duplicates=draw.choice([0.0, 0.1]),
                notice=(0.001, draw.choice([0.08, 1.0])),
                compute_failures=draw.choice([0.0, 0.0, 0.005]),
            ),
            HopPolicy(
                replay_log_bytes=draw.choice([WHOLE_LOGS, 1 << 14, 0]),
                prefix_unit=draw.choice([0, 4, 8]),
                **(NARROW if seed % 2 else {}),
            ),
            DriverPolicy(
                window=draw.choice([2, 8, 64]),
                replay_step=draw.choice([4, 256]),
                open_timeout=draw.choice([1.5, 0.5]),
                repair_budget=60,
            ),
            chunk_exact=draw.random() < 0.5,
        )
        self.kv_bytes = draw.choice([1 << 20, 1 << 20, 256 * self.num_blocks])
        self.chunk_size = draw.choice([2, 4, 8, 3, 16])
        self.preamble = [draw.randrange(50_000) for _ in range(50)]
        self.stages = self._stages()
        self.coordinators = self._coordinators()
        self.clients: list[Client] = []
        for number in range(1, draw.randint(2, 8)):
            self.clients.append(self._client(number))
        self.cancelled: set[bytes] = set()
        self.joined = 0

    def _stages(self) -> list[Stage]:
        count = self.random.randint(2, min(4, self.num_blocks))
        borders = sorted(self.random.sample(range(1, self.num_blocks), count - 1))
        stages = []
        for start, end in zip([0, *borders], [*borders, self.num_blocks], strict=True):
            stages.append(Stage(f"{start}:{end}", []))
            for _ in range(2):
                self._join(stages[-1])
        return stages

    def _join(self, stage: Stage) -> str:
        """Add a node for a stage, often with more blocks than that."""
        name = f"n{len(self.swarm.nodes)}"
        start, end = map(int, stage.blocks.split(":"))
        if self.random.random() < 0.4:
            start = self.random.randint(0, start)
            end = self.random.randint(end, self.num_blocks)
        self.swarm.add(name, f"{start}:{end}", self.kv_bytes, self.rewinds)
        stage.peers.append(name)
        return name

    def _coordinators(self) -> list[str]:
        names = [f"c{index}" for index in range(3)]
        for name in names:
            self.swarm.add(name)
        self.swarm.add("mallory")
        return [*names, *self.stages[0].peers] if self.random.random() < 0.5 else names

    def _client(self, number: int) -> Client:
        draw = self.random
        prompt = tuple(draw.randrange(50_000) for _ in range(draw.randint(1, 60)))
        if draw.random() < 0.5:  # as agents do: the same beginning, then what each has to say
            prompt = (*self.preamble[: draw.randint(1, 50)], *prompt[:10])
        sampling = SamplingParams(
            temperature=1.0, seed=number, presence_penalty=draw.choice([0.0, 0.5])
        )
        if self.clients and draw.random() < 0.3:  # an agent's next turn
            prompt = (*self._whole(draw.choice(self.clients))[:120], *prompt[:8])
        max_tokens = draw.randint(10, 80)
        chunk_size = draw.choice([self.chunk_size, self.chunk_size, draw.randint(1, 16)])
        standby = int(draw.random() < 0.3)
        return self.swarm.client(number, prompt, max_tokens, sampling, chunk_size, standby)

    def _whole(self, client: Client) -> tuple[int, ...]:
        """A client's prompt and its output, as it will be."""
        request = client.request
        return (*request.prompt_ids, *self._oracle(client))

    def _oracle(self, client: Client) -> list[int]:
        request = client.request
        return toy_oracle(
            request.model,
            request.prompt_ids,
            request.sampling,
            request.max_tokens,
            request.chunk_size,
            chunk_exact=self.swarm.chunk_exact,
        )

    # Faults.

    def _kill_hop(self) -> None:
        stage, victim = self._victim()
        living = [peer for peer in stage.peers if self._alive(peer)]
        if len(living) > 1:
            self._kill(victim if victim in living else self.random.choice(living))
        elif living and self.random.random() < 0.5:
            self._kill(living[0])
            self.swarm.at(self.swarm.now + self.random.uniform(0, 15), lambda: self._come(stage))
        else:
            self._come(stage)

    def _victim(self) -> tuple[Stage, str]:
        """A hop that is at work, if there is one, and its stage."""
        at_work = [hop for c in self.clients if c.finished is None for hop in c.route]
        peer = self.random.choice(at_work).peer_id if at_work else self.stages[0].peers[0]
        return next(stage for stage in self.stages if peer in stage.peers), peer

    def _come(self, stage: Stage) -> None:
        name = self._join(stage)
        self.swarm.announce(name)

    def _alive(self, peer: str) -> bool:
        node = self.swarm.nodes[peer]
        return node.alive and not node.table.draining and node.frozen_until <= self.swarm.now

    def _kill(self, peer: str) -> None:
        node = self.swarm.nodes[peer]
        orphans = [run.client for run in node.drivers.values() if run.client.run is run]
        self.swarm.kill(peer)
        for client in orphans:
            self._forget_some(client)
            self.swarm.at(
                self.swarm.now + self.random.uniform(0, 12),
                lambda client=client: self._go_on(client),
            )

    def _forget_some(self, client: Client) -> None:
        """Tokens that were under way to the client when its coordinator died."""
        lost = self.random.choice([0, 0, 1, 3])
        if lost:
            del client.ids[-lost:]

    def _go_on(self, client: Client) -> None:
        if client.finished is None:
            client.resumes += 1
            self._start(client)

    def _free(self, client: Client) -> list[str]:
        """Coordinators that do not work for this client already."""
        nodes = (self.swarm.nodes[name] for name in self.coordinators)
        session = client.request.session
        return [node.peer_id for node in nodes if node.alive and session not in node.drivers]

    def _start(self, client: Client) -> None:
        free = self._free(client)
        if free:
            self.swarm.start(client, self.random.choice(free))
        else:
            self.swarm.at(self.swarm.now + 5, lambda: self._start(client))

    def _kill_coordinator(self) -> None:
        living = [name for name in ("c0", "c1", "c2") if self.swarm.nodes[name].alive]
        if len(living) > 1:
            self._kill(self.random.choice(living))

    def _cut_link(self) -> None:
        living = [name for name, node in self.swarm.nodes.items() if node.alive]
        self.swarm.links.cut(*self.random.sample(living, 2))

    def _freeze(self) -> None:
        living = [name for name, node in self.swarm.nodes.items() if node.alive]
        name = self.random.choice(living)
        if self.swarm.nodes[name].frozen_until > self.swarm.now:
            return
        only = any([name] == [p for p in s.peers if self._alive(p)] for s in self.stages)
        self.swarm.freeze(name, self.random.choice([0.3, 3.0] if only else [3.0, 14.0, 60.0]))

    def _desert(self) -> None:
        """A client takes its coordinator for dead, which is not, and goes on elsewhere."""
        client = self.random.choice(self.clients)
        if client.epoch and client.finished is None and self._free(client):
            self._forget_some(client)
            self._go_on(client)

    def _forge(self) -> None:
        """A stranger that knows all but the secret meddles with a session."""
        client = self.random.choice(self.clients)
        if not client.route:
            return
        request, draw = client.request, self.random
        common = (request.session, client.epoch + draw.choice([0, 0, 0, 1, 5]))
        number, position = draw.choice([0, 0, 1, 2, 9]), draw.randint(0, 80)
        rows = Payload(DType.FLOAT32, (1, TOY_HIDDEN), bytes(4 * TOY_HIDDEN))
        frames: list[SessionFrame] = [
            Step(*common, number, position, (1,), hidden=rows),
            Step(*common, number, position, (1,), token_ids=(1,)),
            Resume(*common, position),
            Close(*common),
            Keep((request.session,)),
            Token(*common, number, position, 7),
            Gap(*common, number, position),
            Failed(*common, Refusal.COMPUTE_FAILED),
            Opened(*common, kv_length=position),
        ]
        for hop in client.route:
            order = next(open_frames(request, (hop,), common[1], False, request.prompt_ids))[1]
            order = replace(order, secret=bytes(16), next_peer="", sampling=request.sampling)
            for frame in frames:
                self.swarm.links.send("mallory", hop.peer_id, frame)
            # An id that a hop does not know yet may be anybody's: its first open is not forged.
            node = self.swarm.nodes[hop.peer_id]
            if node.alive and request.session in node.table.sessions:
                node.receive("mallory", order)
        for name in self.coordinators:
            for frame in frames:
                self.swarm.links.send("mallory", name, frame)
        if client.finished is None:
            self.swarm.at(self.swarm.now + draw.uniform(0, 0.2), self._forge)

    def _leave(self) -> None:
        client = self.random.choice(self.clients)
        if client.finished is None and self.swarm.stop(client):
            self.cancelled.add(client.request.session)

    def _drain(self) -> None:
        stage = self.random.choice(self.stages)
        living = [peer for peer in stage.peers if self._alive(peer)]
        if len(living) > 1:
            self.swarm.drain(living[0])

    def run(self) -> Storm:
        """Run to the end, hold what must hold."""
        swarm, draw = self.swarm, self.random
        for client in self.clients:
            swarm.at(draw.uniform(0, 2), lambda client=client: self._start(client))
        faults = [self._kill_hop] * 5 + [self._cut_link] * 3
        faults += [self._kill_coordinator, self._freeze, self._leave, self._drain]
        faults += [self._desert, self._forge]
        for _ in range(draw.randint(4, 16)):
            swarm.at(draw.uniform(0, 5), draw.choice(faults))
        swarm.run(BOUND, lambda: any(client.finished is None for client in self.clients))
        self.check_clients()
        swarm.run(swarm.now + 1000)
        self.check_nodes()
        return self

    def check_clients(self) -> None:
        for client in self.clients:
            assert client.finished is not None, f"{client} did not end"
            request = client.request
            oracle = self._oracle(client)
            assert client.ids == oracle[: len(client.ids)], "an id differs"
            if request.session in self.cancelled:
                continue
            if client.finished.error is None:
                assert client.ids == oracle, "the output is cut short"
            else:
                new = not client.ids and not client.epoch
                assert new, f"failed though every block had a holder: {client.finished}"
                assert isinstance(client.finished.error, CoverageError | KVExhausted)

    @property
    def _logs_are_whole(self) -> bool:
        """Whether each hop's log begins where its KV does; not where a copy went on."""
        copied = any(node.table.counters.copied_positions for node in self.swarm.nodes.values())
        return self.swarm.hop_policy.replay_log_bytes >= WHOLE_LOGS and not copied

    def check_nodes(self) -> None:
        for node in self.swarm.nodes.values():
            if node.alive:
                node.drop_prefixes()
                assert not node.table.sessions, f"{node.peer_id} still has sessions"
                assert not node.account.reserved, f"{node.peer_id} still has KV reserved"
                assert node.table.budget.used == 0, f"{node.peer_id} still has a replay log"
                assert len(node.stage) == 0, f"{node.peer_id} still has KV"
                assert node.stage.units == len(node.table.prefixes) == 0, "units that nobody uses"
                assert not node.drivers
            if not self.swarm.weather.compute_failures:
                assert node.table.counters.compute_failed == 0, "outputs that fit no session"
            if self.rewinds and self._logs_are_whole:
                assert node.table.counters.gaps == 0, "a replay left something out"
        sent = self.swarm.links.activation_bytes
        for name in ("c0", "c1", "c2"):
            assert sent.get(name, 0) == 0, "activations went through a coordinator"


@pytest.mark.parametrize("seed", range(SEEDS))
def test_whatever_breaks_the_ids_are_those_of_one_process(seed: int) -> None:
    Storm(seed).run()


def test_the_storms_are_rough_enough() -> None:
    storms = [Storm(seed).run() for seed in range(50)]
    tables = [node.table.counters for storm in storms for node in storm.swarm.nodes.values()]
    clients = [client for storm in storms for client in storm.clients]
    assert sum(client.repairs for client in clients) >= 20
    assert sum(client.resumes for client in clients) >= 5
    for count in HAPPENS:
        assert sum(getattr(table, count) for table in tables) > 0, count


def test_a_rewind_that_leaves_old_work_in_place_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rewind = HopSession.rewind

    def careless(session: HopSession, position: int, keep: int) -> int:
        pending = dict(session.pending)
        gone = rewind(session, position, keep)
        session.pending = pending
        return gone

    monkeypatch.setattr(HopSession, "rewind", careless)
    assert fails_within(100)


def test_a_hop_that_sends_before_it_is_told_to_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    point = HopSession.point

    def hasty(session: HopSession, sender: str, order: Open) -> None:
        point(session, sender, order)
        session.state = HopState.FLOWING

    monkeypatch.setattr(HopSession, "point", hasty)
    assert fails_within(100)


def test_a_hop_that_listens_to_strangers_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    take = HopTable._step

    def trusting(table: HopTable, sender: str, step: Step, now: float) -> list[HopAction]:
        session = table.sessions.get(step.session)
        return take(table, session.prev_peer if session else sender, step, now)

    monkeypatch.setattr(HopTable, "_step", trusting)
    assert fails_within(100)


def fails_within(seeds: int) -> bool:
    """Whether one of so many storms shows that something is wrong."""
    try:
        for seed in range(seeds):
            Storm(seed).run()
    except AssertionError:
        return True
    return False

"""What a failover to a standby takes, counted: nothing of it grows with the context.

Times say little on a machine that is shared; positions, bytes and frames say the same everywhere.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest
from toy_streams import finish

from swarmd.core.frames import KV, Keep, SessionFrame, Step
from swarmd.core.sampling import SamplingParams
from swarmd.lossy_links import Weather
from swarmd.pipeline.hop import HopPolicy
from swarmd.simulation import Swarm
from swarmd.toys import toy_model

MODEL = toy_model(6, max_len=5000)
SPANS = ("0:2", "2:4", "4:6")
TOKENS = 70
KILL_AT = 20
SHORT, LONG = 40, 4096
SEEDS = range(3)


@dataclass
class Work:
    """What has been done since a hop was killed."""

    frames: Counter[str] = field(default_factory=Counter)
    """By kind, until the stream's next token."""
    fed: int = 0
    """Positions in steps, until then."""
    kv: list[KV] = field(default_factory=list)
    """All copies' frames, until the stream's end."""
    again: int = 0
    """Positions that were replayed or computed again, until the end."""
    positions: int = 0
    """Those that all hops and copies held when the hop was killed lie below it."""


def total(swarm: Swarm, name: str) -> int:
    return sum(getattr(node.table.counters, name) for node in swarm.nodes.values())


def again(swarm: Swarm) -> int:
    return total(swarm, "replayed_positions") + total(swarm, "recomputed_positions")


def swarm_of(seed: int, twice: tuple[int, ...], delay: float) -> Swarm:
    """Three spans, of which some are held twice."""
    policy = HopPolicy(prefix_unit=0)
    swarm = Swarm(MODEL, seed, Weather(delay=(delay, delay), notice=(0.01, 0.01)), policy)
    for number, blocks in enumerate(SPANS):
        for replica in "ab" if number in twice else "a":
            swarm.add(f"{replica}{number}", blocks)
    swarm.add("boss")
    return swarm


def failover(context: int, index: int, seed: int, twice: tuple[int, ...] = ()) -> Work:
    """Kill a hop with a standby when copies are whole; return what followed from that."""
    swarm = swarm_of(seed, twice or (index,), 0.005)
    prompt, sampling = tuple(range(context)), SamplingParams(repetition_penalty=1.5)
    client = swarm.client(1, prompt, TOKENS, sampling, chunk_size=64, standby=1)
    swarm.start(client, "boss")
    swarm.run(600.0, while_true=lambda: len(client.ids) < KILL_AT or lags(swarm))
    assert len(client.standbys) == len(twice or (index,))
    assert len(client.ids) < TOKENS - 20
    before, work = again(swarm), Work(positions=context + len(client.ids) - 1)
    next_token = len(client.ids) + 1
    send = swarm.links.send

    def count(src: str, dst: str, frame: SessionFrame) -> None:
        if isinstance(frame, KV):
            work.kv.append(frame)
        if len(client.ids) < next_token and not isinstance(frame, Keep):
            work.frames[type(frame).__name__] += 1
            work.fed += frame.length if isinstance(frame, Step) else 0
        send(src, dst, frame)

    swarm.links.send = count  # type: ignore[method-assign]
    swarm.kill(client.route[index].peer_id)
    finish(swarm, client)
    assert client.repairs == 1
    assert total(swarm, "taken_over") == 1
    work.again = again(swarm) - before
    return work


def lags(swarm: Swarm) -> bool:
    return any(node.table.copies.lag for node in swarm.nodes.values())


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_long_context_fails_over_with_as_little_work_as_a_short_one(
    index: int, seed: int
) -> None:
    """Each hop takes a position that was under way, and computes the newest one or two again."""
    hops = len(SPANS)
    short, long = (failover(context, index, seed) for context in (SHORT, LONG))
    assert long.positions > 50 * short.positions
    for work in (short, long):
        assert work.fed <= 2 * hops, "positions sent to hops until the next token"
        assert work.again <= 2 * hops, "positions replayed or computed again"
        assert work.frames["Open"] == work.frames["Opened"] == work.frames["Resume"] == hops
        assert work.frames.total() <= 6 * hops
    assert long.frames.total() <= short.frames.total() + hops, "by what was under way at most"


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("context", [SHORT, LONG])
def test_no_byte_of_kv_is_sent_after_the_kill(context: int, index: int) -> None:
    """No other hop has a copy here, and the one that goes on has all that it needs."""
    assert failover(context, index, 1).kv == []


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("context", [SHORT, LONG])
def test_the_copies_of_other_hops_go_on_with_what_is_new(context: int, index: int) -> None:
    work = failover(context, index, 1, twice=(0, 1, 2))
    assert work.kv, "they do go on"
    assert min(kv.position for kv in work.kv) >= work.positions, "nothing old is sent again"
    new = context + TOKENS - 1 - work.positions
    assert sum(kv.length for kv in work.kv) <= 2 * new, "once for each hop that has a copy yet"

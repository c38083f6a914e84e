"""Random swarms like those that people would make, to route sessions through."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from swarm_peers import NOW, peer

from swarmd.core.peers import Announcement
from swarmd.swarm.health import Fault, Health
from swarmd.swarm.terms import RouteRequest

POSITIONS = 4096
"""That fit an idle peer of `crowded`."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What the peers of a swarm have in common."""

    cities: list[tuple[float, float]]
    lengths: list[int]
    aligned: bool
    """Whether spans begin at multiples of their length."""
    speeds: float
    """How many times as fast as the slowest machine the fastest one is."""


def kind_of(draw: random.Random, num_blocks: int) -> Kind:
    lengths = [[4, 6, 8, 11, 16], [2, 3, 4], [num_blocks // 4], [8, 16, num_blocks]]
    count = draw.choice([1, 3, 6, 20])
    return Kind(
        cities=[(draw.uniform(-120, 120), draw.uniform(-120, 120)) for _ in range(count)],
        lengths=draw.choice([*lengths, list(range(2, num_blocks // 2))]),
        aligned=draw.random() < 0.3,
        speeds=draw.choice([1.5, 4.0, 20.0]),
    )


def swarm_of(count: int, num_blocks: int, seed: int) -> list[Announcement]:
    """Return peers in some cities, that differ in span, speed and load; every block is served."""
    draw = random.Random(seed)
    kind = kind_of(draw, num_blocks)
    peers, held = [], 0
    for number in range(count):
        length = draw.choice(kind.lengths)
        start = draw.randrange(num_blocks + 1 - length)
        if kind.aligned:
            start -= start % length
        if held < num_blocks:
            start = min(held, num_blocks - length)
            held = start + length
        x, y = draw.choice(kind.cities)
        peers.append(
            peer(
                number,
                start,
                start + length,
                num_blocks,
                coordinate=(x + draw.gauss(0, 8), y + draw.gauss(0, 8), 0.1 + draw.random() * 4),
                step_ms=length * draw.uniform(0.8, 1.2) * kind.speeds ** draw.random(),
                sessions=draw.choice([0, 0, 1, 2, 3, 8, 16]),
                precision=draw.choice(["bfloat16", "bfloat16", "float16"]),
            )
        )
    return peers


def crowded(peers: list[Announcement], seed: int) -> list[Announcement]:
    """Return the peers with little KV left, and often none."""
    draw = random.Random(seed)
    return [
        replace(
            one,
            kv_bytes_per_token=1_000 * len(one.span),
            kv_total_bytes=POSITIONS * 1_000 * len(one.span),
            kv_free_bytes=int(max(0.0, draw.uniform(-0.5, 0.6)) * POSITIONS * 1_000)
            * len(one.span),
        )
        for one in peers
    ]


def request_for(peers: list[Announcement], seed: int) -> tuple[RouteRequest, Health]:
    """Return a request that some peers may not serve, and what is held against others."""
    draw = random.Random(seed)
    ids = [one.peer_id for one in peers]
    health = Health()
    for peer_id in draw.sample(ids, len(ids) // 20):
        health.report(peer_id, draw.choice(list(Fault)), NOW)
    request = RouteRequest(
        positions=draw.choice([0, 256, 1024]),
        exclude=frozenset(draw.sample(ids, len(ids) // 50)),
        prefer=frozenset(draw.sample(ids, draw.choice([0, 0, 2]))),
        same_precision=draw.choice(["", "", "bfloat16"]),
    )
    return request, health

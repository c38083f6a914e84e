"""Who comes to a simulated swarm, and with what: prompts that begin alike, next turns and forks.

What a client does with its calls is `client.Client`'s.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from swarmd.sim.client import Client, Kept
from swarmd.sim.liar import Liar

if TYPE_CHECKING:
    from swarmd.sim.world import World

PLENTY = 1 << 20
"""Bytes of KV that are room for everybody."""
LEASES = (3.0, 10.0, 25.0)
"""Seconds for which sessions are kept."""
MOST_PAST = 160
"""Tokens of a kept session that a next turn begins with."""


class Clientele:
    """Draws the clients of one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._draw = world.random
        self._preamble = [self._draw.randrange(50_000) for _ in range(50)]

    def newcomer(self, most: int = 80) -> Client:
        """Somebody new, who asks for so many tokens at most."""
        draw, clients = self._draw, self._world.clients
        prompt = [draw.randrange(50_000) for _ in range(draw.randint(1, 60))]
        if draw.random() < 0.5:  # as agents do: the same beginning, then what each has to say
            prompt = [*self._preamble[: draw.randint(1, 50)], *prompt[:10]]
        if clients and draw.random() < 0.3:  # an agent's next turn
            other = draw.choice(clients)
            prompt = [*other.prompt_ids, *other.expected][:120] + prompt[:8]
        return self._client(tuple(prompt), draw.randint(10, most))

    def next_turns(self) -> list[Client]:
        """Those who go on from a session that may be kept: one, or several forks; or nobody."""
        kept = [client.kept for client in self._world.clients if client.kept is not None]
        if not kept:
            return []
        chosen = self._draw.choice(kept)
        return [self._next_turn(chosen) for _ in range(self._draw.randint(1, 3))]

    def liars(self) -> list[Liar]:
        """Those who are served, and may begin to lie."""
        clients = self._world.clients
        return [c for c in clients if isinstance(c, Liar) and c.begun and not c.ended]

    def pretence(self) -> tuple[int, ...]:
        """A prompt that others may have, too."""
        return self._draw.choice(self._world.clients).prompt_ids

    def impostor(self) -> Liar | None:
        """Who goes on from a kept session at another node, and says that it had other ids."""
        kept = [client.kept for client in self._world.clients if client.kept is not None]
        if not kept:
            return None
        draw, world, chosen = self._draw, self._world, self._draw.choice(kept)
        count = draw.randint(1, min(MOST_PAST, len(chosen.ids)))
        past = (*self.pretence(), *chosen.ids)[:count]
        says = tuple(draw.randrange(50_000) for _ in range(draw.randint(1, 20)))
        client = world.client((*past, *says), draw.randint(5, 20), kind=Liar)
        assert isinstance(client, Liar)
        elsewhere = draw.choice([peer for peer in world.machines if peer != chosen.peer_id])
        client.past, client.lie = replace(chosen, ids=past, peer_id=elsewhere), client.prompt_ids
        return client

    def _next_turn(self, kept: Kept) -> Client:
        draw, most = self._draw, min(MOST_PAST, len(kept.ids))
        past = kept.first(draw.choice([most, draw.randint(1, most)]))
        says = [draw.randrange(50_000) for _ in range(draw.randint(1, 8))]
        client = self._client((*past.ids, *says), draw.randint(5, 40))
        client.past = past
        client.brings_past = draw.random() < 0.5
        return client

    def _client(self, prompt: tuple[int, ...], max_tokens: int) -> Client:
        draw, world = self._draw, self._world
        kind = Liar if draw.random() < 0.15 else Client
        client = world.client(prompt, max_tokens, draw.choice([0.0, 0.5]), kind)
        client.priority = draw.choice([0, 0, 1])
        if world.kv_bytes == PLENTY:  # copies take room, for which others would wait
            client.standby = draw.choice([0, 0, 1])
        if world.hop_policy.keep_bytes and draw.random() < 0.4:
            client.keep_s = draw.choice(LEASES)
        return client

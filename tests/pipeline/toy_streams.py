"""What streams of the simulated swarm of toys have to come to."""

from __future__ import annotations

from swarmd.simulation import Client, Swarm
from swarmd.toys import toy_oracle


def finish(swarm: Swarm, *clients: Client, seconds: float = 2000.0) -> None:
    """Run until these streams have ended, as they should: with the ids of one machine alone."""
    swarm.run(swarm.now + seconds, lambda: any(client.finished is None for client in clients))
    for client in clients:
        request = client.request
        assert client.finished is not None
        assert client.finished.error is None
        assert client.ids == toy_oracle(
            request.model,
            request.prompt_ids,
            request.sampling,
            request.max_tokens,
            request.chunk_size,
        )

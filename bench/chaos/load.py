"""Clients at work: so many greedy requests at once through the client library, every token timed.

What is done to the swarm meanwhile is the scenarios'.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from bench.chaos.verdict import Stream
from swarmd.client import AsyncClient
from swarmd.client.generation import Generation
from swarmd.core.errors import SwarmdError

TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Work:
    """What each client asks for."""

    prompts: Sequence[str]
    """One per client."""
    tokens: int
    allow_redirect: bool = True
    again: bool = False
    """Whether a client whose request has ended begins another one, until `stop`."""
    shared: bool = True
    """Whether prompts that are known may be taken from the prefix cache."""
    standby: int | None = None
    """Copies of each hop's KV that other nodes hold."""


class Load:
    """A context manager: clients begin when it is entered, and are gone when it is left."""

    def __init__(self, addresses: Sequence[str], work: Work) -> None:
        self.streams: list[Stream] = []
        self._addresses = tuple(addresses)
        self._work = work
        self._current: dict[int, tuple[Stream, Generation]] = {}
        self._news = asyncio.Condition()
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [
            asyncio.create_task(self._client(number, prompt))
            for number, prompt in enumerate(self._work.prompts)
        ]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            for task in self._tasks:
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=error is not None)

    async def over(self) -> None:
        """Wait until every client has ended."""
        await asyncio.gather(*self._tasks)

    def stop(self) -> None:
        """No new requests from now on."""
        self._stopping = True

    async def all_have(self, tokens: int, clients: Sequence[int] | None = None) -> bool:
        """Wait until each client (or each of `clients`) has so many tokens of its request.

        Returns False when one of them ended before.
        """
        wanted = range(len(self._work.prompts)) if clients is None else clients

        def ready() -> bool:
            return self._ended() or all(
                client in self._current and len(self._current[client][0].ids) >= tokens
                for client in wanted
            )

        async with self._news:
            await self._news.wait_for(ready)
        return all(client in self._current for client in wanted)

    async def began(self, requests: int) -> None:
        """Wait until so many requests have their first token, or all have ended."""
        async with self._news:
            await self._news.wait_for(
                lambda: self._ended() or sum(bool(s.ids) for s in self.streams) >= requests
            )

    async def routed(self, client: int) -> Generation:
        """Wait until a client's request has a route, and return the generation."""
        while True:
            if client in self._current and self._current[client][1].route:
                return self._current[client][1]
            if self._ended():
                raise SwarmdError(f"client {client} ended without a route")
            await asyncio.sleep(0.002)

    @property
    def running(self) -> int:
        """Requests that run now."""
        return len(self._current)

    def generation(self, client: int) -> Generation:
        """The request that a client has running. Raises KeyError when there is none."""
        return self._current[client][1]

    def stream(self, client: int) -> Stream:
        """What the client has seen of its present request."""
        return self._current[client][0]

    def mark(self, pid: int) -> list[Stream]:
        """Note which running requests this process works for, at the moment when it is hit."""
        now, hit = time.monotonic(), []
        for stream, generation in self._current.values():
            coordinator = generation.coordinator
            pids = {hop.pid for hop in generation.route}
            if pid in pids or (coordinator is not None and coordinator.pid == pid):
                stream.hit_at = stream.hit_at or now
                hit.append(stream)
        return hit

    def mark_all(self) -> None:
        """Note that whatever runs now is hit."""
        for stream, _ in self._current.values():
            stream.hit_at = stream.hit_at or time.monotonic()

    def _ended(self) -> bool:
        return bool(self._tasks) and all(task.done() for task in self._tasks)

    async def _client(self, number: int, prompt: str) -> None:
        turn = number % len(self._addresses)
        addresses = [*self._addresses[turn:], *self._addresses[:turn]]
        async with AsyncClient(addresses, timeout=TIMEOUT_S) as client:
            while True:
                await self._request(client, number, prompt)
                if not self._work.again or self._stopping:
                    break
        async with self._news:
            self._news.notify_all()

    async def _request(self, client: AsyncClient, number: int, prompt: str) -> None:
        tokens = self._work.tokens
        salt = "" if self._work.shared else secrets.token_hex(8)
        generation = client.generate(
            prompt,
            max_tokens=tokens,
            ignore_eos=True,
            temperature=0.0,
            cache_salt=salt,
            allow_redirect=self._work.allow_redirect,
            standby=self._work.standby,
        )
        stream = Stream(number, prompt, tokens, time.monotonic())
        self.streams.append(stream)
        self._current[number] = stream, generation
        try:
            async for token in generation:
                if token.id >= 0:
                    stream.ids.append(token.id)
                    stream.times.append(time.monotonic())
                    stream.route = tuple(hop.pid for hop in generation.route)
                async with self._news:
                    self._news.notify_all()
            stream.recomputed = generation.result.recomputed_tokens
            stream.done = True
        except SwarmdError as error:
            stream.error = f"{type(error).__name__}: {error}"
        finally:
            stream.repairs, stream.resumes = generation.repairs, generation.resumes
            del self._current[number]
            await generation.aclose()

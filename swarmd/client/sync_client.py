"""The client for programs without an event loop: the same surface, each call waits for its end.

It only drives an `AsyncClient` on a loop in a thread of its own.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from swarmd.client.async_client import DEFAULT_NODE, AsyncClient
from swarmd.client.generation import Generation
from swarmd.client.request import GenerateArguments, Prompt
from swarmd.client.resume import ResumePolicy
from swarmd.core.errors import UsageError
from swarmd.core.results import (
    Completion,
    Coordinator,
    KeptSession,
    RouteHop,
    SwarmStatus,
    TokenOutput,
)

T = TypeVar("T")


class _LoopThread:
    """An event loop in a daemon thread, stopped when its owner is gone."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="swarmd-client", daemon=True
        )
        self._thread.start()

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end; an interrupt here cancels it there."""
        if self._loop.is_closed():
            coroutine.close()
            raise UsageError("this client is closed; make a new one")
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise UsageError("swarmd.Client was called from its own loop; use AsyncClient there")
        finished: Future[asyncio.Task[T]] = Future()
        tasks: list[asyncio.Task[T]] = []

        def begin() -> None:
            if not tasks:
                tasks.append(self._loop.create_task(coroutine))
                tasks[0].add_done_callback(finished.set_result)

        def cancel() -> None:
            begin()  # an interrupt may have come before or after it was scheduled
            tasks[0].cancel()

        try:
            self._loop.call_soon_threadsafe(begin)
            task = finished.result()
        except BaseException:
            # Until it has really ended, nobody could close what it works on.
            self._loop.call_soon_threadsafe(cancel)
            task = finished.result()
            _ = task.cancelled() or task.exception()  # seen: asyncio need not warn of it
            raise
        return task.result()

    def stop(self) -> None:
        if self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()


class SyncGeneration:
    """Iterator of `TokenOutput`; what `Generation` is, without an event loop."""

    def __init__(
        self, generation: Generation, wait: Callable[[Coroutine[Any, Any, Any]], Any]
    ) -> None:
        self._generation = generation
        self._wait = wait

    @property
    def route(self) -> tuple[RouteHop, ...]:
        """The hops that compute now; empty before the first token."""
        return self._generation.route

    @property
    def coordinator(self) -> Coordinator | None:
        """The node that drives the session now; None before the first token."""
        return self._generation.coordinator

    @property
    def session(self) -> str:
        """Session id in hex; empty before the first token."""
        return self._generation.session

    @property
    def text(self) -> str:
        """All text so far."""
        return self._generation.text

    @property
    def repairs(self) -> int:
        """How often a hop was replaced so far."""
        return self._generation.repairs

    @property
    def resumes(self) -> int:
        """How often this client went on at another coordinator so far."""
        return self._generation.resumes

    @property
    def result(self) -> Completion:
        """The whole. Raises UsageError before the end."""
        return self._generation.result

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> TokenOutput:
        token: TokenOutput | None = self._wait(self._next())
        if token is None:
            raise StopIteration
        return token

    async def _next(self) -> TokenOutput | None:
        # StopAsyncIteration would not survive the future between the threads.
        return await anext(self._generation, None)

    def close(self) -> None:
        """End the call; without effect after the last token."""
        self._wait(self._generation.aclose())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Client:
    """A swarm, reached through one or several of its nodes; see `AsyncClient`.

    May be used from several threads. Use it with `with`, or call `close`.
    """

    def __init__(
        self,
        nodes: str | Sequence[str] = DEFAULT_NODE,
        *,
        timeout: float | None = None,
        connect_timeout: float = 5.0,
        resume: ResumePolicy | None = None,
    ) -> None:
        self._client = AsyncClient(
            nodes, timeout=timeout, connect_timeout=connect_timeout, resume=resume
        )
        self._thread = _LoopThread()
        self._stop = weakref.finalize(self, self._thread.stop)

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes as given."""
        return self._client.nodes

    def generate(self, prompt: Prompt, **arguments: Unpack[GenerateArguments]) -> SyncGeneration:
        """Return the tokens that follow a prompt, as they come; see `AsyncClient.generate`."""
        return SyncGeneration(self._client.generate(prompt, **arguments), self._thread.wait)

    def complete(self, prompt: Prompt, **arguments: Unpack[GenerateArguments]) -> Completion:
        """Generate to the end and return the whole; arguments as for `generate`."""
        return self._thread.wait(self._client.complete(prompt, **arguments))

    def chat(
        self, messages: Sequence[Mapping[str, str]], **arguments: Unpack[GenerateArguments]
    ) -> Completion:
        """Answer a conversation with the model's own chat template; arguments as for `generate`."""
        return self._thread.wait(self._client.chat(messages, **arguments))

    def status(self, *, microbatches: bool = False, timeout: float | None = None) -> SwarmStatus:
        """Return the swarm as the first node that answers sees it.

        With `microbatches` also the latest ones that this node has computed.
        """
        return self._thread.wait(self._client.status(microbatches=microbatches, timeout=timeout))

    def tokenize(
        self,
        prompt: str | Sequence[Mapping[str, str]],
        *,
        model: str = "",
        add_special_tokens: bool = True,
        timeout: float | None = None,
    ) -> list[int]:
        """Return the token ids of text, or of messages in the model's chat template."""
        return self._thread.wait(
            self._client.tokenize(
                prompt, model=model, add_special_tokens=add_special_tokens, timeout=timeout
            )
        )

    def detokenize(
        self, ids: Sequence[int], *, model: str = "", timeout: float | None = None
    ) -> str:
        """Return the text of token ids."""
        return self._thread.wait(self._client.detokenize(ids, model=model, timeout=timeout))

    def release(self, kept: KeptSession | str, *, timeout: float | None = None) -> None:
        """End the lease of a kept session; see `AsyncClient.release`."""
        self._thread.wait(self._client.release(kept, timeout=timeout))

    def drain(self, force: bool = False, *, timeout: float | None = None) -> int:
        """Ask the node to finish its sessions and exit; see `AsyncClient.drain`."""
        return self._thread.wait(self._client.drain(force, timeout=timeout))

    def close(self) -> None:
        """Close all connections; generations that still run are cancelled."""
        if self._stop.alive:
            self._thread.wait(self._client.close())
            self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

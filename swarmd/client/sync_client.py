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
    """An event loop in a daemon thread; its end is the end of all that runs there."""

    def __init__(self, farewell: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """`farewell` is the last that is done there, before what still runs is cancelled."""
        self._farewell = farewell
        self._loop = asyncio.new_event_loop()
        self._stopped = False
        # Taken again by who is interrupted while holding it, and stops the loop then.
        self._lock = threading.RLock()
        self._thread = threading.Thread(target=self._run, name="swarmd-client", daemon=True)
        self._thread.start()

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end; an interrupt here cancels it there.

        Raises UsageError if the loop is stopped, be it in the middle of this.
        """
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
            self._schedule(begin)
            task = finished.result()
        except BaseException:
            # Until it has really ended, nobody could close what it works on.
            try:
                self._schedule(cancel)
                finished.result()
            except UsageError:  # the loop ends, and with it what had begun
                self._thread.join()
            for task in tasks:
                _ = task.cancelled() or task.exception()  # seen: asyncio need not warn of it
            coroutine.close()  # without effect if it has begun
            raise
        if task.cancelled():
            raise UsageError("the client was closed while a call ran")
        return task.result()

    def stop(self) -> None:
        """End the loop and all that runs there; may be called from any thread, and again."""
        with self._lock:
            if not self._stopped:
                self._stopped = True
                self._loop.call_soon_threadsafe(self._loop.stop)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _schedule(self, step: Callable[[], None]) -> None:
        """Have a step done in the loop; what comes before `stop` is done before the end."""
        with self._lock:
            if self._stopped:
                raise UsageError("this client is closed; make a new one")
            self._loop.call_soon_threadsafe(step)

    def _run(self) -> None:
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(self._end())
        finally:
            self._loop.close()

    async def _end(self) -> None:
        try:
            await self._farewell()
        finally:
            while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            await self._loop.shutdown_asyncgens()


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
        self._thread = _LoopThread(self._client.close)
        self._stop = weakref.finalize(self, self._thread.stop)

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes as given."""
        return self._client.nodes

    def generate(self, prompt: Prompt, **arguments: Unpack[GenerateArguments]) -> SyncGeneration:
        """Return the tokens that follow a prompt, as they come; see `AsyncClient.generate`."""
        return SyncGeneration(self._client.generate(prompt, **arguments), self._wait)

    def complete(self, prompt: Prompt, **arguments: Unpack[GenerateArguments]) -> Completion:
        """Generate to the end and return the whole; arguments as for `generate`."""
        return self._wait(self._client.complete(prompt, **arguments))

    def chat(
        self, messages: Sequence[Mapping[str, str]], **arguments: Unpack[GenerateArguments]
    ) -> Completion:
        """Answer a conversation with the model's own chat template; arguments as for `generate`."""
        return self._wait(self._client.chat(messages, **arguments))

    def status(self, *, microbatches: bool = False, timeout: float | None = None) -> SwarmStatus:
        """Return the swarm as the first node that answers sees it.

        With `microbatches` also the latest ones that this node has computed.
        """
        return self._wait(self._client.status(microbatches=microbatches, timeout=timeout))

    def tokenize(
        self,
        prompt: str | Sequence[Mapping[str, str]],
        *,
        model: str = "",
        add_special_tokens: bool = True,
        timeout: float | None = None,
    ) -> list[int]:
        """Return the token ids of text, or of messages in the model's chat template."""
        return self._wait(
            self._client.tokenize(
                prompt, model=model, add_special_tokens=add_special_tokens, timeout=timeout
            )
        )

    def detokenize(
        self, ids: Sequence[int], *, model: str = "", timeout: float | None = None
    ) -> str:
        """Return the text of token ids."""
        return self._wait(self._client.detokenize(ids, model=model, timeout=timeout))

    def release(self, kept: KeptSession | str, *, timeout: float | None = None) -> None:
        """End the lease of a kept session; see `AsyncClient.release`."""
        self._wait(self._client.release(kept, timeout=timeout))

    def drain(self, force: bool = False, *, timeout: float | None = None) -> int:
        """Ask the node to finish its sessions and exit; see `AsyncClient.drain`."""
        return self._wait(self._client.drain(force, timeout=timeout))

    def close(self) -> None:
        """Close all connections; what still runs or waits in other threads ends with UsageError."""
        self._thread.stop()
        self._stop.detach()

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        # Generations hold this, and by it the client: it lasts as long as they do.
        return self._thread.wait(coroutine)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

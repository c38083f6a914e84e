"""One generation as an iterator of tokens: finds a node, follows a redirect, resumes after a loss.

What has been received is `progress`'s; whether and where to go on is decided by `resume`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable
from types import TracebackType
from typing import Any, Self, TypeAlias

import grpc

from swarmd.client.asking import ask_each
from swarmd.client.nodes import Reach
from swarmd.client.progress import Progress
from swarmd.client.resume import (
    another_node_may_do,
    candidates,
    dialable,
    loading_wait,
    resumable,
)
from swarmd.core.errors import (
    DeadlineExceeded,
    PeerUnreachable,
    ProtocolError,
    SwarmdError,
    UnknownModel,
    UsageError,
)
from swarmd.core.results import Completion, Coordinator, RouteHop, TokenOutput
from swarmd.v1 import inference_pb2 as pb
from swarmd.wire.status import error_from_rpc, is_silence

_Call: TypeAlias = grpc.aio.UnaryStreamCall

_AT_THE_END_S = 0.5
"""So close to its end, a call that ran out of time ran out of this client's."""


class Generation:
    """Async iterator of `TokenOutput`: each token exactly once. The call begins with the first.

    After the last token `result` is the whole. Leaving early (`aclose`, or dropping it) cancels the
    call, which frees the session everywhere. Raises the errors of `swarmd.core.errors` only.
    """

    def __init__(
        self,
        reach: Reach,
        request: pb.GenerateRequest,
        timeout_s: float,
        on_started: Callable[[str], None] = lambda address: None,
        first: str = "",
    ) -> None:
        """`first` is the node to ask before all others."""
        self._first = first
        self._reach = reach
        self._on_started = on_started
        self._request = request
        self._timeout_s = timeout_s
        self._progress = Progress()
        self._tokens = self._drive()
        self._reader: asyncio.Task[Any] | None = None
        """Who waits for a token now."""
        self._closed_by: set[asyncio.Future[None]] = set()
        """Others that have closed this meanwhile, and wait for the reader to be gone."""
        self._began = 0.0
        self._asked = 0.0
        """Since when the caller waits for a token."""
        self._max_stall_s = 0.0
        self._attempts = 0
        self._broke = 0.0
        self._at = ""
        self._silent = False
        """Whether the coordinator was lost without a word."""

    # -- what the caller sees --------------------------------------------------------------------

    @property
    def route(self) -> tuple[RouteHop, ...]:
        """The hops that compute now; empty before the first token."""
        return self._progress.route

    @property
    def coordinator(self) -> Coordinator | None:
        """The node that drives the session now; None before the first token."""
        return self._progress.coordinator

    @property
    def session(self) -> str:
        """Session id in hex; empty before the first token."""
        return self._progress.started.session.hex() if self._progress.started else ""

    @property
    def text(self) -> str:
        """All text so far."""
        return self._progress.text

    @property
    def repairs(self) -> int:
        """How often a hop was replaced so far."""
        return self._progress.repairs

    @property
    def resumes(self) -> int:
        """How often this client went on at another coordinator so far."""
        return self._progress.resumes

    @property
    def result(self) -> Completion:
        """The whole. Raises UsageError before the end."""
        return self._progress.completion(self._began, self._max_stall_s)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TokenOutput:
        asked = self._asked = time.monotonic()
        self._began = self._began or asked
        token = await self._next()
        now = time.monotonic()
        if token.id >= 0:
            if self._progress.times:
                self._max_stall_s = max(self._max_stall_s, now - asked)
            self._progress.times.append(now)
        return token

    async def _next(self) -> TokenOutput:
        if self._reader is not None:
            raise UsageError("another task waits for this generation's next token: one can only")
        self._reader = asyncio.current_task()
        try:
            token = await anext(self._tokens)
        except asyncio.CancelledError:
            if not self._left():
                raise
            raise StopAsyncIteration from None
        except BaseException:
            self._left()
            raise
        if self._left():
            raise StopAsyncIteration
        return token

    def _left(self) -> bool:
        """Let go of the reader; return whether others have closed this, and nothing else did."""
        reader, self._reader = self._reader, None
        closed_by, self._closed_by = self._closed_by, set()
        for gone in closed_by:
            gone.set_result(None)
        return bool(closed_by) and reader is not None and reader.uncancel() == 0

    async def aclose(self) -> None:
        """End the call; without effect after the last token.

        If another task waits for a token meanwhile, its iteration ends.
        """
        while self._reader is not None:
            gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            if not self._closed_by:
                self._reader.cancel()
            self._closed_by.add(gone)
            await asyncio.wait((gone,))
        await self._tokens.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    # -- how it comes about ----------------------------------------------------------------------

    async def _drive(self) -> AsyncGenerator[TokenOutput, None]:
        call = await self._begin()
        try:
            while not self._progress.finished:
                try:
                    output = self._progress.accept(await self._read(call))
                except SwarmdError as error:
                    call.cancel()
                    self._silent = is_silence(error.__cause__)
                    call = await self._resume(error)
                    continue
                if output is not None:
                    self._attempts = 0
                    yield output
        finally:
            call.cancel()

    async def _begin(self) -> _Call:
        """Return the call of the first node that begins; a refusal with a reason is final."""
        until = self._began + self._timeout_s
        return await ask_each(self._nodes, self._begin_at, until, self._reach.nodes.pause)

    def _nodes(self) -> list[str]:
        given = self._reach.nodes.order(self._reach.given)
        if not dialable(self._first):
            return given
        return [self._first, *(address for address in given if address != self._first)]

    async def _begin_at(self, address: str) -> _Call:
        call, event = await self._open(address, self._request, self._reach.connect_timeout_s)
        if event.WhichOneof("event") != "redirect":
            return self._started(call, event, address)
        call.cancel()
        staying = pb.GenerateRequest()
        staying.CopyFrom(self._request)
        staying.allow_redirect = False
        staying.model = event.redirect.model_digest or staying.model
        call, event, at = await self._redirected(event.redirect.address, address, staying)
        return self._started(call, event, at)

    async def _redirected(
        self, target: str, back: str, request: pb.GenerateRequest
    ) -> tuple[_Call, pb.GenerateEvent, str]:
        """Go to the target; if that fails, back to the node that named it."""
        limit = self._reach.connect_timeout_s
        if not (self._request.allow_redirect and dialable(target)):
            raise ProtocolError(f"{back} sent us on to {target[:80]!r}, which we cannot follow")
        try:
            return *await self._open(target, request, limit), target
        except SwarmdError as error:
            if not another_node_may_do(error):
                raise
        return *await self._open(back, request, limit), back

    def _started(self, call: _Call, event: pb.GenerateEvent, address: str) -> _Call:
        if event.WhichOneof("event") != "started":
            call.cancel()
            raise ProtocolError(f"{address} answered with {event.WhichOneof('event')} first")
        try:
            self._progress.begin(event.started)
        except SwarmdError:
            call.cancel()
            raise
        self._at = address
        self._on_started(address)
        return call

    async def _resume(self, error: SwarmdError) -> _Call:
        """Return the call of a node that goes on. Raises the last error when none does in time."""
        policy, passes = self._reach.policy, 0
        if not resumable(error):
            raise error
        if self._attempts == 0:
            self._broke = time.monotonic()
        while True:
            refusals: list[SwarmdError] = []
            for address in self._candidates():
                if not policy.allows(self._attempts, time.monotonic() - self._broke):
                    raise self._given_up(error)
                self._attempts += 1
                try:
                    return await self._resume_at(address)
                except SwarmdError as refused:
                    # Of all the known nodes, one may serve something else by now.
                    if not (resumable(refused) or isinstance(refused, UnknownModel)):
                        raise
                    error = refused
                    refusals.append(refused)
            passes += 1
            self._silent = False  # rather it was this client that nobody could hear
            wait = policy.delay(passes, random.random())
            if (loading := loading_wait(refusals, random.random())) is not None:
                # It is there, and will serve: only the timeout of the call bounds this.
                wait, self._attempts, self._broke = max(wait, loading), 0, time.monotonic()
            await self._reach.nodes.pause(min(wait, self._remaining()))

    async def _resume_at(self, address: str) -> _Call:
        waited_s = time.monotonic() - self._asked
        request = self._progress.resumption(self._request, silent=self._silent, waited_s=waited_s)
        timeout_s = self._reach.policy.connect_timeout_s
        call, event = await self._open(address, request, timeout_s)
        return self._started(call, event, address)

    def _candidates(self) -> tuple[str, ...]:
        route = [hop.address for hop in self._progress.route]
        return candidates(self._reach.given, route, self._reach.known, self._at)

    def _given_up(self, error: SwarmdError) -> SwarmdError:
        error.add_note(
            f"after {len(self._progress.ids)} tokens, and {self._attempts} attempts to go on"
        )
        return error

    def _remaining(self) -> float:
        left = self._began + self._timeout_s - time.monotonic()
        if left <= 0:
            raise self._out_of_time()
        return left

    def _out_of_time(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"{len(self._progress.ids)} tokens came within the timeout of {self._timeout_s:g} s; "
            "ask for fewer, or give more time"
        )

    async def _open(
        self, address: str, request: pb.GenerateRequest, connect_timeout_s: float
    ) -> tuple[_Call, pb.GenerateEvent]:
        """Call a node and return the call with its first event."""
        limit = min(connect_timeout_s, self._remaining())
        try:
            call: _Call = await self._reach.nodes.call(
                address, limit, lambda stub: stub.Generate(request, timeout=self._remaining())
            )
        except PeerUnreachable:
            self._remaining()  # it may be our own time that was too short
            raise
        try:
            return call, await self._read(call, address)
        except BaseException:
            call.cancel()
            raise

    async def _read(self, call: _Call, address: str = "") -> pb.GenerateEvent:
        try:
            with self._reach.nodes.closing_typed():
                event = await call.read()
        except (grpc.RpcError, asyncio.InvalidStateError) as error:
            failure = error_from_rpc(error, address or self._at)
            # Nodes have deadlines of their own, and say which.
            over = self._began + self._timeout_s - time.monotonic() <= _AT_THE_END_S
            late = over and isinstance(failure, DeadlineExceeded)
            raise (self._out_of_time() if late else failure) from error
        if not isinstance(event, pb.GenerateEvent):
            raise PeerUnreachable(f"{address or self._at} ended the stream before its end")
        return event

"""The client for programs with an event loop: one object per swarm, any number of calls at once.

A generation's own course is `swarmd.client.generation`'s.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import fields
from types import TracebackType
from typing import Any, Self, Unpack

import grpc

from swarmd.client import values
from swarmd.client.asking import ask_each
from swarmd.client.generation import Generation
from swarmd.client.nodes import Nodes, Reach
from swarmd.client.request import (
    GenerateArguments,
    GenerateOptions,
    Prompt,
    generate_request,
    kept_session,
    release_request,
    tokenize_request,
)
from swarmd.client.resume import ResumePolicy
from swarmd.core import options
from swarmd.core.config import GRPC_PORT
from swarmd.core.errors import ConfigError, RequestError, SwarmdError
from swarmd.core.results import Completion, KeptSession, SwarmStatus
from swarmd.v1 import inference_pb2 as pb
from swarmd.v1.inference_pb2_grpc import InferenceStub
from swarmd.wire.status import error_from_rpc

DEFAULT_NODE = f"127.0.0.1:{GRPC_PORT}"
CALL_TIMEOUT_S = 10.0
"""For calls that are answered at once, unless the client has its own timeout."""
GENERATE_TIMEOUT_S = 3600.0
LEARN_EVERY_S = 30.0

logger = logging.getLogger("swarmd.client")


class AsyncClient:
    """A swarm, reached through one or several of its nodes.

    `nodes` are `HOST:PORT`, one or several (a list, or with commas); any of them serves the whole
    model, and when one does not answer the next is asked. `timeout` in seconds bounds every call
    that does not bring its own. Use it with `async with`, or call `close`.
    """

    def __init__(
        self,
        nodes: str | Sequence[str] = DEFAULT_NODE,
        *,
        timeout: float | None = None,
        connect_timeout: float = 5.0,
        resume: ResumePolicy | None = None,
    ) -> None:
        given = options.addresses(GRPC_PORT)(nodes) if nodes else ()
        assert isinstance(given, tuple)
        if not given:
            raise ConfigError("no node given; name at least one HOST:PORT")
        self._timeout = _positive("timeout", timeout) if timeout is not None else None
        self._nodes = Nodes()
        self._reach = Reach(
            self._nodes,
            given,
            resume or ResumePolicy(),
            _positive("connect_timeout", connect_timeout),
        )
        self._learnt = float("-inf")
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes as given."""
        return self._reach.given

    def generate(self, prompt: Prompt, **arguments: Unpack[GenerateArguments]) -> Generation:
        """Return the tokens that follow a prompt, as they come.

        `prompt` is text, token ids, or chat messages (`{"role": ..., "content": ...}`). Arguments:
        model, max_tokens, temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty,
        frequency_penalty, logit_bias, seed, stop, stop_token_ids, include_stop, ignore_eos,
        top_logprobs, ids_only, cache_salt, priority, keep_alive, continue_from, recompute, standby,
        client (see `GenerateOptions`), timeout, allow_redirect. Raises RequestError at once for
        values that no node would accept; all else while iterating.
        """
        rest: dict[str, Any] = dict(arguments)
        limit = _first(rest.pop("timeout", None), self._timeout, GENERATE_TIMEOUT_S)
        allow_redirect = rest.pop("allow_redirect", True)
        _refuse_unknown(rest)
        request = generate_request(prompt, GenerateOptions(**rest))
        request.allow_redirect = allow_redirect
        first = kept_session(past).address if (past := rest.get("continue_from")) else ""
        return Generation(self._reach, request, _positive("timeout", limit), self._learn, first)

    async def complete(self, prompt: Prompt, **arguments: Unpack[GenerateArguments]) -> Completion:
        """Generate to the end and return the whole; arguments as for `generate`."""
        async with self.generate(prompt, **arguments) as tokens:
            async for _ in tokens:
                pass
            return tokens.result

    async def chat(
        self, messages: Sequence[Mapping[str, str]], **arguments: Unpack[GenerateArguments]
    ) -> Completion:
        """Answer a conversation with the model's own chat template; arguments as for `generate`."""
        if isinstance(messages, str) or not all(isinstance(m, Mapping) for m in messages):
            raise RequestError('chat takes messages: [{"role": "user", "content": TEXT}, ...]')
        return await self.complete(messages, **arguments)

    async def status(
        self, *, microbatches: bool = False, timeout: float | None = None
    ) -> SwarmStatus:
        """Return the swarm as the first node that answers sees it.

        With `microbatches` also the latest ones that this node has computed.
        """
        request = pb.StatusRequest(microbatches=microbatches)
        reply = await self._ask(lambda stub, t: stub.Status(request, timeout=t), timeout)
        return values.swarm_status(reply)

    async def tokenize(
        self,
        prompt: str | Sequence[Mapping[str, str]],
        *,
        model: str = "",
        add_special_tokens: bool = True,
        timeout: float | None = None,
    ) -> list[int]:
        """Return the token ids of text, or of messages in the model's chat template."""
        request = tokenize_request(prompt, model, add_special_tokens)
        reply = await self._ask(lambda stub, t: stub.Tokenize(request, timeout=t), timeout)
        return list(reply.ids)

    async def detokenize(
        self, ids: Sequence[int], *, model: str = "", timeout: float | None = None
    ) -> str:
        """Return the text of token ids."""
        request = tokenize_request(ids, model, False)
        reply = await self._ask(lambda stub, t: stub.Tokenize(request, timeout=t), timeout)
        return str(reply.text)

    async def release(self, kept: KeptSession | str, *, timeout: float | None = None) -> None:
        """End the lease of a kept session, so that others can have the room on all its hops.

        Who goes on from it already is not affected. Raises LeaseEnded if it is kept no longer.
        """
        kept = kept_session(kept)
        request = release_request(kept)
        limit = _positive("timeout", _first(timeout, self._timeout, CALL_TIMEOUT_S))
        await self._ask_one(kept.address, lambda stub, t: stub.Release(request, timeout=t), limit)

    async def drain(self, force: bool = False, *, timeout: float | None = None) -> int:
        """Ask the node to finish its sessions and exit; return how many were running.

        Only for a client with a single node: this is not something to try elsewhere. Without
        `force` the last holder of some blocks refuses.
        """
        if len(self.nodes) != 1:
            raise RequestError(f"drain goes to one node; this client has {len(self.nodes)}")
        request = pb.DrainRequest(force=force)
        reply = await self._ask(lambda stub, t: stub.Drain(request, timeout=t), timeout)
        return int(reply.sessions)

    async def close(self) -> None:
        """Close all connections; what still runs or waits in other tasks ends with UsageError."""
        await self._nodes.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _ask(
        self, call: Callable[[InferenceStub, float], Awaitable[Any]], timeout: float | None
    ) -> Any:
        """Call the first node that answers; each has the whole timeout."""
        limit = _positive("timeout", _first(timeout, self._timeout, CALL_TIMEOUT_S))
        return await ask_each(
            lambda: self._nodes.order(self.nodes),
            lambda address: self._ask_one(address, call, limit),
            time.monotonic() + limit,
            self._nodes.pause,
        )

    async def _ask_one(
        self, address: str, call: Callable[[InferenceStub, float], Awaitable[Any]], limit: float
    ) -> Any:
        patience = min(limit, self._reach.connect_timeout_s)
        begun = await self._nodes.call(address, patience, lambda stub: call(stub, limit))
        try:
            with self._nodes.closing_typed():
                return await begun
        except grpc.RpcError as error:
            raise error_from_rpc(error, address) from error

    def _learn(self, address: str) -> None:
        now = time.monotonic()
        if now - self._learnt < LEARN_EVERY_S:
            return
        self._learnt = now
        task = asyncio.create_task(self._learn_from(address), name="swarmd-client-learn")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _learn_from(self, address: str) -> None:
        """Remember who serves, in case that the nodes given and those of a route all go."""
        try:
            reply = await self._ask_one(
                address, lambda stub, t: stub.Status(pb.StatusRequest(), timeout=t), CALL_TIMEOUT_S
            )
        except SwarmdError as error:
            logger.debug("status for failover failed address=%s error=%s", address, error)
            return
        serving = [peer.address for peer in reply.peers if peer.state == "serving"]
        self._reach.known = tuple(serving[:256])


def _first(asked: float | None, usual: float | None, default: float) -> float:
    """The first that is given; 0 counts as given."""
    return next((value for value in (asked, usual) if value is not None), default)


def _positive(name: str, value: float) -> float:
    if not 0 < value < float("inf"):
        raise RequestError(f"{name} must be a positive number of seconds, not {value}")
    return float(value)


def _refuse_unknown(given: Mapping[str, object]) -> None:
    known = [option.name for option in fields(GenerateOptions)]
    for name in given:
        if name not in known:
            raise RequestError(f"unknown option {name!r}{options.did_you_mean(name, known)}")

"""A node as a client sees one: a real gRPC server whose `Inference` answers as a test tells it to.

Its tokens depend on their index alone, so that whoever resumes can be checked against the whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from swarmd.client import Generation, SyncGeneration
from swarmd.v1 import inference_pb2 as pb
from swarmd.v1.inference_pb2_grpc import InferenceServicer, add_InferenceServicer_to_server
from swarmd.wire.channel import new_server
from swarmd.wire.status import abort

SESSION, SECRET = bytes(range(16)), bytes(range(16, 32))
PROMPT_IDS = (7, 8, 9)
DIGEST = "d1" * 32


def token_id(index: int) -> int:
    return 100 + index


def token_text(index: int) -> str:
    return f"w{index} "


def whole(count: int) -> tuple[tuple[int, ...], str]:
    """The ids and the text of an undisturbed generation."""
    return tuple(map(token_id, range(count))), "".join(map(token_text, range(count)))


def token(index: int) -> pb.GenerateEvent:
    generated = pb.Generated(index=index, id=token_id(index), text=token_text(index), logprob=-0.5)
    generated.top.add(id=token_id(index), logprob=-0.5, text=token_text(index))
    return pb.GenerateEvent(token=generated)


def finished(count: int, **fields: Any) -> pb.GenerateEvent:
    fields = {"reason": pb.FINISH_REASON_LENGTH, "output_tokens": count} | fields
    return pb.GenerateEvent(finished=pb.Finished(prompt_tokens=len(PROMPT_IDS), **fields))


def redirect(address: str) -> pb.GenerateEvent:
    target = pb.Redirect(address=address, peer_id="b" * 40, model_digest=DIGEST)
    return pb.GenerateEvent(redirect=target)


@dataclass
class ScriptedNode(InferenceServicer):
    """Records what it is asked. `script(node, request, context)` replaces what it does."""

    address: str = ""
    script: Callable[[ScriptedNode, pb.GenerateRequest, Any], AsyncIterator[Any]] | None = None
    break_after: int | None = None
    """Tokens after which the stream ends without a reason, as when the node dies."""
    fails_with: BaseException | None = None
    route: list[pb.Hop] = field(default_factory=list)
    peers: list[pb.PeerStatus] = field(default_factory=list)
    other_models: list[pb.ModelStatus] = field(default_factory=list)
    requests: list[pb.GenerateRequest] = field(default_factory=list)
    status_answers: int | None = None
    """How many times `Status` answers before the node is gone."""
    status_asked: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    drained: list[bool] = field(default_factory=list)

    def started(self, request: pb.GenerateRequest) -> pb.GenerateEvent:
        started = pb.Started(
            session=SESSION,
            secret=SECRET,
            epoch=request.resume.epoch + 1,
            model="toy" if request.model in ("", DIGEST) else request.model,
            model_digest=DIGEST,
            prompt_ids=PROMPT_IDS,
            sampling=request.sampling,
            max_tokens=request.max_tokens or 1024,
            chunk_size=256,
            route=self.route or [pb.Hop(peer_id="a" * 40, address=self.address, end=8, pid=11)],
            coordinator="a" * 40,
            coordinator_address=self.address,
            coordinator_pid=11,
        )
        if not started.sampling.HasField("seed"):
            started.sampling.seed = 4242
        return pb.GenerateEvent(started=started)

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncIterator[Any]:
        self.requests.append(request)
        if self.fails_with is not None:
            await abort(context, self.fails_with)
        try:
            async for event in (self.script or ScriptedNode.answer)(self, request, context):
                yield event
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise

    async def answer(self, request: pb.GenerateRequest, context: Any) -> AsyncIterator[Any]:
        yield self.started(request)
        for sent, index in enumerate(range(len(request.resume.output_ids), request.max_tokens)):
            if sent == self.break_after:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the node died")
            yield token(index)
        yield finished(request.max_tokens)

    async def Status(self, request: pb.StatusRequest, context: Any) -> pb.StatusReply:
        if self.fails_with is not None:
            await abort(context, self.fails_with)
        if self.status_answers == 0:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        if self.status_answers is not None:
            self.status_answers -= 1
        self.status_asked.set()
        model = pb.ModelStatus(name="toy", digest=DIGEST, num_blocks=8, covered_blocks=4)
        model.missing.add(start=4, end=8)
        models = [model, *self.other_models]
        return pb.StatusReply(
            peer_id="a" * 40, peers=self.peers, models=models, counters={"tokens": 3.0}
        )

    async def Tokenize(self, request: pb.TokenizeRequest, context: Any) -> pb.TokenizeReply:
        if request.HasField("token_ids"):
            return pb.TokenizeReply(text="".join(map(chr, request.token_ids.ids)))
        text = request.text or "".join(m.role + m.content for m in request.chat.messages)
        return pb.TokenizeReply(ids=[*([1] if request.add_special_tokens else []), *map(ord, text)])

    async def Drain(self, request: pb.DrainRequest, context: Any) -> pb.DrainReply:
        self.drained.append(request.force)
        return pb.DrainReply(sessions=2)


@asynccontextmanager
async def serving(*nodes: ScriptedNode) -> AsyncIterator[None]:
    """Serve each node on a port of its own while the context lasts."""
    servers = []
    for node in nodes:
        server = new_server()
        add_InferenceServicer_to_server(node, server)
        node.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        servers.append(server)
    try:
        yield
    finally:
        for server in servers:
            await server.stop(None)


class Wire:
    """A TCP relay to a node that can be cut, as by a `kill -9`, or fall silent."""

    def __init__(self, node: ScriptedNode) -> None:
        self._node = node
        self._writers: list[asyncio.StreamWriter] = []
        self._silent = False
        self._server: asyncio.Server | None = None
        self.address = ""

    async def __aenter__(self) -> Wire:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cut()

    def cut(self) -> None:
        """Reset every connection and answer no more."""
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    def silence(self) -> None:
        """Carry nothing any more, without a word: what a partition or a SIGSTOP looks like."""
        self._silent = True

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self._node.address.split(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        self._writers += [writer, far_writer]
        await asyncio.gather(
            self._pump(reader, far_writer), self._pump(far_reader, writer), return_exceptions=True
        )

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if self._silent:
                continue
            writer.write(data)
            await writer.drain()
        writer.close()


async def reads(stream: Generation | SyncGeneration) -> None:
    """Wait until whoever reads this has its first text."""
    while not stream.text:  # noqa: ASYNC110  nobody tells
        await asyncio.sleep(0.01)

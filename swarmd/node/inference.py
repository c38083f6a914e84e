"""The door for clients: the `Inference` service of one node.

Reads requests, sends clients on to a better node, turns what happens to a session into the events of
its stream. Sessions are run by `swarmd.node.coordinator`.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

import grpc

from swarmd.core.errors import RequestError, SwarmdError, UnknownModel
from swarmd.core.route import Route
from swarmd.node import requests
from swarmd.node.coordinator import Coordinator, Run
from swarmd.node.output import OutputText
from swarmd.node.presence import Presence
from swarmd.node.prompts import Prompts
from swarmd.node.requests import Generation
from swarmd.node.status import StatusReport
from swarmd.pipeline import events as ev
from swarmd.v1 import inference_pb2 as pb
from swarmd.v1 import inference_pb2_grpc
from swarmd.wire import frames
from swarmd.wire.status import abort

log = logging.getLogger(__name__)

_REASONS = {"stop": pb.FINISH_REASON_STOP, "length": pb.FINISH_REASON_LENGTH}

Context = grpc.aio.ServicerContext


class InferenceService(inference_pb2_grpc.InferenceServicer):
    """Serves clients on one node."""

    def __init__(
        self,
        coordinator: Coordinator,
        presence: Presence,
        prompts: Prompts,
        report: StatusReport,
    ) -> None:
        self._coordinator = coordinator
        self._presence = presence
        self._prompts = prompts
        self._report = report

    async def Generate(
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[pb.GenerateEvent]:
        """One generation; see the proto for what the stream carries."""
        try:
            redirect = self._redirect(request)
            if redirect is not None:
                yield redirect
                return
            prompt_ids = await self._prompts.ids_of(request)
            generation = requests.parse(request, self._presence.model, lambda: prompt_ids)
            async with aclosing(self._stream(generation)) as stream:
                async for event in stream:
                    yield event
        except SwarmdError as error:
            log.info("generation refused error=%s", error)
            await abort(context, error)

    def _redirect(self, request: pb.GenerateRequest) -> pb.GenerateEvent | None:
        """Where the client should go instead, if it would: the first hop, or the model's nodes."""
        presence = self._presence
        if request.model and not presence.serves(request.model):
            target = presence.first_peer_of(request.model)
            if target is None or not request.allow_redirect:
                known = ", ".join(presence.model_names()) or "none"
                raise UnknownModel(f"nobody here serves {request.model!r}; models: {known}")
        elif not request.allow_redirect or presence.holds_first_block:
            return None
        else:
            target = presence.first_hop()
        if target is None or target.peer_id == presence.peer_id:
            return None
        return pb.GenerateEvent(
            redirect=pb.Redirect(address=target.address, peer_id=target.peer_id)
        )

    async def _stream(self, generation: Generation) -> AsyncIterator[pb.GenerateEvent]:
        text = self._output_text(generation)
        resume = generation.resume
        index = len(resume.output_ids) if resume else 0
        # What a resumed client lacks of the text of ids that it has goes out with the next token.
        owed = text.catch_up(resume.output_ids, resume.text_chars).text if resume else ""
        begun = False
        with self._coordinator.run(generation) as run:
            async for output in run:
                if isinstance(output, ev.Routed):
                    yield self._routed(generation, run, output, first=not begun)
                    begun = True
                elif isinstance(output, ev.Emit):
                    piece = text.push(output.id)
                    yield self._token(index, output, owed + piece.text)
                    owed, index = "", index + 1
                    if piece.stop is not None:
                        yield _finished(generation, run, index, "stop", piece.stop, "")
                        return
                elif output.error is not None:
                    raise output.error
                else:
                    last = text.finish()
                    reason = "stop" if last.stop is not None else output.reason
                    rest = owed + last.text
                    yield _finished(generation, run, index, reason, last.stop or "", rest)

    def _output_text(self, generation: Generation) -> OutputText:
        tokenizer = None if generation.ids_only else self._prompts.tokenizer
        if generation.stop and tokenizer is None:
            raise RequestError("stop strings need text: they cannot be used with ids only")
        return OutputText(
            tokenizer,
            generation.prompt_ids,
            generation.stop,
            include_stop=generation.include_stop,
        )

    def _routed(
        self, generation: Generation, run: Run, output: ev.Routed, *, first: bool
    ) -> pb.GenerateEvent:
        route = _hops(output.route)
        if not first:
            changed = pb.RouteChanged(epoch=output.epoch, route=route, repairs=run.repairs)
            return pb.GenerateEvent(route_changed=changed)
        own = self._presence.own
        return pb.GenerateEvent(
            started=pb.Started(
                session=generation.session,
                secret=generation.secret,
                epoch=output.epoch,
                model=own.model.name,
                prompt_ids=generation.prompt_ids,
                sampling=frames.sampling_to_pb(generation.sampling),
                max_tokens=generation.max_tokens,
                chunk_size=run.chunk_size,
                route=route,
                coordinator=own.peer_id,
                coordinator_address=own.address,
                coordinator_pid=own.pid,
            )
        )

    def _token(self, index: int, output: ev.Emit, text: str) -> pb.GenerateEvent:
        top = [
            pb.TopLogprob(id=i, logprob=p, text=self._prompts.text_of((i,)))
            for i, p in output.top
        ]
        return pb.GenerateEvent(
            token=pb.Generated(
                index=index, id=output.id, text=text, logprob=output.logprob, top=top
            )
        )

    async def Status(self, request: pb.StatusRequest, context: Context) -> pb.StatusReply:
        """The swarm as this node sees it."""
        return self._report.reply()

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeReply:
        """Text or a chat to ids, or ids to text."""
        try:
            return await self._prompts.tokenize(request)
        except SwarmdError as error:
            return await abort(context, error)

    async def Drain(self, request: pb.DrainRequest, context: Context) -> pb.DrainReply:
        """Finish and leave."""
        try:
            return pb.DrainReply(sessions=self._report.drain(force=request.force))
        except SwarmdError as error:
            return await abort(context, error)


def _hops(route: Route) -> Sequence[pb.Hop]:
    return [
        pb.Hop(
            peer_id=hop.peer_id,
            address=hop.address,
            start=hop.blocks.start,
            end=hop.blocks.end,
            pid=hop.pid,
        )
        for hop in route
    ]


def _finished(
    generation: Generation, run: Run, count: int, reason: str, stop: str, text: str
) -> pb.GenerateEvent:
    return pb.GenerateEvent(
        finished=pb.Finished(
            reason=_REASONS.get(reason, pb.FINISH_REASON_UNSPECIFIED),
            text=text,
            stop=stop,
            prompt_tokens=len(generation.prompt_ids),
            output_tokens=count,
            repairs=run.repairs,
            recomputed_tokens=run.recomputed,
        )
    )

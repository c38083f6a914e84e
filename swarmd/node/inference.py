"""The door for clients: the `Inference` service of one node.

Reads requests, sends clients on to a better node, turns what happens to a session into the events
of its stream. Sessions are run by `swarmd.node.coordinator`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc

from swarmd.core.errors import (
    CapacityError,
    CoverageError,
    PeerUnreachable,
    QueueFull,
    RequestError,
    SwarmdError,
    UnknownModel,
)
from swarmd.core.peers import Announcement, ModelInfo
from swarmd.core.prefix import first_key
from swarmd.core.route import Hop, Route
from swarmd.node import requests, served_names
from swarmd.node.coordinator import Coordinator
from swarmd.node.dismissal import Dismissal
from swarmd.node.gate import Gate
from swarmd.node.kept import Kept
from swarmd.node.output import OutputText, Piece
from swarmd.node.presence import Presence
from swarmd.node.prompts import Prompts
from swarmd.node.requests import Generation
from swarmd.node.routes import Routes
from swarmd.node.run import Run
from swarmd.node.status import StatusReport, swarm_report
from swarmd.node.tenants import tenant_of
from swarmd.node.warming import Warming
from swarmd.pipeline import events as ev
from swarmd.v1 import inference_pb2 as pb
from swarmd.v1 import inference_pb2_grpc
from swarmd.wire import sampling
from swarmd.wire.status import abort

log = logging.getLogger(__name__)

_REASONS = {"stop": pb.FINISH_REASON_STOP, "length": pb.FINISH_REASON_LENGTH}

MAX_TOKENIZING = 64
"""Calls of `Tokenize` at once."""

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class Parts:
    """What serves clients once the model is loaded."""

    announcement: Callable[[], Announcement]
    coordinator: Coordinator
    routes: Routes
    prompts: Prompts
    report: StatusReport
    accepts: Callable[[], bool]
    """Whether new generations may begin; False while draining."""
    serves: Callable[[], bool]
    """Whether its own blocks take new sessions; False also while it moves to others."""
    dismissal: Dismissal
    standby: int = 0
    """Copies of each hop's KV for requests that do not say."""
    shares: bool = False
    """Whether prompts that begin alike are computed once, if they meet."""


class InferenceService(inference_pb2_grpc.InferenceServicer):
    """Serves clients on one node; until `parts` is set, it is loading: see `Warming`."""

    def __init__(self, presence: Presence, warming: Warming) -> None:
        self.parts: Parts | None = None
        self._presence = presence
        self._warming = warming
        self._tokenizing = Gate("texts are tokenized", MAX_TOKENIZING)

    def _loaded(self) -> Parts:
        if self.parts is None:
            raise self._warming.refusal()
        return self.parts

    async def Generate(
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncGenerator[pb.GenerateEvent]:
        """One generation; see the proto for what the stream carries."""
        try:
            if self.parts is None and (redirect := self._while_loading(request)):
                yield redirect
                return
            parts = self._loaded()
            past = _past(parts, request)
            stays = past is not None and bool(past.route)
            prompt_ids = None if stays else await self._early_ids(parts, request)
            redirect = None if stays else self._redirect(parts, request, prompt_ids or ())
            if redirect is not None:
                yield redirect
                return
            _check_accepts(parts)
            if prompt_ids is None:
                with parts.coordinator.place():  # before any work is done for the prompt
                    prompt_ids = await parts.prompts.ids_of(request)
                _check_accepts(parts)  # a drain that began meanwhile has not seen this one
            model, tenant = parts.announcement().model, tenant_of(request.client, context.peer())
            generation = requests.parse(request, model, prompt_ids, past, tenant, parts.standby)
            async with aclosing(_Stream(parts, generation).events()) as events:
                async for event in events:
                    yield event
        except SwarmdError as error:
            log.info("generation failed error=%s", error)
            await abort(context, error)

    def _while_loading(self, request: pb.GenerateRequest) -> pb.GenerateEvent | None:
        found = self._warming.elsewhere(request.model) if request.allow_redirect else None
        return _redirect_to(*found) if found else None

    async def _early_ids(self, parts: Parts, request: pb.GenerateRequest) -> Sequence[int] | None:
        """The prompt's ids, if the way to go depends on them; None otherwise."""
        own = parts.announcement()
        mine = self._model_of(request.model, own).digest == own.model.digest
        if not (mine and request.allow_redirect and parts.shares and parts.routes.has_choice):
            return None
        try:
            with parts.coordinator.place():
                return await parts.prompts.ids_of(request)
        except QueueFull:
            return None  # whoever stays is told; others are sent on without

    def _redirect(
        self, parts: Parts, request: pb.GenerateRequest, prompt_ids: Sequence[int]
    ) -> pb.GenerateEvent | None:
        """Where the client should go instead, if it would: the first hop, or the model's nodes.

        Prompts that begin alike go to the same first hop, if there are several.
        """
        own = parts.announcement()
        model = self._model_of(request.model, own)
        if model.digest == own.model.digest:
            key = first_key(prompt_ids, model.digest, request.cache_salt.encode())
            home = parts.routes.home(key) if key and request.allow_redirect else None
            here = own.span.start == 0 and parts.serves()
            here = here and not (own.starves and parts.routes.has_well_first_hop)
            if not request.allow_redirect or (here and home is None):
                return None
            try:
                target = home or parts.routes.first_hop()
            except (CoverageError, CapacityError):
                return None  # the session's own errors say it with more detail
            return None if target.peer_id == own.peer_id else _redirect_to(target, model)
        others = self._presence.view.serving(model.digest)
        if not others or not request.allow_redirect:
            raise _not_served(own, request.model, others)
        return _redirect_to(min(others, key=_nearness), model)

    def _model_of(self, asked: str, own: Announcement) -> ModelInfo:
        """The model that a request means. Raises UnknownModel."""
        if served_names.means(asked, own.model):
            return own.model
        return served_names.find(self._presence.view, asked)

    async def Status(self, request: pb.StatusRequest, context: Context) -> pb.StatusReply:
        """The swarm as this node sees it, having looked."""
        await self._presence.look_again()
        if self.parts is None:
            return swarm_report(self._presence)
        return self.parts.report.reply(microbatches=request.microbatches)

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeReply:
        """Text or a chat to ids, or ids to text, by this node's own model."""
        try:
            parts = self._loaded()
            own = parts.announcement()
            model = self._model_of(request.model, own)
            if model.digest != own.model.digest:
                others = self._presence.view.serving(model.digest)
                raise _not_served(own, request.model, others)
            if request.HasField("token_ids"):
                requests.check_ids(request.token_ids.ids, own.model, "token")
            with self._tokenizing.enter():
                return await parts.prompts.tokenize(request)
        except SwarmdError as error:
            return await abort(context, error)

    async def Drain(self, request: pb.DrainRequest, context: Context) -> pb.DrainReply:
        """Finish and leave; a node that is loading just leaves."""
        if self.parts is None:
            self._warming.stop()
            return pb.DrainReply()
        try:
            parts = self._loaded()
            await parts.dismissal.ask(force=request.force)
            return pb.DrainReply(sessions=parts.report.sessions)
        except SwarmdError as error:
            return await abort(context, error)

    async def Release(self, request: pb.ReleaseRequest, context: Context) -> pb.ReleaseReply:
        """End a lease early."""
        try:
            self._loaded().coordinator.release(request.session, request.secret)
            return pb.ReleaseReply()
        except SwarmdError as error:
            return await abort(context, error)


class _Stream:
    """One generation's events, made of what happens to its session."""

    def __init__(self, parts: Parts, generation: Generation) -> None:
        self._parts = parts
        self._generation = generation
        self._text = self._output_text(generation)

    async def events(self) -> AsyncGenerator[pb.GenerateEvent]:
        """Run the generation. Raises SwarmdError when it fails."""
        generation, text = self._generation, self._text
        resume = generation.resume
        index = len(resume.output_ids) if resume else 0
        # What a resumed client lacks of the text of ids that it has goes out with the next token.
        lack = text.catch_up(resume.output_ids, resume.text_chars) if resume else Piece()
        owed, begun = lack.text, False
        with self._parts.coordinator.run(generation) as run:
            if lack.stop is not None:
                # It had stopped already; only the news of it was lost.
                yield self._started(run, ev.Routed((), run.driver.epoch))
                yield self._finished(run, index, "stop", lack.stop, owed)
                return
            async for output in run:
                if isinstance(output, ev.Routed):
                    yield self._routed(run, output) if begun else self._started(run, output)
                    begun = True
                elif isinstance(output, ev.Emit):
                    piece = text.push(output.id)
                    yield self._token(index, output, owed + piece.text)
                    owed, index = "", index + 1
                    if piece.stop is not None:
                        self._parts.coordinator.stop(run, "stop", index)
                        yield self._finished(run, index, "stop", piece.stop, "")
                        return
                elif output.error is not None:
                    raise output.error
                else:
                    if not begun:
                        yield self._started(run, ev.Routed((), run.driver.epoch))
                    last = text.finish()
                    reason = "stop" if last.stop is not None else output.reason
                    rest = owed + last.text
                    yield self._finished(run, index, reason, last.stop or "", rest)

    def _output_text(self, generation: Generation) -> OutputText:
        tokenizer = None if generation.ids_only else self._parts.prompts.tokenizer
        if generation.stop and tokenizer is None:
            raise RequestError("stop strings need text: they cannot be used with ids only")
        return OutputText(
            tokenizer,
            generation.prompt_ids,
            generation.stop,
            include_stop=generation.include_stop,
        )

    def _routed(self, run: Run, output: ev.Routed) -> pb.GenerateEvent:
        changed = pb.RouteChanged(
            epoch=output.epoch,
            route=_hops(output.route),
            repairs=run.repairs,
            standbys=_hops(output.standbys),
            precision_changes=run.driver.precision_changes,
            recomputed_tokens=run.recomputed,
        )
        return pb.GenerateEvent(route_changed=changed)

    def _started(self, run: Run, output: ev.Routed) -> pb.GenerateEvent:
        generation, own = self._generation, self._parts.announcement()
        return pb.GenerateEvent(
            started=pb.Started(
                session=generation.session,
                secret=generation.secret,
                epoch=output.epoch,
                model=own.model.name,
                model_digest=own.model.digest,
                prompt_ids=generation.prompt_ids,
                sampling=sampling.sampling_to_pb(generation.sampling),
                max_tokens=generation.max_tokens,
                chunk_size=run.chunk_size,
                route=_hops(output.route),
                standbys=_hops(output.standbys),
                coordinator=own.peer_id,
                coordinator_address=own.address,
                coordinator_pid=own.pid,
                borders=generation.borders,
                recomputed_tokens=run.recomputed,
            )
        )

    def _finished(
        self, run: Run, count: int, reason: str, stop: str, text: str
    ) -> pb.GenerateEvent:
        kept = self._parts.coordinator.kept.get(run.session)
        return pb.GenerateEvent(
            finished=pb.Finished(
                reason=_REASONS.get(reason, pb.FINISH_REASON_UNSPECIFIED),
                text=text,
                stop=stop,
                prompt_tokens=len(self._generation.prompt_ids),
                output_tokens=count,
                repairs=run.repairs,
                recomputed_tokens=run.recomputed,
                cached_tokens=run.cached,
                precision_changes=run.driver.precision_changes,
                kept=self._kept(kept) if kept else None,
            )
        )

    def _kept(self, kept: Kept) -> pb.Kept:
        return pb.Kept(
            session=kept.session,
            secret=kept.secret,
            tokens=len(kept.ids),
            lease_s=kept.lease_s,
            address=self._parts.announcement().address,
        )

    def _token(self, index: int, output: ev.Emit, text: str) -> pb.GenerateEvent:
        event = pb.GenerateEvent()
        token = event.token  # filled in place: given to a constructor, it would be copied
        token.index, token.id, token.logprob = index, output.id, output.logprob
        if text:
            token.text = text
        for i, p in output.top:
            token.top.add(id=i, logprob=p, text=self._parts.prompts.text_of((i,)))
        return event


def _past(parts: Parts, request: pb.GenerateRequest) -> Kept | None:
    """The kept session that a request goes on from. Raises LeaseEnded."""
    if not request.HasField("continue_from") or request.HasField("resume"):
        return None
    now, whole = asyncio.get_running_loop().time(), request.HasField("chat")
    return parts.coordinator.kept.find(request.continue_from, now, whole=whole)


def _not_served(own: Announcement, asked: str, others: Sequence[Announcement]) -> UnknownModel:
    """The error of a request for a model that only others serve."""
    where = f": ask {others[0].address}" if others else ", and nobody else does now"
    return UnknownModel(f"this node serves {own.model.name!r}, not {asked!r}{where}")


def _nearness(peer: Announcement) -> tuple[int, bool, int]:
    return peer.span.start, peer.starves, peer.sessions


def _redirect_to(peer: Hop | Announcement, model: ModelInfo) -> pb.GenerateEvent:
    target = pb.Redirect(address=peer.address, peer_id=peer.peer_id, model_digest=model.digest)
    return pb.GenerateEvent(redirect=target)


def _hops(route: Route) -> Sequence[pb.Hop]:
    return [
        pb.Hop(
            peer_id=hop.peer_id,
            address=hop.address,
            start=hop.blocks.start,
            end=hop.blocks.end,
            pid=hop.pid,
            precision=hop.precision,
        )
        for hop in route
    ]


def _check_accepts(parts: Parts) -> None:
    if not parts.accepts():
        raise PeerUnreachable("this node is draining: ask another one")

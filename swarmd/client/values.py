"""Replies of a node to the values of `swarmd.core.results`; what a stranger might send is refused.

Only names and texts for people are cleaned here; generated text is passed on as it is.
"""

from __future__ import annotations

from collections.abc import Iterable

from swarmd.core.errors import ConfigError, ProtocolError
from swarmd.core.frames import SECRET_BYTES, SESSION_ID_BYTES
from swarmd.core.results import (
    Microbatch,
    ModelStatus,
    PeerStatus,
    RouteHop,
    SwarmStatus,
    TokenOutput,
    TopLogprob,
)
from swarmd.core.span import Span
from swarmd.v1 import inference_pb2 as pb
from swarmd.wire.status import printable

FINISH_REASONS = {pb.FINISH_REASON_STOP: "stop", pb.FINISH_REASON_LENGTH: "length"}


def check_started(message: pb.Started) -> pb.Started:
    """Return the message. Raises ProtocolError if a session could not be resumed from it."""
    if len(message.session) != SESSION_ID_BYTES or len(message.secret) != SECRET_BYTES:
        raise ProtocolError("the node began a session without a proper id and secret")
    return message


def token_output(message: pb.Generated) -> TokenOutput:
    """Return one token."""
    top = tuple(TopLogprob(t.id, t.logprob, t.text) for t in message.top)
    return TokenOutput(message.text, message.id, message.logprob, message.index, top)


def route(hops: Iterable[pb.Hop]) -> tuple[RouteHop, ...]:
    """Return the hops of a route. Raises ProtocolError if one has no blocks."""
    try:
        return tuple(
            RouteHop(printable(h.peer_id), printable(h.address), Span(h.start, h.end), h.pid)
            for h in hops
        )
    except ConfigError as error:
        raise ProtocolError(f"the node told a route that is none: {error}") from None


def finish_reason(message: pb.Finished) -> str:
    """Return "stop" or "length". Raises ProtocolError for a reason that does not exist."""
    if message.reason not in FINISH_REASONS:
        raise ProtocolError(f"the node ended with an unknown reason: {message.reason}")
    return FINISH_REASONS[message.reason]


def swarm_status(message: pb.StatusReply) -> SwarmStatus:
    """Return the swarm as the node told it."""
    return SwarmStatus(
        peer=printable(message.peer_id),
        peers=tuple(_peer(peer) for peer in message.peers),
        models=tuple(_model(model) for model in message.models),
        counters={printable(name): value for name, value in message.counters.items()},
        microbatches=tuple(
            Microbatch(m.began, m.ended, m.steps, m.decodes, m.positions)
            for m in message.microbatches
        ),
    )


def _peer(m: pb.PeerStatus) -> PeerStatus:
    return PeerStatus(
        peer=printable(m.peer_id),
        address=printable(m.address),
        blocks=Span(m.start, m.end) if m.start < m.end else None,
        state=printable(m.state),
        device=printable(m.device),
        dtype=printable(m.dtype),
        precision=printable(m.precision),
        sessions=m.sessions,
        kv_total_bytes=m.kv_total_bytes,
        kv_free_bytes=m.kv_free_bytes,
        tokens_per_s=m.tokens_per_s,
        pid=m.pid,
        version=printable(m.version),
        model=printable(m.model),
        model_digest=printable(m.model_digest),
        ragged=m.ragged,
        replay_exact=m.replay_exact,
        queue_depth=m.queue_depth,
        step_ms=m.step_ms,
        plan=Span(m.plan.start, m.plan.end) if m.plan.start < m.plan.end else None,
        starves=m.starves,
    )


def _model(m: pb.ModelStatus) -> ModelStatus:
    return ModelStatus(
        name=printable(m.name),
        digest=printable(m.digest),
        num_blocks=m.num_blocks,
        covered_blocks=m.covered_blocks,
        replicas=m.replicas,
        missing=tuple((gap.start, gap.end) for gap in m.missing),
        max_model_len=m.max_model_len,
        thin=tuple((run.start, run.end) for run in m.thin),
    )

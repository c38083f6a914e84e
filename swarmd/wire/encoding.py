"""Session frames to protobuf: what this node sends. `swarmd.wire.frames` reads what comes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from swarmd.core.frames import (
    KV,
    Close,
    Copied,
    Copy,
    Failed,
    Gap,
    Keep,
    Leaving,
    Open,
    Opened,
    Payload,
    Poll,
    Polled,
    Refusal,
    Release,
    Resume,
    SessionFrame,
    Step,
    Token,
)
from swarmd.v1 import peer_pb2 as pb
from swarmd.wire import limits, polls
from swarmd.wire.past import past_to_pb
from swarmd.wire.sampling import sampling_to_pb


def encode(frame: SessionFrame) -> pb.Frame:
    """Return the message that carries one frame."""
    if isinstance(frame, Step):
        return encode_steps((frame,))
    if isinstance(frame, Token):
        return encode_tokens((frame,))
    return _ENCODERS[type(frame)](frame)


def encode_steps(steps: Iterable[Step]) -> pb.Frame:
    """Return one message that carries what a microbatch has for one neighbour: one at least."""
    message = pb.Frame()
    row = message.steps.steps
    for step in steps:
        _add_step(row, step)
    return message


def encode_tokens(tokens: Iterable[Token]) -> pb.Frame:
    """Return one message with a microbatch's tokens for one coordinator: one at least."""
    message = pb.Frame()
    row = message.tokens.tokens
    for token in tokens:
        _add_token(row, token)
    return message


def _open_to_pb(frame: Open) -> pb.Frame:
    sampling = sampling_to_pb(frame.sampling) if frame.sampling is not None else None
    return pb.Frame(
        open=pb.Open(
            session=frame.session,
            secret=frame.secret,
            epoch=frame.epoch,
            fresh=frame.fresh,
            model_digest=frame.model_digest,
            start=frame.blocks.start,
            end=frame.blocks.end,
            next_peer=frame.next_peer,
            prev_peer=frame.prev_peer,
            max_positions=frame.max_positions,
            prompt_tokens=frame.prompt_tokens,
            sampling=sampling,
            token_ids=frame.token_ids,
            prefix=frame.prefix,
            prefix_unit=frame.prefix_unit,
            prefix_grain=frame.prefix_grain,
            past=past_to_pb(frame.past) if frame.past else None,
            keeps=frame.keeps,
            claimed=frame.claimed,
            tenant=frame.tenant,
            donor=frame.donor,
            computed=frame.computed,
        )
    )


def _close_to_pb(frame: Close) -> pb.Frame:
    return pb.Frame(
        close=pb.Close(
            session=frame.session,
            epoch=frame.epoch,
            prefix=frame.prefix,
            prefix_unit=frame.prefix_unit,
            keep_ms=round(frame.keep_s * 1000),
        )
    )


def _opened_to_pb(frame: Opened) -> pb.Frame:
    return pb.Frame(
        opened=pb.Opened(
            session=frame.session,
            epoch=frame.epoch,
            refusal=_refusal_to_pb(frame.refusal),
            message=_text(frame.message),
            kv_length=frame.kv_length,
            log_start=frame.log_start,
            kv_free_bytes=frame.kv_free_bytes,
            pid=frame.pid,
            chunk_exact=frame.chunk_exact,
            copies=frame.copies,
        )
    )


def _kv_to_pb(frame: KV) -> pb.Frame:
    message = pb.Frame()
    kv = message.kv
    kv.session, kv.epoch, kv.round = frame.session, frame.epoch, frame.round
    kv.position, kv.positions = frame.position, frame.length
    for tensors in frame.blocks:
        block = kv.blocks.add()
        for name, payload in tensors.items():
            _fill_tensor(getattr(block, name), payload)
    return message


def _failed_to_pb(frame: Failed) -> pb.Frame:
    return pb.Frame(
        failed=pb.Failed(
            session=frame.session,
            epoch=frame.epoch,
            refusal=_refusal_to_pb(frame.refusal),
            message=_text(frame.message),
            lost_peer=frame.lost_peer,
        )
    )


def _text(message: str) -> str:
    """Cut a message to length; half a character, as file names may have, must not stop it."""
    return message[: limits.MAX_TEXT].encode("utf-8", "replace").decode()


def _refusal_to_pb(refusal: Refusal | None) -> Any:
    return 0 if refusal is None else int(refusal)


# Filled in place: a message that is handed to another's constructor is copied through its bytes,
# once per level.


def _add_step(to: Any, step: Step) -> None:
    message = to.add(
        session=step.session,
        epoch=step.epoch,
        round=step.round,
        position=step.position,
        chunks=step.chunks,
        token_ids=step.token_ids,
        wants=step.wants,
        waited_us=step.waited_us,
    )
    if step.hidden is not None:
        _fill_tensor(message.hidden, step.hidden)


def _fill_tensor(to: Any, payload: Payload) -> None:
    to.dtype = int(payload.dtype)
    to.shape.extend(payload.shape)
    to.data = bytes(payload.data)  # no copy if it is bytes already


def _add_token(to: Any, token: Token) -> None:
    message = to.add(
        session=token.session,
        epoch=token.epoch,
        round=token.round,
        position=token.position,
        id=token.id,
        logprob=token.logprob,
        waited_us=token.waited_us,
    )
    for likely, logprob in token.top:
        message.top.add(id=likely, logprob=logprob)


_ENCODERS: dict[type, Callable[[Any], pb.Frame]] = {
    Open: _open_to_pb,
    Opened: _opened_to_pb,
    Resume: lambda f: pb.Frame(
        resume=pb.Resume(session=f.session, epoch=f.epoch, send_from=f.send_from)
    ),
    Gap: lambda f: pb.Frame(
        gap=pb.Gap(session=f.session, epoch=f.epoch, round=f.round, kv_length=f.kv_length)
    ),
    Failed: _failed_to_pb,
    Close: _close_to_pb,
    Keep: lambda f: pb.Frame(keep=pb.Keep(sessions=f.sessions)),
    Release: lambda f: pb.Frame(release=pb.Release(session=f.session, secret=f.secret)),
    Copy: lambda f: pb.Frame(
        copy=pb.Copy(
            session=f.session,
            epoch=f.epoch,
            peer_id=f.peer_id,
            start=f.blocks.start,
            end=f.blocks.end,
            position=f.position,
            round=f.round,
            sure=f.sure,
        )
    ),
    KV: _kv_to_pb,
    Copied: lambda f: pb.Frame(
        copied=pb.Copied(session=f.session, epoch=f.epoch, kv_length=f.kv_length)
    ),
    Leaving: lambda f: pb.Frame(
        leaving=pb.Leaving(session=f.session, epoch=f.epoch, decision=f.decision, stays=f.stays)
    ),
    Poll: polls.poll_to_pb,
    Polled: polls.polled_to_pb,
}

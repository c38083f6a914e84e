"""Session frames to protobuf and back: the border at which a peer's bytes become values.

`decode` checks structure (sizes, closed enums, shapes against bytes) and raises ProtocolError; what
a frame means, and whether it fits its session, is `swarmd.pipeline`'s business.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from swarmd.core.errors import ConfigError, ProtocolError, RequestError
from swarmd.core.frames import (
    SECRET_BYTES,
    SESSION_ID_BYTES,
    Close,
    DType,
    Failed,
    Gap,
    Keep,
    Open,
    Opened,
    Payload,
    Refusal,
    Resume,
    SessionFrame,
    Step,
    Token,
)
from swarmd.core.peers import PEER_ID_HEX
from swarmd.core.prefix import KEY_BYTES
from swarmd.core.span import Span
from swarmd.v1 import peer_pb2 as pb
from swarmd.wire import limits
from swarmd.wire.past import past_from_pb, past_to_pb, tenant_from_pb
from swarmd.wire.sampling import sampling_from_pb, sampling_to_pb

_PEER_ID = re.compile(f"[0-9a-f]{{{PEER_ID_HEX}}}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def encode(frame: SessionFrame) -> pb.Frame:
    """Return the message that carries one frame."""
    return _ENCODERS[type(frame)](frame)


def encode_steps(steps: Iterable[Step]) -> pb.Frame:
    """Return one message that carries what a microbatch has for one neighbour."""
    message = pb.Frame()
    message.steps.SetInParent()
    for step in steps:
        _add_step(message.steps.steps, step)
    return message


def encode_tokens(tokens: Iterable[Token]) -> pb.Frame:
    """Return one message that carries the tokens of a microbatch for one coordinator."""
    message = pb.Frame()
    message.tokens.SetInParent()
    for token in tokens:
        _add_token(message.tokens.tokens, token)
    return message


def decode(message: pb.Frame) -> Sequence[SessionFrame]:
    """Return the frames in a message. Raises ProtocolError when it breaks a rule."""
    kind = message.WhichOneof("body")
    decoder = _DECODERS.get(kind or "")
    if decoder is None:
        raise ProtocolError(f"a frame of kind {kind or 'none'} is not allowed here")
    try:
        return decoder(getattr(message, kind or ""))
    except (ConfigError, RequestError) as error:
        raise ProtocolError(f"{kind}: {error}") from error


# -- encoding ---------------------------------------------------------------------------------


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
            tenant=frame.tenant,
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
        )
    )


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
        hidden = message.hidden
        hidden.dtype = int(step.hidden.dtype)
        hidden.shape.extend(step.hidden.shape)
        hidden.data = bytes(step.hidden.data)  # no copy if it is bytes already


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
    Step: lambda f: encode_steps((f,)),
    Token: lambda f: encode_tokens((f,)),
    Gap: lambda f: pb.Frame(
        gap=pb.Gap(session=f.session, epoch=f.epoch, round=f.round, kv_length=f.kv_length)
    ),
    Failed: _failed_to_pb,
    Close: _close_to_pb,
    Keep: lambda f: pb.Frame(keep=pb.Keep(sessions=f.sessions)),
}


_MAX_WAITED_US = 1 << 53
"""Sums of it stay far below what a field holds."""


# -- decoding ---------------------------------------------------------------------------------


def _session(value: bytes) -> bytes:
    if len(value) != SESSION_ID_BYTES:
        raise ProtocolError(f"a session id has {SESSION_ID_BYTES} bytes, not {len(value)}")
    return value


def _epoch(value: int) -> int:
    if not 1 <= value < 1 << 31:
        raise ProtocolError(f"an epoch is between 1 and 2^31, not {value}")
    return value


def _position(value: int, what: str = "position") -> int:
    if value > limits.MAX_POSITIONS:
        raise ProtocolError(f"{what} {value} exceeds {limits.MAX_POSITIONS}")
    return value


def peer_id(value: str, *, optional: bool = False) -> str:
    """Return a well-formed peer id. Raises ProtocolError otherwise."""
    if (optional and not value) or _PEER_ID.fullmatch(value):
        return value
    raise ProtocolError(f"a peer id is {PEER_ID_HEX} hex digits, not {value[:80]!r}")


def _refusal(value: int) -> Refusal | None:
    if value == 0:
        return None
    try:
        return Refusal(value)
    except ValueError:
        raise ProtocolError(f"unknown refusal {value}") from None


def _open_from_pb(m: pb.Open) -> tuple[Open]:
    if len(m.secret) != SECRET_BYTES:
        raise ProtocolError(f"a session secret has {SECRET_BYTES} bytes, not {len(m.secret)}")
    if not _DIGEST.fullmatch(m.model_digest):
        raise ProtocolError("a model digest is 64 hex digits")
    if m.end > limits.MAX_BLOCKS:
        raise ProtocolError(f"block {m.end} exceeds {limits.MAX_BLOCKS}")
    if len(m.token_ids) > limits.MAX_POSITIONS or len(m.token_ids) > m.max_positions:
        raise ProtocolError(f"{len(m.token_ids)} ids for {m.max_positions} positions")
    return (
        Open(
            session=_session(m.session),
            secret=m.secret,
            epoch=_epoch(m.epoch),
            fresh=m.fresh,
            model_digest=m.model_digest,
            blocks=Span(m.start, m.end),
            next_peer=peer_id(m.next_peer, optional=True),
            prev_peer=peer_id(m.prev_peer),
            max_positions=_position(m.max_positions, "max_positions"),
            prompt_tokens=_position(m.prompt_tokens, "prompt_tokens"),
            sampling=sampling_from_pb(m.sampling) if m.HasField("sampling") else None,
            token_ids=tuple(m.token_ids),
            prefix=_prefix(m, m.prompt_tokens),
            prefix_unit=m.prefix_unit,
            prefix_grain=_position(m.prefix_grain, "prefix_grain"),
            past=past_from_pb(m.past, m.prompt_tokens) if m.HasField("past") else None,
            keeps=m.keeps,
            tenant=tenant_from_pb(m.tenant),
        ),
    )


def _prefix(m: pb.Open | pb.Close, positions: int) -> tuple[bytes, ...]:
    if len(m.prefix) * m.prefix_unit > positions or (m.prefix and not m.prefix_unit):
        raise ProtocolError(
            f"{len(m.prefix)} units of {m.prefix_unit} positions, for {positions} in all"
        )
    if any(len(key) != KEY_BYTES for key in m.prefix):
        raise ProtocolError(f"the key of a prompt's unit has {KEY_BYTES} bytes")
    return tuple(m.prefix)


def _opened_from_pb(m: pb.Opened) -> tuple[Opened]:
    return (
        Opened(
            session=_session(m.session),
            epoch=_epoch(m.epoch),
            refusal=_refusal(m.refusal),
            message=m.message[: limits.MAX_TEXT],
            kv_length=_position(m.kv_length),
            log_start=_position(m.log_start),
            kv_free_bytes=m.kv_free_bytes,
            pid=m.pid,
            chunk_exact=m.chunk_exact,
        ),
    )


def _failed_from_pb(m: pb.Failed) -> tuple[Failed]:
    refusal = _refusal(m.refusal)
    if refusal is None:
        raise ProtocolError("a failure without a reason")
    return (
        Failed(
            session=_session(m.session),
            epoch=_epoch(m.epoch),
            refusal=refusal,
            message=m.message[: limits.MAX_TEXT],
            lost_peer=peer_id(m.lost_peer, optional=True),
        ),
    )


def _chunks(values: Sequence[int]) -> tuple[int, ...]:
    if not 1 <= len(values) <= limits.MAX_CHUNKS:
        raise ProtocolError(f"a step has 1 to {limits.MAX_CHUNKS} chunks, not {len(values)}")
    if min(values) < 1 or sum(values) > limits.MAX_POSITIONS:
        raise ProtocolError("a chunk is at least one position long, and a step not endless")
    return tuple(values)


def tensor_from_pb(m: pb.Tensor, rows: int) -> Payload:
    """Return the payload of `rows` positions. Raises ProtocolError unless shape and bytes agree."""
    try:
        dtype = DType(m.dtype)
    except ValueError:
        raise ProtocolError(f"unknown dtype {m.dtype}") from None
    shape = tuple(m.shape)
    if not 1 <= len(shape) <= 3 or not all(shape):
        raise ProtocolError(f"a tensor has 1 to 3 dimensions, none of them 0, not {shape[:4]}")
    expected = math.prod(shape) * dtype.itemsize
    if expected != len(m.data):
        raise ProtocolError(f"shape {shape} of {dtype.name} is {expected} bytes, not {len(m.data)}")
    if shape[0] != rows:
        raise ProtocolError(f"a tensor of {shape[0]} rows for {rows} positions")
    return Payload(dtype, shape, m.data)


def _step_from_pb(m: pb.Step) -> Step:
    chunks = _chunks(m.chunks)
    length = sum(chunks)
    end = _position(m.position + length)
    hidden = tensor_from_pb(m.hidden, length) if m.HasField("hidden") else None
    ids = tuple(m.token_ids)
    if (hidden is None) == (not ids) or (ids and len(ids) != length):
        raise ProtocolError(f"a step of {length} positions needs as many ids, or hidden states")
    wants = tuple(m.wants)
    if len(wants) > length or any(not m.position <= want < end for want in wants):
        raise ProtocolError(f"a step over {m.position}:{end} cannot give tokens elsewhere")
    if any(a >= b for a, b in itertools.pairwise(wants)):
        raise ProtocolError("wanted positions must ascend")
    return Step(
        session=_session(m.session),
        epoch=_epoch(m.epoch),
        round=_position(m.round, "round"),
        position=m.position,
        chunks=chunks,
        token_ids=ids,
        hidden=hidden,
        wants=wants,
        waited_us=min(m.waited_us, _MAX_WAITED_US),
    )


def _token_from_pb(m: pb.Token) -> Token:
    if len(m.top) > limits.MAX_TOP:
        raise ProtocolError(f"{len(m.top)} likely tokens for one; at most {limits.MAX_TOP}")
    return Token(
        session=_session(m.session),
        epoch=_epoch(m.epoch),
        round=_position(m.round, "round"),
        position=_position(m.position),
        id=m.id,
        logprob=m.logprob,
        top=tuple((top.id, top.logprob) for top in m.top),
        waited_us=min(m.waited_us, _MAX_WAITED_US),
    )


def _many(values: Any) -> Any:
    if len(values) > limits.MAX_STEPS:
        raise ProtocolError(f"{len(values)} entries in one message; at most {limits.MAX_STEPS}")
    return values


_DECODERS: dict[str, Callable[[Any], Sequence[SessionFrame]]] = {
    "open": _open_from_pb,
    "opened": _opened_from_pb,
    "resume": lambda m: (
        Resume(_session(m.session), _epoch(m.epoch), _position(m.send_from, "send_from")),
    ),
    "steps": lambda m: tuple(_step_from_pb(step) for step in _many(m.steps)),
    "tokens": lambda m: tuple(_token_from_pb(token) for token in _many(m.tokens)),
    "gap": lambda m: (
        Gap(
            _session(m.session),
            _epoch(m.epoch),
            _position(m.round, "round"),
            _position(m.kv_length),
        ),
    ),
    "failed": _failed_from_pb,
    "close": lambda m: (
        Close(
            _session(m.session),
            _epoch(m.epoch),
            _prefix(m, limits.MAX_POSITIONS),
            m.prefix_unit,
            m.keep_ms / 1000,
        ),
    ),
    "keep": lambda m: (Keep(tuple(_session(s) for s in _many(m.sessions))),),
}

"""Session frames from protobuf: the border at which a peer's bytes become values.

`decode` checks structure (sizes, closed enums, shapes against bytes) and raises ProtocolError; what
a frame means, and whether it fits its session, is `swarmd.pipeline`'s business. What is sent is
made by `swarmd.wire.encoding`.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from swarmd.core.errors import ConfigError, ProtocolError, RequestError
from swarmd.core.frames import (
    KV,
    SESSION_ID_BYTES,
    Close,
    Copied,
    Copy,
    DType,
    Failed,
    Gap,
    Keep,
    Leaving,
    Open,
    Opened,
    Payload,
    Poll,
    Refusal,
    Release,
    Resume,
    SessionFrame,
    Step,
    Token,
)
from swarmd.core.peers import PEER_ID_HEX
from swarmd.core.prefix import KEY_BYTES
from swarmd.core.span import Span
from swarmd.v1 import peer_pb2 as pb
from swarmd.wire import limits, polls
from swarmd.wire.past import past_from_pb, secret_from_pb, tenant_from_pb
from swarmd.wire.sampling import sampling_from_pb

KV_TENSORS = ("key", "value")
"""What each block's KV consists of."""

_PEER_ID = re.compile(f"[0-9a-f]{{{PEER_ID_HEX}}}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def decode(message: pb.Frame, kind: str | None = None) -> Sequence[SessionFrame]:
    """Return the frames in a message; `kind` is what it holds, if that is known.

    Raises ProtocolError when it breaks a rule.
    """
    kind = kind or message.WhichOneof("body") or ""
    decoder = _DECODERS.get(kind)
    if decoder is None:
        raise ProtocolError(f"a frame of kind {kind or 'none'} is not allowed here")
    try:
        return decoder(getattr(message, kind))
    except (ConfigError, RequestError) as error:
        raise ProtocolError(f"{kind}: {error}") from error


_DTYPES = {int(dtype): (dtype, dtype.itemsize) for dtype in DType}
_MAX_WAITED_US = 1 << 53
"""Sums of it stay far below what a field holds."""


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
    if not _DIGEST.fullmatch(m.model_digest):
        raise ProtocolError("a model digest is 64 hex digits")
    if len(m.token_ids) > limits.MAX_POSITIONS or len(m.token_ids) > m.max_positions:
        raise ProtocolError(f"{len(m.token_ids)} ids for {m.max_positions} positions")
    return (
        Open(
            session=_session(m.session),
            secret=secret_from_pb(m.secret),
            epoch=_epoch(m.epoch),
            fresh=m.fresh,
            model_digest=m.model_digest,
            blocks=_blocks(m.start, m.end),
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
            claimed=m.claimed,
            tenant=tenant_from_pb(m.tenant),
            donor=peer_id(m.donor, optional=True),
            computed=_position(m.computed, "computed"),
        ),
    )


def _blocks(start: int, end: int) -> Span:
    if end > limits.MAX_BLOCKS:
        raise ProtocolError(f"block {end} exceeds {limits.MAX_BLOCKS}")
    return Span(start, end)


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
            copies=m.copies,
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
    chunks = tuple(values)
    if min(chunks) < 1 or sum(chunks) > limits.MAX_POSITIONS:
        raise ProtocolError("a chunk is at least one position long, and a step not endless")
    return chunks


def tensor_from_pb(m: pb.Tensor, rows: int, axis: int = 0) -> Payload:
    """Return a payload that holds `rows` positions along an axis.

    Raises ProtocolError unless shape and bytes agree.
    """
    dtype, itemsize = _DTYPES.get(m.dtype, (None, 0))
    if dtype is None:
        raise ProtocolError(f"unknown dtype {m.dtype}")
    shape = tuple(m.shape)
    if not 1 <= len(shape) <= 3 or not all(shape):
        raise ProtocolError(f"a tensor has 1 to 3 dimensions, none of them 0, not {shape[:4]}")
    expected, data = math.prod(shape) * itemsize, m.data  # which is copied every time
    if expected != len(data):
        raise ProtocolError(f"shape {shape} of {dtype.name} is {expected} bytes, not {len(data)}")
    if len(shape) <= axis or shape[axis] != rows:
        count = shape[axis] if len(shape) > axis else 0
        raise ProtocolError(f"a tensor of {count} rows for {rows} positions")
    return Payload(dtype, shape, data)


def _place(m: Any) -> tuple[bytes, int, int]:
    """Session, epoch and round of what belongs to one: checked together, as once per token."""
    if len(m.session) != SESSION_ID_BYTES or not 1 <= m.epoch < 1 << 31:
        _session(m.session)
        _epoch(m.epoch)
    if m.round > limits.MAX_POSITIONS:
        _position(m.round, "round")
    return m.session, m.epoch, m.round


def _steps_from_pb(m: pb.Steps) -> Sequence[Step]:
    if len(m.steps) == 1:
        return (_step_from_pb(m.steps[0]),)
    return tuple(map(_step_from_pb, _many(m.steps)))


def _step_from_pb(m: pb.Step) -> Step:
    sizes = m.chunks
    chunks = (1,) if len(sizes) == 1 == sizes[0] else _chunks(sizes)
    length = sum(chunks)
    end = _position(m.position + length)
    hidden = tensor_from_pb(m.hidden, length) if m.HasField("hidden") else None
    ids = tuple(m.token_ids)
    if (hidden is None) == (not ids) or (ids and len(ids) != length):
        raise ProtocolError(f"a step of {length} positions needs as many ids, or hidden states")
    wants = tuple(m.wants)
    position = m.position
    if wants:
        if len(wants) > length or not position <= min(wants) <= max(wants) < end:
            raise ProtocolError(f"a step over {position}:{end} cannot give tokens elsewhere")
        if len(wants) > 1 and any(a >= b for a, b in itertools.pairwise(wants)):
            raise ProtocolError("wanted positions must ascend")
    session, epoch, round_ = _place(m)
    return Step(
        session=session,
        epoch=epoch,
        round=round_,
        position=position,
        chunks=chunks,
        token_ids=ids,
        hidden=hidden,
        wants=wants,
        waited_us=min(m.waited_us, _MAX_WAITED_US),
    )


def _tokens_from_pb(m: pb.Tokens) -> Sequence[Token]:
    if len(m.tokens) == 1:
        return (_token_from_pb(m.tokens[0]),)
    return tuple(map(_token_from_pb, _many(m.tokens)))


def _token_from_pb(m: pb.Token) -> Token:
    if len(m.top) > limits.MAX_TOP:
        raise ProtocolError(f"{len(m.top)} likely tokens for one; at most {limits.MAX_TOP}")
    session, epoch, round_ = _place(m)
    return Token(
        session=session,
        epoch=epoch,
        round=round_,
        position=_position(m.position),
        id=m.id,
        logprob=m.logprob,
        top=tuple((top.id, top.logprob) for top in m.top) if m.top else (),
        waited_us=min(m.waited_us, _MAX_WAITED_US),
    )


def _kv_from_pb(m: pb.KV) -> tuple[KV]:
    end = _position(m.position + m.positions)
    if end == m.position or not 1 <= len(m.blocks) <= limits.MAX_BLOCKS:
        raise ProtocolError(f"KV of {m.positions} positions and {len(m.blocks)} blocks")
    blocks = tuple(_tensors_from_pb(block, m.positions) for block in m.blocks)
    return (KV(*_place(m), m.position, blocks),)


def _tensors_from_pb(m: pb.BlockTensors, positions: int) -> dict[str, Payload]:
    found: dict[str, Payload] = {}
    if not m.HasField("key") and not m.HasField("value"):
        return found  # some blocks use another one's KV
    for name in KV_TENSORS:
        payload = tensor_from_pb(getattr(m, name), positions, axis=1)
        if len(payload.shape) != 3:
            raise ProtocolError(f"a {name} has 3 dimensions, not shape {payload.shape}")
        found[name] = payload
    return found


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
    "steps": _steps_from_pb,
    "tokens": _tokens_from_pb,
    "gap": lambda m: (Gap(*_place(m), _position(m.kv_length)),),
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
    "release": lambda m: (Release(_session(m.session), secret_from_pb(m.secret)),),
    "copy": lambda m: (
        Copy(
            _session(m.session),
            _epoch(m.epoch),
            peer_id(m.peer_id, optional=True),
            _blocks(m.start, m.end),
            _position(m.position),
            m.round,
            _position(m.sure),
        ),
    ),
    "kv": _kv_from_pb,
    "copied": lambda m: (Copied(_session(m.session), _epoch(m.epoch), _position(m.kv_length)),),
    "leaving": lambda m: (
        Leaving(_session(m.session), _epoch(m.epoch), m.decision, bool(m.stays)),
    ),
    "poll": lambda m: (Poll(_session(m.session), _epoch(m.epoch)),),
    "polled": lambda m: (polls.polled_from_pb(m, _session(m.session), _epoch(m.epoch)),),
}

"""Strategies for every frame of `swarmd.core.frames`, and small ones to write down."""

from __future__ import annotations

import math
from collections.abc import Iterable

from hypothesis import strategies as st

from swarmd.core.frames import (
    KV,
    SECRET_BYTES,
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
    Past,
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
from swarmd.core.prefix import KEY_BYTES
from swarmd.core.sampling import SamplingParams
from swarmd.core.span import Span
from swarmd.wire import limits

DIGEST = "ab" * 32


def session(n: int) -> bytes:
    return n.to_bytes(SESSION_ID_BYTES, "big")


def of(n: int, some: Iterable[SessionFrame | None]) -> list[SessionFrame]:
    """The frames of session `n`."""
    return [f for f in some if f is not None and getattr(f, "session", None) == session(n)]


def close(n: int, epoch: int = 1) -> Close:
    return Close(session(n), epoch)


def decode_step(n: int, position: int = 7) -> Step:
    """A step of one token id."""
    return Step(session(n), 1, 0, position, (1,), token_ids=(5,), wants=(position,))


def hidden_step(n: int, nbytes: int, data: bytes | memoryview | None = None) -> Step:
    """A step of one position whose hidden state has `nbytes` bytes."""
    payload = Payload(DType.BFLOAT16, (1, nbytes // 2), data or bytes(nbytes))
    return Step(session(n), 1, 0, 0, (1,), hidden=payload)


sessions = st.binary(min_size=SESSION_ID_BYTES, max_size=SESSION_ID_BYTES)
secrets = st.binary(min_size=SECRET_BYTES, max_size=SECRET_BYTES)
epochs = st.integers(1, (1 << 31) - 1)
positions = st.integers(0, limits.MAX_POSITIONS)
uint32 = st.integers(0, (1 << 32) - 1)
uint64 = st.integers(0, (1 << 64) - 1)
float32 = st.floats(width=32, allow_nan=False)
peer_ids = st.text("0123456789abcdef", min_size=40, max_size=40)
texts = st.text(st.characters(codec="utf-8"), max_size=50)
hundredths = st.integers(0, 10000).map(lambda n: n / 100)

samplings = st.builds(
    SamplingParams,
    temperature=hundredths,
    top_k=st.integers(0, 1 << 31),
    top_p=st.integers(1, 100).map(lambda n: n / 100),
    min_p=st.integers(0, 100).map(lambda n: n / 100),
    repetition_penalty=st.integers(1, 300).map(lambda n: n / 100),
    presence_penalty=st.integers(-10000, 10000).map(lambda n: n / 100),
    frequency_penalty=st.integers(-10000, 10000).map(lambda n: n / 100),
    logit_bias=st.lists(st.tuples(st.integers(0, 1 << 31), hundredths), max_size=5).map(tuple),
    seed=uint64,
    top_logprobs=st.integers(0, 20),
)


def pasts(prompt: int) -> st.SearchStrategy[Past]:
    return st.builds(Past, sessions, secrets, st.integers(1, prompt), positions, positions)


@st.composite
def opens(draw: st.DrawFn) -> Open:
    start = draw(st.integers(0, limits.MAX_BLOCKS - 1))
    ids = draw(st.lists(uint32, max_size=20))
    keys = draw(st.lists(st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES), max_size=4))
    unit = draw(st.integers(1, 64)) if keys else 0
    prompt = draw(st.integers(max(1, len(keys) * unit), limits.MAX_POSITIONS))
    return Open(
        session=draw(sessions),
        secret=draw(st.binary(min_size=SECRET_BYTES, max_size=SECRET_BYTES)),
        epoch=draw(epochs),
        fresh=draw(st.booleans()),
        model_digest=draw(st.text("0123456789abcdef", min_size=64, max_size=64)),
        blocks=Span(start, draw(st.integers(start + 1, limits.MAX_BLOCKS))),
        next_peer=draw(peer_ids | st.just("")),
        prev_peer=draw(peer_ids),
        max_positions=draw(st.integers(len(ids), limits.MAX_POSITIONS)),
        prompt_tokens=prompt,
        sampling=draw(st.none() | samplings),
        token_ids=tuple(ids),
        prefix=tuple(keys),
        prefix_unit=unit,
        prefix_grain=draw(positions),
        past=draw(st.none() | pasts(prompt)),
        keeps=draw(st.booleans()),
        tenant=draw(st.binary(max_size=16)),
        donor=draw(peer_ids | st.just("")),
        computed=draw(positions),
    )


@st.composite
def payloads(draw: st.DrawFn, rows: int) -> Payload:
    dtype = draw(st.sampled_from(DType))
    shape = (rows, *draw(st.lists(st.integers(1, 4), max_size=2)))
    size = math.prod(shape) * dtype.itemsize
    return Payload(dtype, shape, draw(st.binary(min_size=size, max_size=size)))


@st.composite
def steps(draw: st.DrawFn) -> Step:
    chunks = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    length = sum(chunks)
    position = draw(st.integers(0, limits.MAX_POSITIONS - length))
    ids = tuple(draw(st.lists(uint32, min_size=length, max_size=length)))
    hidden = draw(st.none() | payloads(length))
    wants = draw(st.sets(st.integers(position, position + length - 1)))
    return Step(
        session=draw(sessions),
        epoch=draw(epochs),
        round=draw(positions),
        position=position,
        chunks=chunks,
        token_ids=() if hidden is not None else ids,
        hidden=hidden,
        wants=tuple(sorted(wants)),
    )


@st.composite
def kvs(draw: st.DrawFn) -> KV:
    count = draw(st.integers(1, 4))

    def tensor() -> Payload:
        dtype = draw(st.sampled_from(DType))
        shape = (draw(st.integers(1, 3)), count, draw(st.integers(1, 4)))
        size = math.prod(shape) * dtype.itemsize
        return Payload(dtype, shape, draw(st.binary(min_size=size, max_size=size)))

    blocks = draw(st.integers(1, 3))
    return KV(
        session=draw(sessions),
        epoch=draw(epochs),
        round=draw(positions),
        position=draw(st.integers(0, limits.MAX_POSITIONS - count)),
        blocks=tuple({"key": tensor(), "value": tensor()} for _ in range(blocks)),
    )


@st.composite
def copies(draw: st.DrawFn) -> Copy:
    start = draw(st.integers(0, limits.MAX_BLOCKS - 1))
    blocks = Span(start, draw(st.integers(start + 1, limits.MAX_BLOCKS)))
    peer = draw(peer_ids | st.just(""))
    return Copy(draw(sessions), draw(epochs), peer, blocks, draw(positions))


tokens = st.builds(
    Token,
    session=sessions,
    epoch=epochs,
    round=positions,
    position=positions,
    id=uint32,
    logprob=float32,
    top=st.lists(st.tuples(uint32, float32), max_size=20).map(tuple),
)

frames: st.SearchStrategy[SessionFrame] = st.one_of(
    opens(),
    st.builds(
        Opened,
        session=sessions,
        epoch=epochs,
        refusal=st.none() | st.sampled_from(Refusal),
        message=texts,
        kv_length=positions,
        log_start=positions,
        kv_free_bytes=uint64,
        pid=uint32,
        copies=st.booleans(),
    ),
    st.builds(Resume, sessions, epochs, positions),
    steps(),
    tokens,
    st.builds(Gap, sessions, epochs, positions, positions),
    st.builds(
        Failed,
        session=sessions,
        epoch=epochs,
        refusal=st.sampled_from(Refusal),
        message=texts,
        lost_peer=peer_ids | st.just(""),
    ),
    st.builds(Close, sessions, epochs, keep_s=st.integers(0, 1 << 31).map(lambda ms: ms / 1000)),
    st.builds(Release, sessions, secrets),
    st.builds(Keep, st.lists(sessions, max_size=5).map(tuple)),
    copies(),
    kvs(),
    st.builds(Copied, sessions, epochs, positions),
    st.builds(Leaving, sessions, epochs, st.integers(0, (1 << 32) - 1), st.booleans()),
    st.builds(Poll, sessions, epochs),
    st.builds(Polled, sessions, epochs, st.just(limits.MAX_POSITIONS), positions, st.booleans()),
)

"""What one side encodes the other decodes; what nobody should send is a ProtocolError."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any, get_args

import frame_values as values
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from swarmd.core.errors import ProtocolError, RequestError
from swarmd.core.frames import DType, Failed, Open, Payload, Refusal, SessionFrame, Step, Token
from swarmd.core.sampling import SamplingParams
from swarmd.core.span import Span
from swarmd.v1 import peer_pb2 as pb
from swarmd.wire import encoding, frames, limits, sampling


def over_the_wire(message: pb.Frame) -> pb.Frame:
    return pb.Frame.FromString(message.SerializeToString())


@given(values.frames)
def test_every_frame_comes_back_as_it_was(frame: SessionFrame) -> None:
    assert tuple(frames.decode(over_the_wire(encoding.encode(frame)))) == (frame,)


def test_every_kind_of_frame_has_an_encoder() -> None:
    together = {Step, Token}  # as many as there are of them go in one message
    assert set(encoding._ENCODERS) | together == set(get_args(SessionFrame))


@given(st.lists(values.steps(), min_size=1, max_size=5))
def test_steps_share_a_message(steps: list[Step]) -> None:
    assert list(frames.decode(over_the_wire(encoding.encode_steps(steps)))) == steps


def test_a_memoryview_of_any_format_travels_as_its_bytes() -> None:
    view: Any = memoryview(bytes(range(16))).cast("f")
    payload = Payload(DType.FLOAT32, (1, 4), view)
    assert payload.nbytes == 16
    step = Step(values.session(1), 1, 0, 0, (1,), hidden=payload)
    (back,) = frames.decode(over_the_wire(encoding.encode(step)))
    assert isinstance(back, Step)
    assert back.hidden == Payload(DType.FLOAT32, (1, 4), bytes(range(16)))


def test_the_enums_are_the_contracts() -> None:
    assert {f"DTYPE_{d.name}": int(d) for d in DType} == dict(pb.DType.items()[1:])
    assert {f"REFUSAL_{r.name}": int(r) for r in Refusal} == dict(pb.Refusal.items()[1:])


@given(
    st.builds(
        SamplingParams,
        temperature=st.floats(0, 100),
        top_p=st.floats(1e-9, 1),
        min_p=st.floats(0, 1),
        repetition_penalty=st.floats(1e-3, 1e3),
        logit_bias=st.tuples(st.tuples(st.just(1), st.floats(-1000, 1000))),
    )
)
def test_sampling_is_the_same_after_any_number_of_hops(params: SamplingParams) -> None:
    once = sampling.sampling_from_pb(sampling.sampling_to_pb(params))
    assert sampling.sampling_from_pb(sampling.sampling_to_pb(once)) == once
    assert math.isclose(once.temperature, params.temperature, rel_tol=1e-6, abs_tol=1e-37)


@pytest.mark.parametrize("number", [0.7, 0.1, 0.0009765625, 0.00098123, 1e-9, 0.95])
def test_a_short_decimal_arrives_as_it_was_written(number: float) -> None:
    params = SamplingParams(top_p=number, logit_bias=((3, number),))
    assert sampling.sampling_from_pb(sampling.sampling_to_pb(params)) == params


@given(st.binary(max_size=200))
def test_bytes_from_a_stranger_are_a_frame_or_a_protocol_error(data: bytes) -> None:
    with contextlib.suppress(DecodeError, ProtocolError):
        frames.decode(pb.Frame.FromString(data))


@given(values.frames, st.data())
def test_a_damaged_frame_is_another_frame_or_a_protocol_error(
    frame: SessionFrame, data: st.DataObject
) -> None:
    raw = bytearray(encoding.encode(frame).SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw)))
        raw[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    with contextlib.suppress(DecodeError, ProtocolError):
        frames.decode(pb.Frame.FromString(bytes(raw)))


def step(**changed: object) -> pb.Frame:
    """A step of two positions, 7 and 8, with some fields changed."""
    fields: dict[str, object] = {
        "session": values.session(1),
        "epoch": 1,
        "position": 7,
        "chunks": [2],
        "token_ids": [3, 4],
    }
    return pb.Frame(steps=pb.Steps(steps=[pb.Step(**(fields | changed))]))  # type: ignore[arg-type]


def tensor(shape: list[int], size: int, dtype: int = 1) -> pb.Frame:
    hidden = pb.Tensor(dtype=dtype, shape=shape, data=bytes(size))  # type: ignore[arg-type]
    return step(token_ids=[], hidden=hidden)


def open_frame(change: Callable[[pb.Open], object]) -> pb.Frame:
    message = encoding.encode(
        Open(
            session=values.session(1),
            secret=bytes(16),
            epoch=1,
            fresh=True,
            model_digest=values.DIGEST,
            blocks=Span(0, 4),
            next_peer="",
            prev_peer="0" * 40,
            max_positions=10,
            prompt_tokens=2,
            sampling=SamplingParams(),
            token_ids=(1, 2),
        )
    )
    change(message.open)
    return message


def test_the_frames_that_the_next_test_spoils_are_sound() -> None:
    assert frames.decode(step())
    assert frames.decode(tensor([2, 2], 16))
    assert frames.decode(open_frame(lambda m: None))


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (pb.Frame(), "kind none"),
        (pb.Frame(hello=pb.Hello()), "kind hello"),
        (pb.Frame(heartbeat=pb.Heartbeat()), "kind heartbeat"),
        (pb.Frame(fragment=pb.Fragment()), "kind fragment"),
        (step(session=b"short"), "session id has 16 bytes"),
        (step(epoch=0), "epoch"),
        (step(epoch=1 << 31), "epoch"),
        (step(round=1 << 25), "round"),
        (step(position=(1 << 24) - 1), "position"),
        (step(chunks=[]), "chunks"),
        (step(chunks=[2, 0]), "chunk"),
        (step(chunks=[1] * 5000), "1 to 4096 chunks"),
        (step(chunks=[(1 << 32) - 1] * 4096), "not endless"),
        (step(token_ids=[]), "needs as many ids, or hidden states"),
        (step(token_ids=[1]), "needs as many ids, or hidden states"),
        (step(hidden=pb.Tensor(dtype=1, shape=[2], data=bytes(8))), "ids, or hidden"),  # type: ignore[arg-type]
        (step(wants=[6]), "elsewhere"),
        (step(wants=[9]), "elsewhere"),
        (step(wants=[8, 7]), "ascend"),
        (step(wants=[8, 8]), "ascend"),
        (step(wants=[7, 8, 8]), "elsewhere"),
        (tensor([2], 8, dtype=0), "unknown dtype 0"),
        (tensor([2], 8, dtype=4), "unknown dtype 4"),
        (tensor([2], 8, dtype=-1), "unknown dtype -1"),
        (tensor([], 4), "dimensions"),
        (tensor([2, 1, 1, 1], 8), "dimensions"),
        (tensor([2, 0], 0), "none of them 0"),
        (tensor([2, 2], 15), "is 16 bytes, not 15"),
        (tensor([2, 2], 17), "is 16 bytes, not 17"),
        (tensor([2, 1 << 31, 1 << 31], 16), "bytes, not 16"),
        (tensor([1, 4], 16), "1 rows for 2 positions"),
        (pb.Frame(steps=pb.Steps(steps=[pb.Step()] * 4097)), "4097 entries"),
        (pb.Frame(keep=pb.Keep(sessions=[bytes(16)] * 4097)), "4097 entries"),
        (pb.Frame(keep=pb.Keep(sessions=[b""])), "session id"),
        (open_frame(lambda m: setattr(m, "secret", b"")), "secret"),
        (open_frame(lambda m: setattr(m, "model_digest", "AB" * 32)), "digest"),
        (open_frame(lambda m: setattr(m, "model_digest", values.DIGEST + "\n")), "digest"),
        (open_frame(lambda m: setattr(m, "end", 0)), "span"),
        (open_frame(lambda m: setattr(m, "end", 5000)), "block 5000"),
        (open_frame(lambda m: setattr(m, "prev_peer", "")), "peer id"),
        (open_frame(lambda m: setattr(m, "next_peer", "../../etc")), "peer id"),
        (open_frame(lambda m: setattr(m, "max_positions", 1)), "2 ids for 1 positions"),
        (open_frame(lambda m: setattr(m, "max_positions", 1 << 31)), "max_positions"),
        (open_frame(lambda m: m.prefix.append(bytes(16))), "1 units of 0 positions, for 2"),
        (
            open_frame(lambda m: (m.prefix.append(bytes(16)), setattr(m, "prefix_unit", 3))),
            "units of 3",
        ),
        (open_frame(lambda m: (m.prefix.append(b"?"), setattr(m, "prefix_unit", 1))), "16 bytes"),
        (open_frame(lambda m: setattr(m, "prefix_grain", 1 << 31)), "prefix_grain"),
        (open_frame(lambda m: setattr(m.sampling, "temperature", math.nan)), "temperature"),
        (open_frame(lambda m: setattr(m.sampling, "top_p", math.inf)), "top_p"),
        (open_frame(lambda m: setattr(m.sampling, "min_p", -0.5)), "min_p"),
        (open_frame(lambda m: setattr(m.sampling, "top_logprobs", 21)), "top_logprobs"),
        (
            open_frame(lambda m: m.sampling.logit_bias.add(token_id=1, bias=math.nan)),
            "logit_bias",
        ),
        (
            pb.Frame(opened=pb.Opened(session=values.session(1), epoch=1, refusal=99)),  # type: ignore[arg-type]
            "unknown refusal 99",
        ),
        (
            pb.Frame(failed=pb.Failed(session=values.session(1), epoch=1)),
            "without a reason",
        ),
        (
            pb.Frame(
                tokens=pb.Tokens(
                    tokens=[pb.Token(session=values.session(1), epoch=1, top=[pb.TopToken()] * 65)]
                )
            ),
            "65 likely tokens",
        ),
    ],
)
def test_a_spoilt_frame_is_refused_by_name(message: pb.Frame, complaint: str) -> None:
    with pytest.raises(ProtocolError, match=complaint):
        frames.decode(over_the_wire(message))


def test_sampling_of_a_request_is_the_callers_fault_not_the_peers() -> None:
    with pytest.raises(RequestError, match="temperature"):
        sampling.sampling_from_pb(pb.Sampling(temperature=math.nan))


def test_an_explanation_is_cut_and_never_stops_a_frame() -> None:
    failed = Failed(values.session(1), 1, Refusal.BAD_STEP, "\udcff" + "x" * 5000)
    (back,) = frames.decode(over_the_wire(encoding.encode(failed)))
    assert isinstance(back, Failed)
    assert back.message == "?" + "x" * (limits.MAX_TEXT - 1)

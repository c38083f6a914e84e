"""Sampling parameters to protobuf and back; what they mean is `swarmd.core.sampling`'s."""

from __future__ import annotations

import struct

from swarmd.core.sampling import SamplingParams
from swarmd.v1 import peer_pb2 as pb

_MAX_FLOAT32 = 3.4e38


def sampling_to_pb(params: SamplingParams) -> pb.Sampling:
    """Return sampling parameters as they travel."""
    return pb.Sampling(
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        logit_bias=[pb.LogitBias(token_id=i, bias=b) for i, b in params.logit_bias],
        seed=params.seed,
        top_logprobs=params.top_logprobs,
    )


def sampling_from_pb(message: pb.Sampling) -> SamplingParams:
    """Return checked sampling parameters. Raises RequestError when one is out of range."""
    return SamplingParams(
        temperature=_exact(message.temperature),
        top_k=message.top_k,
        top_p=_exact(message.top_p) or 1.0,
        min_p=_exact(message.min_p),
        repetition_penalty=_exact(message.repetition_penalty) or 1.0,
        presence_penalty=_exact(message.presence_penalty),
        frequency_penalty=_exact(message.frequency_penalty),
        logit_bias=tuple((b.token_id, _exact(b.bias)) for b in message.logit_bias),
        seed=message.seed,
        top_logprobs=message.top_logprobs,
    )


def _exact(value: float) -> float:
    """Undo what float32 does to a short decimal: 0.7 arrives as 0.7, not as 0.699999988.

    The shortest decimal of the same float32, so that any number of hops gives the same value.
    """
    for digits in range(6, 10):
        short = float(f"{value:.{digits}g}")
        if abs(short) < _MAX_FLOAT32 and struct.unpack("f", struct.pack("f", short))[0] == value:
            return short
    return value

"""A client's request, checked against the model before anything is reserved for it.

Running it is `swarmd.node.coordinator`'s business; `swarmd.text` renders chats and tokenises.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from swarmd.core.errors import PromptTooLong, RequestError
from swarmd.core.frames import SECRET_BYTES, SESSION_ID_BYTES
from swarmd.core.peers import ModelInfo
from swarmd.core.route import Hop
from swarmd.core.sampling import SamplingParams
from swarmd.core.span import Span
from swarmd.v1 import inference_pb2 as pb
from swarmd.wire import frames, sampling

DEFAULT_MAX_TOKENS = 1024
MAX_STOP_IDS = 256
MAX_SALT = 256
MAX_PRIORITY = 1000


@dataclass(frozen=True, slots=True)
class Resumption:
    """Where a client goes on that has lost its coordinator."""

    session: bytes
    secret: bytes
    epoch: int
    output_ids: tuple[int, ...]
    text_chars: int
    chunk_size: int
    route: tuple[Hop, ...]


@dataclass(frozen=True, slots=True)
class Generation:
    """One generation, ready to run."""

    session: bytes
    secret: bytes
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    max_tokens: int
    stop: tuple[str, ...]
    stop_token_ids: frozenset[int]
    include_stop: bool
    ids_only: bool
    resume: Resumption | None = None
    cache_salt: str = ""
    """Prefixes are shared with generations of the same salt only."""
    priority: int = 0
    """Of generations that wait for room, those with a lower number go first."""


def parse(
    request: pb.GenerateRequest, model: ModelInfo, prompt_ids: Callable[[], Sequence[int]]
) -> Generation:
    """Return the checked generation. `prompt_ids` tokenises; it is not called on a resumption.

    Raises RequestError, or PromptTooLong with the numbers.
    """
    resume = _resumption(request.resume) if request.HasField("resume") else None
    ids = tuple(request.resume.prompt_ids) if resume else tuple(prompt_ids())
    check_ids(ids, model, "prompt")
    if resume:
        check_ids(resume.output_ids or (0,), model, "output")
    max_tokens = _max_tokens(request.max_tokens, len(ids), model)
    return Generation(
        session=resume.session if resume else secrets.token_bytes(SESSION_ID_BYTES),
        secret=resume.secret if resume else secrets.token_bytes(SECRET_BYTES),
        prompt_ids=ids,
        sampling=_sampling(request, model),
        max_tokens=max_tokens,
        stop=tuple(request.stop),
        stop_token_ids=_stop_ids(request, model),
        include_stop=request.include_stop,
        ids_only=request.ids_only,
        resume=resume,
        cache_salt=_cache_salt(request.cache_salt),
        priority=_priority(request.priority),
    )


def _priority(priority: int) -> int:
    if abs(priority) > MAX_PRIORITY:
        raise RequestError(f"priority {priority} is not within -{MAX_PRIORITY} and {MAX_PRIORITY}")
    return priority


def _cache_salt(salt: str) -> str:
    if len(salt) > MAX_SALT:
        raise RequestError(f"a cache salt of {len(salt)} characters; at most {MAX_SALT} fit")
    return salt


def check_ids(ids: Sequence[int], model: ModelInfo, what: str) -> None:
    """Raise RequestError unless there are ids, all of them the model's; `what` names them."""
    if not ids:
        raise RequestError(f"the {what} is empty: at least one token is needed")
    if max(ids) >= model.vocab_size:
        raise RequestError(
            f"{what} id {max(ids)} is out of range: {model.name} has {model.vocab_size} token ids"
        )


def _max_tokens(asked: int, prompt: int, model: ModelInfo) -> int:
    room = model.max_model_len - prompt
    if room < 1 or asked > room:
        wanted = f" and {asked} more were asked for" if asked else ""
        raise PromptTooLong(
            f"the prompt has {prompt} tokens{wanted}; {model.name} holds {model.max_model_len} "
            "in all: shorten the prompt or lower max_tokens"
        )
    return asked or min(DEFAULT_MAX_TOKENS, room)


def _sampling(request: pb.GenerateRequest, model: ModelInfo) -> SamplingParams:
    params = sampling.sampling_from_pb(request.sampling)
    for token, _ in params.logit_bias:
        if token >= model.vocab_size:
            raise RequestError(f"logit_bias id {token} is out of range: {model.vocab_size} ids")
    if not request.sampling.HasField("seed"):
        params = replace(params, seed=secrets.randbits(63))
    return params


def _stop_ids(request: pb.GenerateRequest, model: ModelInfo) -> frozenset[int]:
    if len(request.stop_token_ids) > MAX_STOP_IDS:
        raise RequestError(
            f"{len(request.stop_token_ids)} stop ids; at most {MAX_STOP_IDS} are allowed"
        )
    eos = () if request.ignore_eos else model.eos_token_ids
    return frozenset((*request.stop_token_ids, *eos))


def _resumption(message: pb.ResumeFrom) -> Resumption:
    if len(message.session) != SESSION_ID_BYTES or len(message.secret) != SECRET_BYTES:
        raise RequestError("a resumption needs the session's id and secret, 16 bytes each")
    if not 1 <= message.chunk_size <= 1 << 20 or not 1 <= message.epoch < 1 << 30:
        raise RequestError("a resumption needs the chunk size and epoch that the session had")
    return Resumption(
        session=message.session,
        secret=message.secret,
        epoch=message.epoch,
        output_ids=tuple(message.output_ids),
        text_chars=message.text_chars,
        chunk_size=message.chunk_size,
        route=tuple(
            Hop(frames.peer_id(hop.peer_id), Span(hop.start, hop.end), hop.address, hop.pid)
            for hop in message.route[:256]
        ),
    )

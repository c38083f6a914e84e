"""A client's request, checked against the model before anything is reserved for it.

Running it is `swarmd.node.coordinator`'s business; `swarmd.text` renders chats and tokenises.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from swarmd.core.errors import PromptTooLong, RequestError
from swarmd.core.frames import SECRET_BYTES, SESSION_ID_BYTES
from swarmd.core.peers import MAX_PRECISION, ModelInfo
from swarmd.core.prefix import prefix_keys
from swarmd.core.route import Hop
from swarmd.core.sampling import SamplingParams
from swarmd.core.span import Span
from swarmd.node.kept import Kept
from swarmd.pipeline.request import Request
from swarmd.v1 import inference_pb2 as pb
from swarmd.wire import frames, sampling

DEFAULT_MAX_TOKENS = 1024
MAX_STOP_IDS = 256
MAX_SALT = 256
MAX_PRIORITY = 1000
MAX_STANDBY = 1
MAX_BORDERS = 4096
MAX_WAITED_S = 600.0
"""What a client says of its waiting spoils no figure for ever."""


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
    standbys: tuple[Hop, ...] = ()
    borders: tuple[int, ...] = ()
    lost: str = ""
    """The coordinator that the client has lost, if that said nothing; peer id."""
    waited_s: float = 0.0
    """For how long the client has waited for its next token."""


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
    standby: int = 0
    """How many copies of each hop's KV other peers hold meanwhile."""
    cache_salt: str = ""
    """Prefixes are shared with generations of the same salt only."""
    priority: int = 0
    """Of generations that wait for room, those with a lower number go first."""
    tenant: bytes = b""
    """Whose it is: tenants take turns."""
    past: Kept | None = None
    """The kept session with which the prompt begins."""
    keep_s: float = 0.0
    """For how long what is computed is kept after the end."""

    @property
    def borders(self) -> tuple[int, ...]:
        """Where in the prompt outputs of former turns begin and end."""
        if self.resume:
            return self.resume.borders
        return self.past.next_borders if self.past else ()


def parse(
    request: pb.GenerateRequest,
    model: ModelInfo,
    prompt_ids: Sequence[int],
    past: Kept | None = None,
    tenant: bytes = b"",
    standby: int = 0,
) -> Generation:
    """Return the checked generation. `prompt_ids` count for nothing on a resumption.

    They are what follows the `past`, or with a chat all; `standby` is for requests that do not say.
    Raises RequestError, or PromptTooLong with the numbers.
    """
    if request.HasField("resume"):
        prompt_ids = request.resume.prompt_ids
    follows = past is not None and not request.HasField("chat")
    length = len(prompt_ids) + (len(past.ids) if past is not None and follows else 0)
    # First of all: what follows takes time for each id.
    max_tokens = _max_tokens(request.max_tokens, length, model)
    resume = _resumption(request.resume, model) if request.HasField("resume") else None
    ids = tuple(prompt_ids)
    if past is not None and not follows:
        past = _common(past, ids)
    elif past is not None:
        ids = (*past.ids, *ids)
    check_ids(ids, model, "prompt")
    if resume:
        check_ids(resume.output_ids or (0,), model, "output")
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
        tenant=tenant,
        past=past,
        keep_s=_keep(request.keep_alive_s),
        standby=_standby(request.standby if request.HasField("standby") else standby),
    )


def _standby(count: int) -> int:
    if count > MAX_STANDBY:
        raise RequestError(f"{count} standbys of each hop were asked for; at most {MAX_STANDBY}")
    return count


def _common(past: Kept, ids: Sequence[int]) -> Kept | None:
    """Return as much of a kept session as a conversation begins with, if anything."""
    pairs = zip(past.ids, ids, strict=False)
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(past.ids), len(ids)))
    return past.first(same) if same else None


def _keep(seconds: float) -> float:
    if not 0 <= seconds < float("inf"):
        raise RequestError(f"keep_alive of {seconds} s: a number of seconds from 0 on is needed")
    return seconds


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


def _resumption(message: pb.ResumeFrom, model: ModelInfo) -> Resumption:
    if len(message.session) != SESSION_ID_BYTES or len(message.secret) != SECRET_BYTES:
        raise RequestError("a resumption needs the session's id and secret, 16 bytes each")
    if not 1 <= message.chunk_size <= 1 << 20 or not 1 <= message.epoch < 1 << 30:
        raise RequestError("a resumption needs the chunk size and epoch that the session had")
    if len(message.output_ids) > model.max_model_len:
        raise RequestError(f"a resumption after more than {model.max_model_len} ids of output")
    return Resumption(
        session=message.session,
        secret=message.secret,
        epoch=message.epoch,
        output_ids=tuple(message.output_ids),
        text_chars=message.text_chars,
        chunk_size=message.chunk_size,
        route=_hops(message.route),
        standbys=_hops(message.standbys),
        borders=_borders(message),
        lost=frames.peer_id(message.lost) if message.lost else "",
        waited_s=min(message.waited_s, MAX_WAITED_S) if message.waited_s > 0 else 0.0,
    )


def _hops(hops: Sequence[pb.Hop]) -> tuple[Hop, ...]:
    return tuple(
        Hop(
            frames.peer_id(hop.peer_id),
            Span(hop.start, hop.end),
            hop.address,
            hop.pid,
            hop.precision[:MAX_PRECISION],
        )
        for hop in hops[:256]
    )


def _borders(message: pb.ResumeFrom) -> tuple[int, ...]:
    borders = tuple(message.borders)
    if len(borders) > MAX_BORDERS or len(borders) % 2 or list(borders) != sorted(borders):
        raise RequestError("a resumption's borders ascend, in pairs")
    if borders and borders[-1] > len(message.prompt_ids):
        raise RequestError("a resumption's borders lie within its prompt")
    return borders


def session_request(
    generation: Generation, model: ModelInfo, own_id: str, chunk_size: int, prefix_unit: int
) -> Request:
    """Return what a driver is given of a generation."""
    resume, salt = generation.resume, generation.cache_salt.encode()
    ids = generation.prompt_ids
    keys = prefix_keys(ids, model.digest, chunk_size, salt, prefix_unit) if prefix_unit else ()
    return Request(
        session=generation.session,
        secret=generation.secret,
        model=model,
        me=own_id,
        prompt_ids=ids,
        sampling=generation.sampling,
        max_tokens=generation.max_tokens,
        chunk_size=chunk_size,
        prefix=keys,
        prefix_unit=prefix_unit,
        cache_salt=salt,
        stop_ids=generation.stop_token_ids,
        ignore_eos=True,  # the model's own ids are among stop_ids, unless the client said not
        past=generation.past.past if generation.past else None,
        claimed=resume is not None or (generation.past is not None and generation.past.told),
        borders=generation.borders,
        keep_s=generation.keep_s,
        tenant=generation.tenant,
        known_ids=resume.output_ids if resume else (),
        epoch=resume.epoch if resume else 0,
        route=resume.route if resume else (),
        standbys=resume.standbys if resume else (),
        standby=generation.standby,
    )

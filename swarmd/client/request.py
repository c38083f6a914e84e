"""What a caller asks for, checked, as a GenerateRequest; and the request with which to resume.

Sending it is `swarmd.client.generation`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict, cast

from swarmd.core.errors import RequestError
from swarmd.core.results import KeptSession
from swarmd.core.sampling import MAX_STOP_IDS, SamplingParams
from swarmd.v1 import inference_pb2 as pb
from swarmd.v1 import peer_pb2
from swarmd.wire.limits import RECEIVE_MESSAGE_BYTES
from swarmd.wire.sampling import sampling_to_pb

Prompt = str | Sequence[int] | Sequence[Mapping[str, str]]
"""Text; or token ids, sent as they are; or chat messages with "role" and "content"."""

MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 256
MAX_PRIORITY = 1000
_MAX_ID = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """Everything that a generation takes besides its prompt; names as in vLLM."""

    model: str = ""
    """Served model name, or `NAME@DIGEST`; empty: that of the node that is asked."""
    max_tokens: int | None = None
    """None: up to the model's length, at most 1,024."""
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    seed: int | None = None
    """None: the coordinator draws one, `result.seed` tells it."""
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    include_stop: bool = False
    ignore_eos: bool = False
    top_logprobs: int = 0
    ids_only: bool = False
    """Text is neither wanted nor made; works without a tokenizer."""
    cache_salt: str = ""
    """What is computed for the beginning of a prompt is used again for prompts of the same salt
    only: tenants that must not learn of each other have different ones."""
    priority: int = 0
    """Of generations that wait for room, those with a lower number go first; -1000 to 1000."""
    keep_alive: float = 0.0
    """Seconds for which the swarm keeps what it has computed, after the end: `result.kept`."""
    continue_from: KeptSession | str | None = None
    """Go on from a kept session: text and ids are what follows it and may be empty, messages are
    the whole conversation. Given to several generations, it forks."""
    recompute: bool = False
    """If what is to be gone on from is lost, compute it again; otherwise that is LeaseEnded, except
    with messages, which are whole."""
    standby: int | None = None
    """Copies of each hop's KV that other nodes hold meanwhile, 0 or 1, so that nothing is replayed
    when one dies; None: as the node that coordinates is configured."""
    client: str = ""
    """Whose generation it is: clients take turns. Empty: the swarm goes by the address."""


class GenerateArguments(TypedDict, total=False):
    """The keyword arguments of `generate`: the fields of `GenerateOptions`, and how to call."""

    model: str
    max_tokens: int | None
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float] | None
    seed: int | None
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    include_stop: bool
    ignore_eos: bool
    top_logprobs: int
    ids_only: bool
    cache_salt: str
    priority: int
    keep_alive: float
    continue_from: KeptSession | str | None
    recompute: bool
    standby: int | None
    client: str
    timeout: float | None
    """Seconds for the whole generation, resuming included."""
    allow_redirect: bool
    """Go where the node sends us: it costs a connection and saves a hop for every token."""


def generate_request(prompt: Prompt, options: GenerateOptions) -> pb.GenerateRequest:
    """Return the request. Raises RequestError for what no node would accept."""
    request = pb.GenerateRequest(
        model=_text(options.model, "model"),
        sampling=_sampling(options),
        max_tokens=_max_tokens(options.max_tokens),
        stop=_stop(options.stop),
        stop_token_ids=_ids(options.stop_token_ids, "stop_token_ids"),
        include_stop=options.include_stop,
        ignore_eos=options.ignore_eos,
        ids_only=options.ids_only,
        cache_salt=_text(options.cache_salt, "cache_salt"),
        priority=_priority(options.priority),
        keep_alive_s=_keep_alive(options.keep_alive),
        client=_text(options.client, "client"),
    )
    past = options.continue_from
    if options.standby is not None:
        request.standby = _standby(options.standby)
    if past is not None:
        request.continue_from.CopyFrom(_continue(past, options.recompute))
    elif options.recompute:
        raise RequestError("recompute needs a session to go on from: give continue_from")
    if len(request.stop_token_ids) > MAX_STOP_IDS:
        raise RequestError(f"{len(request.stop_token_ids)} stop_token_ids, at most {MAX_STOP_IDS}")
    if past is None or prompt:
        _set_prompt(request, prompt)
    else:
        request.token_ids.SetInParent()
    _check_size(request)
    return request


def _standby(count: int) -> int:
    if count not in (0, 1):
        raise RequestError(f"standby is 0 or 1 copies of each hop's KV, not {count!r}")
    return count


def kept_session(value: KeptSession | str) -> KeptSession:
    """Return the session that is meant. Raises RequestError."""
    return KeptSession.parse(value) if isinstance(value, str) else value


def release_request(kept: KeptSession) -> pb.ReleaseRequest:
    """Return the request that ends its lease. Raises RequestError."""
    session, secret = _key(kept)
    return pb.ReleaseRequest(session=session, secret=secret)


def _key(kept: KeptSession) -> tuple[bytes, bytes]:
    try:
        return bytes.fromhex(kept.session), bytes.fromhex(kept.secret)
    except ValueError:
        raise RequestError("a kept session's id and secret are hex digits") from None


def _continue(value: KeptSession | str, recompute: bool) -> pb.ContinueFrom:
    kept = kept_session(value)
    if recompute and not kept.token_ids:
        raise RequestError(
            "recompute needs the session's token_ids, and its name does not say them"
        )
    session, secret = _key(kept)
    return pb.ContinueFrom(
        session=session,
        secret=secret,
        tokens=kept.tokens,
        past_ids=kept.token_ids if recompute else (),
    )


def _keep_alive(seconds: float) -> float:
    if not 0 <= seconds < float("inf"):
        raise RequestError(f"keep_alive must be a number of seconds from 0 on, not {seconds}")
    return seconds


def _priority(priority: int) -> int:
    if not isinstance(priority, int) or abs(priority) > MAX_PRIORITY:
        raise RequestError(f"priority {priority!r} is no whole number from -1000 to 1000")
    return priority


def tokenize_request(prompt: Prompt, model: str, special: bool) -> pb.TokenizeRequest:
    """Return the request for text or messages; for ids, to detokenize."""
    request = pb.TokenizeRequest(model=_text(model, "model"), add_special_tokens=special)
    _set_prompt(request, prompt)
    _check_size(request)
    return request


def resume_request(
    request: pb.GenerateRequest,
    started: pb.Started,
    output_ids: Sequence[int],
    chars: int,
    lost: str = "",
    waited_s: float = 0.0,
) -> pb.GenerateRequest:
    """Return the request that goes on where `started` and the tokens since have come to.

    `started` carries the latest epoch and route, `lost` is a coordinator that does not answer. The
    prompt goes as ids, and only once. `waited_s` is for the node's own figures.
    """
    resumed = pb.GenerateRequest()
    resumed.CopyFrom(request)
    resumed.model = started.model_digest or started.model
    resumed.sampling.CopyFrom(started.sampling)
    resumed.max_tokens = started.max_tokens
    resumed.ClearField("prompt")
    resumed.ClearField("continue_from")
    resumed.allow_redirect = False
    resumed.resume.CopyFrom(
        pb.ResumeFrom(
            session=started.session,
            secret=started.secret,
            epoch=started.epoch,
            prompt_ids=started.prompt_ids,
            output_ids=output_ids,
            text_chars=chars,
            chunk_size=started.chunk_size,
            route=started.route,
            standbys=started.standbys,
            borders=started.borders,
            lost=lost,
            waited_s=waited_s,
        )
    )
    return resumed


def _sampling(options: GenerateOptions) -> peer_pb2.Sampling:
    params = SamplingParams(
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        presence_penalty=options.presence_penalty,
        frequency_penalty=options.frequency_penalty,
        logit_bias=tuple((options.logit_bias or {}).items()),
        seed=0 if options.seed is None else options.seed,
        top_logprobs=options.top_logprobs,
    )
    message = sampling_to_pb(params)
    if options.seed is None:
        message.ClearField("seed")
    return message


def _max_tokens(value: int | None) -> int:
    if value is not None and not 1 <= value <= _MAX_ID:
        raise RequestError(f"max_tokens must be between 1 and {_MAX_ID}, not {value}")
    return value or 0


def _stop(value: str | Sequence[str]) -> list[str]:
    strings = [value] if isinstance(value, str) else list(value)
    if len(strings) > MAX_STOP_STRINGS:
        raise RequestError(f"{len(strings)} stop strings, at most {MAX_STOP_STRINGS}")
    for text in strings:
        _text(text, "a stop string")
        if not 1 <= len(text) <= MAX_STOP_CHARS:
            raise RequestError(
                f"a stop string has 1 to {MAX_STOP_CHARS} characters; {text[:40]!r} has {len(text)}"
            )
    return strings


def _ids(values: Sequence[int], what: str) -> list[int]:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_ID:
            raise RequestError(f"{what}: {value!r} is not a token id")
    return list(values)


def _set_prompt(request: pb.GenerateRequest | pb.TokenizeRequest, prompt: Prompt) -> None:
    if isinstance(prompt, str):
        request.text = _text(prompt, "the prompt")
    elif not isinstance(prompt, Sequence) or not prompt:
        raise RequestError("the prompt must be text, token ids or messages, and not empty")
    elif all(isinstance(item, Mapping) for item in prompt):
        messages = cast(Sequence[Mapping[str, str]], prompt)
        request.chat.CopyFrom(pb.Chat(messages=[_message(item) for item in messages]))
    else:
        request.token_ids.CopyFrom(pb.TokenIds(ids=_ids(cast(Sequence[int], prompt), "prompt")))


def _check_size(request: pb.GenerateRequest | pb.TokenizeRequest) -> None:
    size = request.ByteSize()
    if size > RECEIVE_MESSAGE_BYTES:
        raise RequestError(
            f"the request has {size:,} bytes, at most {RECEIVE_MESSAGE_BYTES:,} are taken: "
            "shorten the prompt"
        )


def _message(item: Mapping[str, str]) -> pb.Message:
    if set(item) != {"role", "content"} or not all(isinstance(v, str) for v in item.values()):
        raise RequestError(
            f'a message is {{"role": TEXT, "content": TEXT}}; this one has {sorted(item)}'
        )
    return pb.Message(
        role=_text(item["role"], "a role"), content=_text(item["content"], "a message")
    )


def _text(value: str, what: str) -> str:
    """Return the text. Raises RequestError if it cannot be sent, as bytes of another encoding."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{what} is not valid text at character {error.start + 1}: it must be UTF-8"
        ) from None
    return value

from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DTYPE_UNSPECIFIED: _ClassVar[DType]
    DTYPE_FLOAT32: _ClassVar[DType]
    DTYPE_BFLOAT16: _ClassVar[DType]
    DTYPE_FLOAT16: _ClassVar[DType]

class Refusal(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REFUSAL_UNSPECIFIED: _ClassVar[Refusal]
    REFUSAL_WRONG_MODEL: _ClassVar[Refusal]
    REFUSAL_WRONG_BLOCKS: _ClassVar[Refusal]
    REFUSAL_KV_EXHAUSTED: _ClassVar[Refusal]
    REFUSAL_TOO_LONG: _ClassVar[Refusal]
    REFUSAL_WRONG_SECRET: _ClassVar[Refusal]
    REFUSAL_STALE_EPOCH: _ClassVar[Refusal]
    REFUSAL_DRAINING: _ClassVar[Refusal]
    REFUSAL_UNKNOWN_PEER: _ClassVar[Refusal]
    REFUSAL_UNKNOWN_SESSION: _ClassVar[Refusal]
    REFUSAL_NEXT_UNREACHABLE: _ClassVar[Refusal]
    REFUSAL_COMPUTE_FAILED: _ClassVar[Refusal]
    REFUSAL_BAD_STEP: _ClassVar[Refusal]
    REFUSAL_BAD_REQUEST: _ClassVar[Refusal]
    REFUSAL_KEPT_FULL: _ClassVar[Refusal]
DTYPE_UNSPECIFIED: DType
DTYPE_FLOAT32: DType
DTYPE_BFLOAT16: DType
DTYPE_FLOAT16: DType
REFUSAL_UNSPECIFIED: Refusal
REFUSAL_WRONG_MODEL: Refusal
REFUSAL_WRONG_BLOCKS: Refusal
REFUSAL_KV_EXHAUSTED: Refusal
REFUSAL_TOO_LONG: Refusal
REFUSAL_WRONG_SECRET: Refusal
REFUSAL_STALE_EPOCH: Refusal
REFUSAL_DRAINING: Refusal
REFUSAL_UNKNOWN_PEER: Refusal
REFUSAL_UNKNOWN_SESSION: Refusal
REFUSAL_NEXT_UNREACHABLE: Refusal
REFUSAL_COMPUTE_FAILED: Refusal
REFUSAL_BAD_STEP: Refusal
REFUSAL_BAD_REQUEST: Refusal
REFUSAL_KEPT_FULL: Refusal

class IntroduceRequest(_message.Message):
    __slots__ = ("peer_id", "version")
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    peer_id: str
    version: str
    def __init__(self, peer_id: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class IntroduceReply(_message.Message):
    __slots__ = ("peer_id", "version", "directory_addresses", "peer_addresses", "wall_time_s", "announced_since_s")
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    PEER_ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    WALL_TIME_S_FIELD_NUMBER: _ClassVar[int]
    ANNOUNCED_SINCE_S_FIELD_NUMBER: _ClassVar[int]
    peer_id: str
    version: str
    directory_addresses: _containers.RepeatedScalarFieldContainer[str]
    peer_addresses: _containers.RepeatedScalarFieldContainer[str]
    wall_time_s: float
    announced_since_s: float
    def __init__(self, peer_id: _Optional[str] = ..., version: _Optional[str] = ..., directory_addresses: _Optional[_Iterable[str]] = ..., peer_addresses: _Optional[_Iterable[str]] = ..., wall_time_s: _Optional[float] = ..., announced_since_s: _Optional[float] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("hello", "heartbeat", "open", "opened", "resume", "steps", "tokens", "gap", "failed", "close", "keep", "fragment", "kv", "copied", "goodbye", "copy", "leaving", "poll", "polled", "release", "checksum")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    GAP_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    FRAGMENT_FIELD_NUMBER: _ClassVar[int]
    KV_FIELD_NUMBER: _ClassVar[int]
    COPIED_FIELD_NUMBER: _ClassVar[int]
    GOODBYE_FIELD_NUMBER: _ClassVar[int]
    COPY_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    POLL_FIELD_NUMBER: _ClassVar[int]
    POLLED_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    heartbeat: Heartbeat
    open: Open
    opened: Opened
    resume: Resume
    steps: Steps
    tokens: Tokens
    gap: Gap
    failed: Failed
    close: Close
    keep: Keep
    fragment: Fragment
    kv: KV
    copied: Copied
    goodbye: Goodbye
    copy: Copy
    leaving: Leaving
    poll: Poll
    polled: Polled
    release: Release
    checksum: int
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., open: _Optional[_Union[Open, _Mapping]] = ..., opened: _Optional[_Union[Opened, _Mapping]] = ..., resume: _Optional[_Union[Resume, _Mapping]] = ..., steps: _Optional[_Union[Steps, _Mapping]] = ..., tokens: _Optional[_Union[Tokens, _Mapping]] = ..., gap: _Optional[_Union[Gap, _Mapping]] = ..., failed: _Optional[_Union[Failed, _Mapping]] = ..., close: _Optional[_Union[Close, _Mapping]] = ..., keep: _Optional[_Union[Keep, _Mapping]] = ..., fragment: _Optional[_Union[Fragment, _Mapping]] = ..., kv: _Optional[_Union[KV, _Mapping]] = ..., copied: _Optional[_Union[Copied, _Mapping]] = ..., goodbye: _Optional[_Union[Goodbye, _Mapping]] = ..., copy: _Optional[_Union[Copy, _Mapping]] = ..., leaving: _Optional[_Union[Leaving, _Mapping]] = ..., poll: _Optional[_Union[Poll, _Mapping]] = ..., polled: _Optional[_Union[Polled, _Mapping]] = ..., release: _Optional[_Union[Release, _Mapping]] = ..., checksum: _Optional[int] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol", "peer_id", "address")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    peer_id: str
    address: str
    def __init__(self, protocol: _Optional[int] = ..., peer_id: _Optional[str] = ..., address: _Optional[str] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("sent_us", "echo_us", "echo_age_us", "coordinate")
    SENT_US_FIELD_NUMBER: _ClassVar[int]
    ECHO_US_FIELD_NUMBER: _ClassVar[int]
    ECHO_AGE_US_FIELD_NUMBER: _ClassVar[int]
    COORDINATE_FIELD_NUMBER: _ClassVar[int]
    sent_us: int
    echo_us: int
    echo_age_us: int
    coordinate: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, sent_us: _Optional[int] = ..., echo_us: _Optional[int] = ..., echo_age_us: _Optional[int] = ..., coordinate: _Optional[_Iterable[float]] = ...) -> None: ...

class Goodbye(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Fragment(_message.Message):
    __slots__ = ("frame", "total_bytes", "offset", "data")
    FRAME_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    frame: int
    total_bytes: int
    offset: int
    data: bytes
    def __init__(self, frame: _Optional[int] = ..., total_bytes: _Optional[int] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("dtype", "shape", "data")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    dtype: DType
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, dtype: _Optional[_Union[DType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class LogitBias(_message.Message):
    __slots__ = ("token_id", "bias")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    BIAS_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    bias: float
    def __init__(self, token_id: _Optional[int] = ..., bias: _Optional[float] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "seed", "top_logprobs")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: _containers.RepeatedCompositeFieldContainer[LogitBias]
    seed: int
    top_logprobs: int
    def __init__(self, temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., min_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., logit_bias: _Optional[_Iterable[_Union[LogitBias, _Mapping]]] = ..., seed: _Optional[int] = ..., top_logprobs: _Optional[int] = ...) -> None: ...

class Past(_message.Message):
    __slots__ = ("session", "secret", "tokens", "floor", "run")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    FLOOR_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    secret: bytes
    tokens: int
    floor: int
    run: int
    def __init__(self, session: _Optional[bytes] = ..., secret: _Optional[bytes] = ..., tokens: _Optional[int] = ..., floor: _Optional[int] = ..., run: _Optional[int] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ("session", "secret", "epoch", "fresh", "model_digest", "start", "end", "next_peer", "prev_peer", "max_positions", "prompt_tokens", "sampling", "token_ids", "prefix", "prefix_unit", "prefix_grain", "past", "keeps", "tenant", "donor", "claimed", "computed")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    FRESH_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    NEXT_PEER_FIELD_NUMBER: _ClassVar[int]
    PREV_PEER_FIELD_NUMBER: _ClassVar[int]
    MAX_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    PREFIX_UNIT_FIELD_NUMBER: _ClassVar[int]
    PREFIX_GRAIN_FIELD_NUMBER: _ClassVar[int]
    PAST_FIELD_NUMBER: _ClassVar[int]
    KEEPS_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    DONOR_FIELD_NUMBER: _ClassVar[int]
    CLAIMED_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    secret: bytes
    epoch: int
    fresh: bool
    model_digest: str
    start: int
    end: int
    next_peer: str
    prev_peer: str
    max_positions: int
    prompt_tokens: int
    sampling: Sampling
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    prefix: _containers.RepeatedScalarFieldContainer[bytes]
    prefix_unit: int
    prefix_grain: int
    past: Past
    keeps: bool
    tenant: bytes
    donor: str
    claimed: bool
    computed: int
    def __init__(self, session: _Optional[bytes] = ..., secret: _Optional[bytes] = ..., epoch: _Optional[int] = ..., fresh: _Optional[bool] = ..., model_digest: _Optional[str] = ..., start: _Optional[int] = ..., end: _Optional[int] = ..., next_peer: _Optional[str] = ..., prev_peer: _Optional[str] = ..., max_positions: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., token_ids: _Optional[_Iterable[int]] = ..., prefix: _Optional[_Iterable[bytes]] = ..., prefix_unit: _Optional[int] = ..., prefix_grain: _Optional[int] = ..., past: _Optional[_Union[Past, _Mapping]] = ..., keeps: _Optional[bool] = ..., tenant: _Optional[bytes] = ..., donor: _Optional[str] = ..., claimed: _Optional[bool] = ..., computed: _Optional[int] = ...) -> None: ...

class Opened(_message.Message):
    __slots__ = ("session", "epoch", "refusal", "message", "kv_length", "log_start", "kv_free_bytes", "pid", "chunk_exact", "copies")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    KV_LENGTH_FIELD_NUMBER: _ClassVar[int]
    LOG_START_FIELD_NUMBER: _ClassVar[int]
    KV_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    CHUNK_EXACT_FIELD_NUMBER: _ClassVar[int]
    COPIES_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    epoch: int
    refusal: Refusal
    message: str
    kv_length: int
    log_start: int
    kv_free_bytes: int
    pid: int
    chunk_exact: bool
    copies: bool
    def __init__(self, session: _Optional[bytes] = ..., epoch: _Optional[int] = ..., refusal: _Optional[_Union[Refusal, str]] = ..., message: _Optional[str] = ..., kv_length: _Optional[int] = ..., log_start: _Optional[int] = ..., kv_free_bytes: _Optional[int] = ..., pid: _Optional[int] = ..., chunk_exact: _Optional[bool] = ..., copies: _Optional[bool] = ...) -> None: ...

class Resume(_message.Message):
    __slots__ = ("session", "epoch", "send_from")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEND_FROM_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    epoch: int
    send_from: int
    def __init__(self, session: _Optional[bytes] = ..., epoch: _Optional[int] = ..., send_from: _Optional[int] = ...) -> None: ...

class Steps(_message.Message):
    __slots__ = ("steps",)
    STEPS_FIELD_NUMBER: _ClassVar[int]
    steps: _containers.RepeatedCompositeFieldContainer[Step]
    def __init__(self, steps: _Optional[_Iterable[_Union[Step, _Mapping]]] = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("session", "epoch", "round", "position", "chunks", "token_ids", "hidden", "wants", "waited_us")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_FIELD_NUMBER: _ClassVar[int]
    WANTS_FIELD_NUMBER: _ClassVar[int]
    WAITED_US_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    epoch: int
    round: int
    position: int
    chunks: _containers.RepeatedScalarFieldContainer[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    hidden: Tensor
    wants: _containers.RepeatedScalarFieldContainer[int]
    waited_us: int
    def __init__(self, session: _Optional[bytes] = ..., epoch: _Optional[int] = ..., round: _Optional[int] = ..., position: _Optional[int] = ..., chunks: _Optional[_Iterable[int]] = ..., token_ids: _Optional[_Iterable[int]] = ..., hidden: _Optional[_Union[Tensor, _Mapping]] = ..., wants: _Optional[_Iterable[int]] = ..., waited_us: _Optional[int] = ...) -> None: ...

class Tokens(_message.Message):
    __slots__ = ("tokens",)
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedCompositeFieldContainer[Token]
    def __init__(self, tokens: _Optional[_Iterable[_Union[Token, _Mapping]]] = ...) -> None: ...

class TopToken(_message.Message):
    __slots__ = ("id", "logprob")
    ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    id: int
    logprob: float
    def __init__(self, id: _Optional[int] = ..., logprob: _Optional[float] = ...) -> None: ...

class Token(_message.Message):
    __slots__ = ("session", "epoch", "round", "position", "id", "logprob", "top", "waited_us")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    WAITED_US_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    epoch: int
    round: int
    position: int
    id: int
    logprob: float
    top: _containers.RepeatedCompositeFieldContainer[TopToken]
    waited_us: int
    def __init__(self, session: _Optional[bytes] = ..., epoch: _Optional[int] = ..., round: _Optional[int] = ..., position: _Optional[int] = ..., id: _Optional[int] = ..., logprob: _Optional[float] = ..., top: _Optional[_Iterable[_Union[TopToken, _Mapping]]] = ..., waited_us: _Optional[int] = ...) -> None: ...

class Gap(_message.Message):
    __slots__ = ("session", "epoch", "round", "kv_length")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    KV_LENGTH_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    epoch: int
    round: int
    kv_length: int
    def __init__(self, session: _Optional[bytes] = ..., epoch: _Optional[int] = ..., round: _Optional[int] = ..., kv_length: _Optional[int] = ...) -> None: ...

class Failed(_message.Message):
    __slots__ = ("session", "epoch", "refusal", "message", "lost_peer")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    LOST_PEER_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    epoch: int
    refusal: Refusal
    message: str
    lost_peer: str
    def __init__(self, session: _Optional[bytes] = ..., epoch: _Optional[int] = ..., refusal: _Optional[_Union[Refusal, str]] = ..., message: _Optional[str] = ..., lost_peer: _Optional[str] = ...) -> None: ...

class Close(_message.Message):
    __slots__ = ("session", "epoch", "prefix", "prefix_unit", "keep_ms")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    PREFIX_UNIT_FIELD_NUMBER: _ClassVar[int]
    KEEP_MS_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    epoch: int
    prefix: _containers.RepeatedScalarFieldContainer[bytes]
    prefix_unit: int
    keep_ms: int
    def __init__(self, session: _Optional[bytes] = ..., epoch: _Optional[int] = ..., prefix: _Optional[_Iterable[bytes]] = ..., prefix_unit: _Optional[int] = ..., keep_ms: _Optional[int] = ...) -> None: ...

class Release(_message.Message):
    __slots__ = ("session", "secret")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    secret: bytes
    def __init__(self, session: _Optional[bytes] = ..., secret: _Optional[bytes] = ...) -> None: ...

class Keep(_message.Message):
    __slots__ = ("sessions",)
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    sessions: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, sessions: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Copy(_message.Message):
    __slots__ = ("session", "epoch", "peer_id", "start", "end", "position", "round", "sure")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    SURE_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    epoch: int
    peer_id: str
    start: int
    end: int
    position: int
    round: int
    sure: int
    def __init__(self, session: _Optional[bytes] = ..., epoch: _Optional[int] = ..., peer_id: _Optional[str] = ..., start: _Optional[int] = ..., end: _Optional[int] = ..., position: _Optional[int] = ..., round: _Optional[int] = ..., sure: _Optional[int] = ...) -> None: ...

class KV(_message.Message):
    __slots__ = ("session", "epoch", "position", "positions", "blocks", "round")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    epoch: int
    position: int
    positions: int
    blocks: _containers.RepeatedCompositeFieldContainer[BlockTensors]
    round: int
    def __init__(self, session: _Optional[bytes] = ..., epoch: _Optional[int] = ..., position: _Optional[int] = ..., positions: _Optional[int] = ..., blocks: _Optional[_Iterable[_Union[BlockTensors, _Mapping]]] = ..., round: _Optional[int] = ...) -> None: ...

class BlockTensors(_message.Message):
    __slots__ = ("key", "value")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    key: Tensor
    value: Tensor
    def __init__(self, key: _Optional[_Union[Tensor, _Mapping]] = ..., value: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class Copied(_message.Message):
    __slots__ = ("session", "epoch", "kv_length")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    KV_LENGTH_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    epoch: int
    kv_length: int
    def __init__(self, session: _Optional[bytes] = ..., epoch: _Optional[int] = ..., kv_length: _Optional[int] = ...) -> None: ...

class Leaving(_message.Message):
    __slots__ = ("session", "epoch", "decision", "stays")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    STAYS_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    epoch: int
    decision: int
    stays: bool
    def __init__(self, session: _Optional[bytes] = ..., epoch: _Optional[int] = ..., decision: _Optional[int] = ..., stays: _Optional[bool] = ...) -> None: ...

class Poll(_message.Message):
    __slots__ = ("session", "epoch")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    epoch: int
    def __init__(self, session: _Optional[bytes] = ..., epoch: _Optional[int] = ...) -> None: ...

class Polled(_message.Message):
    __slots__ = ("session", "epoch", "accepted", "computed", "waits", "busy_us")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_FIELD_NUMBER: _ClassVar[int]
    WAITS_FIELD_NUMBER: _ClassVar[int]
    BUSY_US_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    epoch: int
    accepted: int
    computed: int
    waits: bool
    busy_us: int
    def __init__(self, session: _Optional[bytes] = ..., epoch: _Optional[int] = ..., accepted: _Optional[int] = ..., computed: _Optional[int] = ..., waits: _Optional[bool] = ..., busy_us: _Optional[int] = ...) -> None: ...

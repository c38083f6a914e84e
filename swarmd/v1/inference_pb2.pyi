from swarmd.v1 import peer_pb2 as _peer_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class Message(_message.Message):
    __slots__ = ("role", "content")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ...) -> None: ...

class Chat(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[Message]
    def __init__(self, messages: _Optional[_Iterable[_Union[Message, _Mapping]]] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("model", "text", "token_ids", "chat", "sampling", "max_tokens", "stop", "stop_token_ids", "include_stop", "ignore_eos", "allow_redirect", "ids_only", "resume", "cache_salt", "priority", "keep_alive_s", "continue_from", "client", "standby")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    CHAT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_STOP_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    ALLOW_REDIRECT_FIELD_NUMBER: _ClassVar[int]
    IDS_ONLY_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    KEEP_ALIVE_S_FIELD_NUMBER: _ClassVar[int]
    CONTINUE_FROM_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    STANDBY_FIELD_NUMBER: _ClassVar[int]
    model: str
    text: str
    token_ids: TokenIds
    chat: Chat
    sampling: _peer_pb2.Sampling
    max_tokens: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    include_stop: bool
    ignore_eos: bool
    allow_redirect: bool
    ids_only: bool
    resume: ResumeFrom
    cache_salt: str
    priority: int
    keep_alive_s: float
    continue_from: ContinueFrom
    client: str
    standby: int
    def __init__(self, model: _Optional[str] = ..., text: _Optional[str] = ..., token_ids: _Optional[_Union[TokenIds, _Mapping]] = ..., chat: _Optional[_Union[Chat, _Mapping]] = ..., sampling: _Optional[_Union[_peer_pb2.Sampling, _Mapping]] = ..., max_tokens: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., include_stop: _Optional[bool] = ..., ignore_eos: _Optional[bool] = ..., allow_redirect: _Optional[bool] = ..., ids_only: _Optional[bool] = ..., resume: _Optional[_Union[ResumeFrom, _Mapping]] = ..., cache_salt: _Optional[str] = ..., priority: _Optional[int] = ..., keep_alive_s: _Optional[float] = ..., continue_from: _Optional[_Union[ContinueFrom, _Mapping]] = ..., client: _Optional[str] = ..., standby: _Optional[int] = ...) -> None: ...

class ContinueFrom(_message.Message):
    __slots__ = ("session", "secret", "tokens", "past_ids")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    PAST_IDS_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    secret: bytes
    tokens: int
    past_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, session: _Optional[bytes] = ..., secret: _Optional[bytes] = ..., tokens: _Optional[int] = ..., past_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class Kept(_message.Message):
    __slots__ = ("session", "secret", "tokens", "lease_s", "address")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    LEASE_S_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    secret: bytes
    tokens: int
    lease_s: float
    address: str
    def __init__(self, session: _Optional[bytes] = ..., secret: _Optional[bytes] = ..., tokens: _Optional[int] = ..., lease_s: _Optional[float] = ..., address: _Optional[str] = ...) -> None: ...

class ResumeFrom(_message.Message):
    __slots__ = ("session", "secret", "epoch", "prompt_ids", "output_ids", "text_chars", "chunk_size", "route", "borders", "standbys", "lost", "waited_s")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PROMPT_IDS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_IDS_FIELD_NUMBER: _ClassVar[int]
    TEXT_CHARS_FIELD_NUMBER: _ClassVar[int]
    CHUNK_SIZE_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    BORDERS_FIELD_NUMBER: _ClassVar[int]
    STANDBYS_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    WAITED_S_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    secret: bytes
    epoch: int
    prompt_ids: _containers.RepeatedScalarFieldContainer[int]
    output_ids: _containers.RepeatedScalarFieldContainer[int]
    text_chars: int
    chunk_size: int
    route: _containers.RepeatedCompositeFieldContainer[Hop]
    borders: _containers.RepeatedScalarFieldContainer[int]
    standbys: _containers.RepeatedCompositeFieldContainer[Hop]
    lost: str
    waited_s: float
    def __init__(self, session: _Optional[bytes] = ..., secret: _Optional[bytes] = ..., epoch: _Optional[int] = ..., prompt_ids: _Optional[_Iterable[int]] = ..., output_ids: _Optional[_Iterable[int]] = ..., text_chars: _Optional[int] = ..., chunk_size: _Optional[int] = ..., route: _Optional[_Iterable[_Union[Hop, _Mapping]]] = ..., borders: _Optional[_Iterable[int]] = ..., standbys: _Optional[_Iterable[_Union[Hop, _Mapping]]] = ..., lost: _Optional[str] = ..., waited_s: _Optional[float] = ...) -> None: ...

class Hop(_message.Message):
    __slots__ = ("peer_id", "address", "start", "end", "pid", "precision")
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    peer_id: str
    address: str
    start: int
    end: int
    pid: int
    precision: str
    def __init__(self, peer_id: _Optional[str] = ..., address: _Optional[str] = ..., start: _Optional[int] = ..., end: _Optional[int] = ..., pid: _Optional[int] = ..., precision: _Optional[str] = ...) -> None: ...

class GenerateEvent(_message.Message):
    __slots__ = ("started", "token", "route_changed", "redirect", "finished")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    ROUTE_CHANGED_FIELD_NUMBER: _ClassVar[int]
    REDIRECT_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    started: Started
    token: Generated
    route_changed: RouteChanged
    redirect: Redirect
    finished: Finished
    def __init__(self, started: _Optional[_Union[Started, _Mapping]] = ..., token: _Optional[_Union[Generated, _Mapping]] = ..., route_changed: _Optional[_Union[RouteChanged, _Mapping]] = ..., redirect: _Optional[_Union[Redirect, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ...) -> None: ...

class Started(_message.Message):
    __slots__ = ("session", "secret", "epoch", "model", "prompt_ids", "sampling", "max_tokens", "chunk_size", "route", "coordinator", "coordinator_address", "coordinator_pid", "model_digest", "borders", "standbys", "recomputed_tokens")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CHUNK_SIZE_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    COORDINATOR_FIELD_NUMBER: _ClassVar[int]
    COORDINATOR_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    COORDINATOR_PID_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    BORDERS_FIELD_NUMBER: _ClassVar[int]
    STANDBYS_FIELD_NUMBER: _ClassVar[int]
    RECOMPUTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    secret: bytes
    epoch: int
    model: str
    prompt_ids: _containers.RepeatedScalarFieldContainer[int]
    sampling: _peer_pb2.Sampling
    max_tokens: int
    chunk_size: int
    route: _containers.RepeatedCompositeFieldContainer[Hop]
    coordinator: str
    coordinator_address: str
    coordinator_pid: int
    model_digest: str
    borders: _containers.RepeatedScalarFieldContainer[int]
    standbys: _containers.RepeatedCompositeFieldContainer[Hop]
    recomputed_tokens: int
    def __init__(self, session: _Optional[bytes] = ..., secret: _Optional[bytes] = ..., epoch: _Optional[int] = ..., model: _Optional[str] = ..., prompt_ids: _Optional[_Iterable[int]] = ..., sampling: _Optional[_Union[_peer_pb2.Sampling, _Mapping]] = ..., max_tokens: _Optional[int] = ..., chunk_size: _Optional[int] = ..., route: _Optional[_Iterable[_Union[Hop, _Mapping]]] = ..., coordinator: _Optional[str] = ..., coordinator_address: _Optional[str] = ..., coordinator_pid: _Optional[int] = ..., model_digest: _Optional[str] = ..., borders: _Optional[_Iterable[int]] = ..., standbys: _Optional[_Iterable[_Union[Hop, _Mapping]]] = ..., recomputed_tokens: _Optional[int] = ...) -> None: ...

class Generated(_message.Message):
    __slots__ = ("index", "id", "text", "logprob", "top")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    index: int
    id: int
    text: str
    logprob: float
    top: _containers.RepeatedCompositeFieldContainer[TopLogprob]
    def __init__(self, index: _Optional[int] = ..., id: _Optional[int] = ..., text: _Optional[str] = ..., logprob: _Optional[float] = ..., top: _Optional[_Iterable[_Union[TopLogprob, _Mapping]]] = ...) -> None: ...

class TopLogprob(_message.Message):
    __slots__ = ("id", "logprob", "text")
    ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    id: int
    logprob: float
    text: str
    def __init__(self, id: _Optional[int] = ..., logprob: _Optional[float] = ..., text: _Optional[str] = ...) -> None: ...

class RouteChanged(_message.Message):
    __slots__ = ("epoch", "route", "repairs", "standbys", "precision_changes", "recomputed_tokens")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    REPAIRS_FIELD_NUMBER: _ClassVar[int]
    STANDBYS_FIELD_NUMBER: _ClassVar[int]
    PRECISION_CHANGES_FIELD_NUMBER: _ClassVar[int]
    RECOMPUTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    route: _containers.RepeatedCompositeFieldContainer[Hop]
    repairs: int
    standbys: _containers.RepeatedCompositeFieldContainer[Hop]
    precision_changes: int
    recomputed_tokens: int
    def __init__(self, epoch: _Optional[int] = ..., route: _Optional[_Iterable[_Union[Hop, _Mapping]]] = ..., repairs: _Optional[int] = ..., standbys: _Optional[_Iterable[_Union[Hop, _Mapping]]] = ..., precision_changes: _Optional[int] = ..., recomputed_tokens: _Optional[int] = ...) -> None: ...

class Redirect(_message.Message):
    __slots__ = ("address", "peer_id", "model_digest")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    address: str
    peer_id: str
    model_digest: str
    def __init__(self, address: _Optional[str] = ..., peer_id: _Optional[str] = ..., model_digest: _Optional[str] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("reason", "text", "stop", "prompt_tokens", "output_tokens", "repairs", "recomputed_tokens", "cached_tokens", "kept", "precision_changes")
    REASON_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REPAIRS_FIELD_NUMBER: _ClassVar[int]
    RECOMPUTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    PRECISION_CHANGES_FIELD_NUMBER: _ClassVar[int]
    reason: FinishReason
    text: str
    stop: str
    prompt_tokens: int
    output_tokens: int
    repairs: int
    recomputed_tokens: int
    cached_tokens: int
    kept: Kept
    precision_changes: int
    def __init__(self, reason: _Optional[_Union[FinishReason, str]] = ..., text: _Optional[str] = ..., stop: _Optional[str] = ..., prompt_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., repairs: _Optional[int] = ..., recomputed_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., kept: _Optional[_Union[Kept, _Mapping]] = ..., precision_changes: _Optional[int] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ("microbatches",)
    MICROBATCHES_FIELD_NUMBER: _ClassVar[int]
    microbatches: bool
    def __init__(self, microbatches: _Optional[bool] = ...) -> None: ...

class Microbatch(_message.Message):
    __slots__ = ("began", "ended", "steps", "decodes", "positions")
    BEGAN_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    DECODES_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    began: float
    ended: float
    steps: int
    decodes: int
    positions: int
    def __init__(self, began: _Optional[float] = ..., ended: _Optional[float] = ..., steps: _Optional[int] = ..., decodes: _Optional[int] = ..., positions: _Optional[int] = ...) -> None: ...

class PeerStatus(_message.Message):
    __slots__ = ("peer_id", "address", "start", "end", "state", "device", "dtype", "sessions", "kv_total_bytes", "kv_free_bytes", "tokens_per_s", "pid", "version", "model", "ragged", "replay_exact", "queue_depth", "step_ms", "model_digest", "plan", "precision", "starves")
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    KV_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    RAGGED_FIELD_NUMBER: _ClassVar[int]
    REPLAY_EXACT_FIELD_NUMBER: _ClassVar[int]
    QUEUE_DEPTH_FIELD_NUMBER: _ClassVar[int]
    STEP_MS_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    STARVES_FIELD_NUMBER: _ClassVar[int]
    peer_id: str
    address: str
    start: int
    end: int
    state: str
    device: str
    dtype: str
    sessions: int
    kv_total_bytes: int
    kv_free_bytes: int
    tokens_per_s: float
    pid: int
    version: str
    model: str
    ragged: bool
    replay_exact: bool
    queue_depth: int
    step_ms: float
    model_digest: str
    plan: BlockRange
    precision: str
    starves: bool
    def __init__(self, peer_id: _Optional[str] = ..., address: _Optional[str] = ..., start: _Optional[int] = ..., end: _Optional[int] = ..., state: _Optional[str] = ..., device: _Optional[str] = ..., dtype: _Optional[str] = ..., sessions: _Optional[int] = ..., kv_total_bytes: _Optional[int] = ..., kv_free_bytes: _Optional[int] = ..., tokens_per_s: _Optional[float] = ..., pid: _Optional[int] = ..., version: _Optional[str] = ..., model: _Optional[str] = ..., ragged: _Optional[bool] = ..., replay_exact: _Optional[bool] = ..., queue_depth: _Optional[int] = ..., step_ms: _Optional[float] = ..., model_digest: _Optional[str] = ..., plan: _Optional[_Union[BlockRange, _Mapping]] = ..., precision: _Optional[str] = ..., starves: _Optional[bool] = ...) -> None: ...

class BlockRange(_message.Message):
    __slots__ = ("start", "end")
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    start: int
    end: int
    def __init__(self, start: _Optional[int] = ..., end: _Optional[int] = ...) -> None: ...

class ModelStatus(_message.Message):
    __slots__ = ("name", "digest", "num_blocks", "covered_blocks", "replicas", "missing", "max_model_len", "thin")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    COVERED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    THIN_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: str
    num_blocks: int
    covered_blocks: int
    replicas: int
    missing: _containers.RepeatedCompositeFieldContainer[BlockRange]
    max_model_len: int
    thin: _containers.RepeatedCompositeFieldContainer[BlockRange]
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[str] = ..., num_blocks: _Optional[int] = ..., covered_blocks: _Optional[int] = ..., replicas: _Optional[int] = ..., missing: _Optional[_Iterable[_Union[BlockRange, _Mapping]]] = ..., max_model_len: _Optional[int] = ..., thin: _Optional[_Iterable[_Union[BlockRange, _Mapping]]] = ...) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("peer_id", "peers", "models", "counters", "microbatches")
    class CountersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    MICROBATCHES_FIELD_NUMBER: _ClassVar[int]
    peer_id: str
    peers: _containers.RepeatedCompositeFieldContainer[PeerStatus]
    models: _containers.RepeatedCompositeFieldContainer[ModelStatus]
    counters: _containers.ScalarMap[str, float]
    microbatches: _containers.RepeatedCompositeFieldContainer[Microbatch]
    def __init__(self, peer_id: _Optional[str] = ..., peers: _Optional[_Iterable[_Union[PeerStatus, _Mapping]]] = ..., models: _Optional[_Iterable[_Union[ModelStatus, _Mapping]]] = ..., counters: _Optional[_Mapping[str, float]] = ..., microbatches: _Optional[_Iterable[_Union[Microbatch, _Mapping]]] = ...) -> None: ...

class TokenizeRequest(_message.Message):
    __slots__ = ("model", "text", "chat", "token_ids", "add_special_tokens")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    CHAT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    ADD_SPECIAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    model: str
    text: str
    chat: Chat
    token_ids: TokenIds
    add_special_tokens: bool
    def __init__(self, model: _Optional[str] = ..., text: _Optional[str] = ..., chat: _Optional[_Union[Chat, _Mapping]] = ..., token_ids: _Optional[_Union[TokenIds, _Mapping]] = ..., add_special_tokens: _Optional[bool] = ...) -> None: ...

class TokenizeReply(_message.Message):
    __slots__ = ("ids", "text")
    IDS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    text: str
    def __init__(self, ids: _Optional[_Iterable[int]] = ..., text: _Optional[str] = ...) -> None: ...

class ReleaseRequest(_message.Message):
    __slots__ = ("session", "secret")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    secret: bytes
    def __init__(self, session: _Optional[bytes] = ..., secret: _Optional[bytes] = ...) -> None: ...

class ReleaseReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("force",)
    FORCE_FIELD_NUMBER: _ClassVar[int]
    force: bool
    def __init__(self, force: _Optional[bool] = ...) -> None: ...

class DrainReply(_message.Message):
    __slots__ = ("sessions",)
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    sessions: int
    def __init__(self, sessions: _Optional[int] = ...) -> None: ...

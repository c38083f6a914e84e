from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NodeState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NODE_STATE_UNSPECIFIED: _ClassVar[NodeState]
    NODE_STATE_LOADING: _ClassVar[NodeState]
    NODE_STATE_SERVING: _ClassVar[NodeState]
    NODE_STATE_DRAINING: _ClassVar[NodeState]
    NODE_STATE_GONE: _ClassVar[NodeState]
NODE_STATE_UNSPECIFIED: NodeState
NODE_STATE_LOADING: NodeState
NODE_STATE_SERVING: NodeState
NODE_STATE_DRAINING: NodeState
NODE_STATE_GONE: NodeState

class SignedAnnouncement(_message.Message):
    __slots__ = ("announcement", "public_key", "signature")
    ANNOUNCEMENT_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    announcement: bytes
    public_key: bytes
    signature: bytes
    def __init__(self, announcement: _Optional[bytes] = ..., public_key: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Announcement(_message.Message):
    __slots__ = ("address", "model", "start", "end", "state", "issued_at", "expires_at", "dtype", "device", "pid", "version", "step_ms", "tokens_per_s", "sessions", "queue_depth", "kv_total_bytes", "kv_free_bytes", "kv_bytes_per_token", "coordinate", "replay_exact", "ragged", "moves", "plan_start", "plan_end", "prefill_ms", "precision", "leaves", "lag_ms", "starves")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ISSUED_AT_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STEP_MS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_DEPTH_FIELD_NUMBER: _ClassVar[int]
    KV_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    COORDINATE_FIELD_NUMBER: _ClassVar[int]
    REPLAY_EXACT_FIELD_NUMBER: _ClassVar[int]
    RAGGED_FIELD_NUMBER: _ClassVar[int]
    MOVES_FIELD_NUMBER: _ClassVar[int]
    PLAN_START_FIELD_NUMBER: _ClassVar[int]
    PLAN_END_FIELD_NUMBER: _ClassVar[int]
    PREFILL_MS_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    LEAVES_FIELD_NUMBER: _ClassVar[int]
    LAG_MS_FIELD_NUMBER: _ClassVar[int]
    STARVES_FIELD_NUMBER: _ClassVar[int]
    address: str
    model: AnnouncedModel
    start: int
    end: int
    state: NodeState
    issued_at: float
    expires_at: float
    dtype: str
    device: str
    pid: int
    version: str
    step_ms: float
    tokens_per_s: float
    sessions: int
    queue_depth: int
    kv_total_bytes: int
    kv_free_bytes: int
    kv_bytes_per_token: int
    coordinate: _containers.RepeatedScalarFieldContainer[float]
    replay_exact: bool
    ragged: bool
    moves: bool
    plan_start: int
    plan_end: int
    prefill_ms: float
    precision: str
    leaves: bool
    lag_ms: float
    starves: bool
    def __init__(self, address: _Optional[str] = ..., model: _Optional[_Union[AnnouncedModel, _Mapping]] = ..., start: _Optional[int] = ..., end: _Optional[int] = ..., state: _Optional[_Union[NodeState, str]] = ..., issued_at: _Optional[float] = ..., expires_at: _Optional[float] = ..., dtype: _Optional[str] = ..., device: _Optional[str] = ..., pid: _Optional[int] = ..., version: _Optional[str] = ..., step_ms: _Optional[float] = ..., tokens_per_s: _Optional[float] = ..., sessions: _Optional[int] = ..., queue_depth: _Optional[int] = ..., kv_total_bytes: _Optional[int] = ..., kv_free_bytes: _Optional[int] = ..., kv_bytes_per_token: _Optional[int] = ..., coordinate: _Optional[_Iterable[float]] = ..., replay_exact: _Optional[bool] = ..., ragged: _Optional[bool] = ..., moves: _Optional[bool] = ..., plan_start: _Optional[int] = ..., plan_end: _Optional[int] = ..., prefill_ms: _Optional[float] = ..., precision: _Optional[str] = ..., leaves: _Optional[bool] = ..., lag_ms: _Optional[float] = ..., starves: _Optional[bool] = ...) -> None: ...

class AnnouncedModel(_message.Message):
    __slots__ = ("name", "digest", "num_blocks", "hidden_size", "vocab_size", "max_model_len", "eos_token_ids")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    EOS_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: bytes
    num_blocks: int
    hidden_size: int
    vocab_size: int
    max_model_len: int
    eos_token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[bytes] = ..., num_blocks: _Optional[int] = ..., hidden_size: _Optional[int] = ..., vocab_size: _Optional[int] = ..., max_model_len: _Optional[int] = ..., eos_token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class DirectoryCommand(_message.Message):
    __slots__ = ("id", "start", "store", "survey", "join")
    ID_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    SURVEY_FIELD_NUMBER: _ClassVar[int]
    JOIN_FIELD_NUMBER: _ClassVar[int]
    id: int
    start: DirectoryStart
    store: DirectoryStore
    survey: DirectorySurvey
    join: DirectoryJoin
    def __init__(self, id: _Optional[int] = ..., start: _Optional[_Union[DirectoryStart, _Mapping]] = ..., store: _Optional[_Union[DirectoryStore, _Mapping]] = ..., survey: _Optional[_Union[DirectorySurvey, _Mapping]] = ..., join: _Optional[_Union[DirectoryJoin, _Mapping]] = ...) -> None: ...

class DirectoryStart(_message.Message):
    __slots__ = ("host", "port", "announce_host", "identity_path", "peers", "socket_dir")
    HOST_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    ANNOUNCE_HOST_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_PATH_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    SOCKET_DIR_FIELD_NUMBER: _ClassVar[int]
    host: str
    port: int
    announce_host: str
    identity_path: str
    peers: _containers.RepeatedScalarFieldContainer[str]
    socket_dir: str
    def __init__(self, host: _Optional[str] = ..., port: _Optional[int] = ..., announce_host: _Optional[str] = ..., identity_path: _Optional[str] = ..., peers: _Optional[_Iterable[str]] = ..., socket_dir: _Optional[str] = ...) -> None: ...

class DirectoryStore(_message.Message):
    __slots__ = ("records",)
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[DirectoryRecord]
    def __init__(self, records: _Optional[_Iterable[_Union[DirectoryRecord, _Mapping]]] = ...) -> None: ...

class DirectoryRecord(_message.Message):
    __slots__ = ("key", "subkey", "value", "expires_at")
    KEY_FIELD_NUMBER: _ClassVar[int]
    SUBKEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    subkey: bytes
    value: bytes
    expires_at: float
    def __init__(self, key: _Optional[bytes] = ..., subkey: _Optional[bytes] = ..., value: _Optional[bytes] = ..., expires_at: _Optional[float] = ...) -> None: ...

class DirectorySurvey(_message.Message):
    __slots__ = ("known", "wait_s")
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    known: bytes
    wait_s: float
    def __init__(self, known: _Optional[bytes] = ..., wait_s: _Optional[float] = ...) -> None: ...

class DirectoryJoin(_message.Message):
    __slots__ = ("peers",)
    PEERS_FIELD_NUMBER: _ClassVar[int]
    peers: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, peers: _Optional[_Iterable[str]] = ...) -> None: ...

class DirectoryReply(_message.Message):
    __slots__ = ("id", "started", "stored", "found", "failed", "joined", "neighbours")
    ID_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    FOUND_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    JOINED_FIELD_NUMBER: _ClassVar[int]
    NEIGHBOURS_FIELD_NUMBER: _ClassVar[int]
    id: int
    started: DirectoryStarted
    stored: DirectoryStored
    found: DirectoryFound
    failed: DirectoryFailed
    joined: DirectoryJoined
    neighbours: DirectoryNeighbours
    def __init__(self, id: _Optional[int] = ..., started: _Optional[_Union[DirectoryStarted, _Mapping]] = ..., stored: _Optional[_Union[DirectoryStored, _Mapping]] = ..., found: _Optional[_Union[DirectoryFound, _Mapping]] = ..., failed: _Optional[_Union[DirectoryFailed, _Mapping]] = ..., joined: _Optional[_Union[DirectoryJoined, _Mapping]] = ..., neighbours: _Optional[_Union[DirectoryNeighbours, _Mapping]] = ...) -> None: ...

class DirectoryStarted(_message.Message):
    __slots__ = ("port", "addresses")
    PORT_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    port: int
    addresses: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, port: _Optional[int] = ..., addresses: _Optional[_Iterable[str]] = ...) -> None: ...

class DirectoryStored(_message.Message):
    __slots__ = ("stored",)
    STORED_FIELD_NUMBER: _ClassVar[int]
    stored: _containers.RepeatedScalarFieldContainer[bool]
    def __init__(self, stored: _Optional[_Iterable[bool]] = ...) -> None: ...

class DirectoryFound(_message.Message):
    __slots__ = ("records", "version", "refused")
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[DirectoryRecord]
    version: bytes
    refused: int
    def __init__(self, records: _Optional[_Iterable[_Union[DirectoryRecord, _Mapping]]] = ..., version: _Optional[bytes] = ..., refused: _Optional[int] = ...) -> None: ...

class DirectoryJoined(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DirectoryNeighbours(_message.Message):
    __slots__ = ("addresses",)
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    addresses: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, addresses: _Optional[_Iterable[str]] = ...) -> None: ...

class DirectoryFailed(_message.Message):
    __slots__ = ("message",)
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    message: str
    def __init__(self, message: _Optional[str] = ...) -> None: ...

"""Everything that two peers say to each other about sessions, as values that nobody changes.

`swarmd.wire.frames` turns them into protobuf and checks what comes in; `swarmd.pipeline` says what
they mean. A session has one coordinator and a route of hops; `epoch` counts its routes, `round` its
rewinds. Positions count tokens from 0; a step at position p with n tokens holds positions
`[p, p + n)`, and the token sampled at position p is the id of position p + 1.

What is made for every token is not `frozen`: that would take several times as long to make.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from swarmd.core.sampling import SamplingParams
from swarmd.core.span import Span

SESSION_ID_BYTES = 16
SECRET_BYTES = 16
MAX_TENANT_BYTES = 16


class DType(enum.IntEnum):
    """Element types of a payload: a closed list. Values are the wire's."""

    FLOAT32 = 1
    BFLOAT16 = 2
    FLOAT16 = 3

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return 4 if self is DType.FLOAT32 else 2


@dataclass(slots=True)
class Payload:
    """A tensor as it travels: raw little-endian bytes in C order, at most 3 dimensions."""

    dtype: DType
    shape: tuple[int, ...]
    data: bytes | memoryview

    @property
    def nbytes(self) -> int:
        return self.data.nbytes if isinstance(self.data, memoryview) else len(self.data)


class Refusal(enum.IntEnum):
    """Why a hop refuses or fails a session. Values are the wire's."""

    WRONG_MODEL = 1
    WRONG_BLOCKS = 2
    KV_EXHAUSTED = 3
    """Room may come: the coordinator may try again."""
    TOO_LONG = 4
    """Would not fit an empty KV budget either."""
    WRONG_SECRET = 5
    STALE_EPOCH = 6
    DRAINING = 7
    UNKNOWN_PEER = 8
    """The next hop is not in this hop's view (yet)."""
    UNKNOWN_SESSION = 9
    NEXT_UNREACHABLE = 10
    """The link to the next hop broke or could not be opened."""
    COMPUTE_FAILED = 11
    BAD_STEP = 12
    """A step did not fit the session: shape, length or hop."""
    BAD_REQUEST = 13
    KEPT_FULL = 14
    """The session is to be kept after its end, and all that may be kept here is taken."""


@dataclass(frozen=True, slots=True)
class Past:
    """A kept session that a new one goes on from: the first `tokens` positions of it."""

    session: bytes
    secret: bytes
    tokens: int
    floor: int = 0
    """Where the chunk begins that holds the last of them that need not be computed, and"""
    run: int = 0
    """from where on each is a chunk: a hop that computes other bits in other chunks must begin at
    the one, or at or above the other."""


@dataclass(frozen=True, slots=True)
class Open:
    """Coordinator to hop: take part in (a new epoch of) this session. Answered by `Opened`.

    A first open (`fresh`) lets the hop send on from position 0 at once; after any other one the hop
    keeps its outputs in the replay log until `Resume`.
    """

    session: bytes
    secret: bytes
    epoch: int
    fresh: bool
    model_digest: str
    blocks: Span
    """What this hop computes: within its own span, which it may enter or leave in the middle."""
    next_peer: str
    """Peer id of the next hop; empty on the last one."""
    prev_peer: str
    """Peer id that steps will come from: the hop before, or the coordinator for the first hop."""
    max_positions: int
    """KV to reserve, in positions: prompt + max_tokens."""
    prompt_tokens: int
    sampling: SamplingParams | None = None
    """Only to the last hop, with `token_ids`."""
    token_ids: tuple[int, ...] = ()
    """Prompt and output so far: only to the last hop, whose sampler may need them."""
    prefix: tuple[bytes, ...] = ()
    """Keys of the prompt's units, each for `prefix_unit` positions: what the hop has computed for
    one of these, in whatever session, need not be computed again. Empty: share nothing."""
    prefix_unit: int = 0
    prefix_grain: int = 0
    """Length of the prompt's chunks: the session may begin at multiples of it only, unless the hop
    computes the same bits in whatever chunks."""
    past: Past | None = None
    """What is held of that session need not be computed again. The prompt begins with it."""
    keeps: bool = False
    """The session is to be kept after its end: the hop refuses now if it will not be able to."""
    tenant: bytes = b""
    """Whose session this is, as an opaque name: tenants take turns."""
    donor: str = ""
    """Peer id of the hop whose KV this one is to hold a copy of, without computing anything until
    it is opened again without a donor."""
    claimed: bool = False
    """There is only the client's word that the KV that is held belongs to these ids: what the
    session computes from now on is shared with nobody."""
    computed: int = 0
    """Positions that have been computed before: a hop that takes another one's place counts by it
    what it computes again. With a donor: what is held above may be of other ids and is given up."""


@dataclass(frozen=True, slots=True)
class Opened:
    """Hop to coordinator: the answer to `Open`."""

    session: bytes
    epoch: int
    """That of the open; with STALE_EPOCH the hop's own, so that the next try can be above it."""
    refusal: Refusal | None = None
    message: str = ""
    kv_length: int = 0
    """Positions that this hop holds or has accepted: `[0, kv_length)`. In a fresh session they are
    what other sessions have computed."""
    log_start: int = 0
    """The replay log can send every output of `[log_start, kv_length)`."""
    kv_free_bytes: int = 0
    pid: int = 0
    chunk_exact: bool = False
    """The hop computes the same bits in whatever chunks."""
    copies: bool = False
    """The hop's KV can be copied to another peer."""


@dataclass(frozen=True, slots=True)
class Resume:
    """Coordinator to hop, after an `Open` that was not fresh: send the rest.

    The hop sends on every output at or above `send_from`: first those in its log, then new ones.
    Outputs below it are logged only.
    """

    session: bytes
    epoch: int
    send_from: int


@dataclass(slots=True)
class Step:
    """Work for one session at positions `[position, position + sum(chunks))`.

    `chunks` are the boundaries within the step at which it was first computed, so that a replay
    computes the same bits. The first hop gets token ids, the others hidden states `(n, hidden)`.
    """

    session: bytes
    epoch: int
    round: int
    position: int
    chunks: tuple[int, ...]
    token_ids: tuple[int, ...] = ()
    hidden: Payload | None = None
    wants: tuple[int, ...] = ()
    """Positions, within this step and ascending, whose next token is to be sampled."""
    waited_us: int = 0
    """Microseconds that the session has waited for stages so far, on all hops together: a stage
    learns from it how long a token is on its way without waiting."""

    @property
    def length(self) -> int:
        """Number of positions."""
        # Asked for a dozen times per token, and then there is one chunk.
        return self.chunks[0] if len(self.chunks) == 1 else sum(self.chunks)

    @property
    def end(self) -> int:
        return self.position + self.length


@dataclass(slots=True)
class Token:
    """Last hop to coordinator: the id sampled for `position`: the step ended at position - 1."""

    session: bytes
    epoch: int
    round: int
    position: int
    id: int
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()
    """(id, logprob) of the likeliest tokens, likeliest first."""
    waited_us: int = 0
    """As in `Step`."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Hop to coordinator: a step came whose position lies beyond what is held here."""

    session: bytes
    epoch: int
    round: int
    kv_length: int


@dataclass(frozen=True, slots=True)
class Failed:
    """Hop to coordinator: this hop cannot go on with the session in this epoch."""

    session: bytes
    epoch: int
    refusal: Refusal
    message: str = ""
    lost_peer: str = ""
    """With NEXT_UNREACHABLE or UNKNOWN_PEER: who."""


@dataclass(frozen=True, slots=True)
class Close:
    """Coordinator to hop: free everything of this session up to this epoch."""

    session: bytes
    epoch: int
    prefix: tuple[bytes, ...] = ()
    """Keys of the units of prompt and output: what is computed of them may be shared later on."""
    prefix_unit: int = 0
    keep_s: float = 0.0
    """What is computed is kept for so many seconds, for sessions that go on from this one."""


@dataclass(frozen=True, slots=True)
class Release:
    """To a hop, from whoever knows the secret: a session that is kept is kept no longer."""

    session: bytes
    secret: bytes


@dataclass(frozen=True, slots=True)
class Keep:
    """Coordinator to hop: these sessions live. Without it for `--orphan-grace`, a hop evicts."""

    sessions: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Copy:
    """Coordinator to hop: let another peer have this session's KV, and all that is computed later.

    Ends with the epoch. A later one for the same peer takes the place of the one before, and one
    for another peer ends those of the same blocks.
    """

    session: bytes
    epoch: int
    peer_id: str
    """Empty: nobody any more."""
    blocks: Span
    """Within those that the hop computes."""
    position: int
    """Where the other peer's KV ends."""
    round: int = 0
    """Which the coordinator is in. What the hop has computed in earlier ones, ..."""
    sure: int = 0
    """... above this many positions, may be of other ids than the coordinator's: it is not sent."""


@dataclass(frozen=True, slots=True)
class KV:
    """Hop to the peer that holds a copy: keys and values of positions `[position, end)`.

    At or below what is held there: what lies above `position` is replaced, unless it has come in
    the same round.
    """

    session: bytes
    epoch: int
    round: int
    position: int
    blocks: tuple[dict[str, Payload], ...]
    """For each block its tensors by name, each `(heads, positions, width)`."""

    @property
    def length(self) -> int:
        """Number of positions."""
        return next((t.shape[1] for tensors in self.blocks for t in tensors.values()), 0)

    @property
    def end(self) -> int:
        return self.position + self.length

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for tensors in self.blocks for t in tensors.values())


@dataclass(frozen=True, slots=True)
class Copied:
    """Peer that holds a copy, to the hop and the coordinator: it reaches to `kv_length` now."""

    session: bytes
    epoch: int
    kv_length: int


@dataclass(frozen=True, slots=True)
class Leaving:
    """Hop to coordinator: this node is about to go; move the session's KV to another one."""

    session: bytes
    epoch: int
    decision: int = 0
    """How many times the node has decided to go or to stay: the latest counts."""
    stays: bool = False
    """It stays after all."""


@dataclass(frozen=True, slots=True)
class Poll:
    """Coordinator to hop: how far is this session? Answered by `Polled`; changes nothing."""

    session: bytes
    epoch: int


@dataclass(frozen=True, slots=True)
class Polled:
    """Hop to coordinator: the answer to `Poll`."""

    session: bytes
    epoch: int
    accepted: int
    """Positions that have come: `[0, accepted)`."""
    computed: int
    """Positions that are computed: `[0, computed)`."""
    waits: bool = False
    """It is not in the microbatch that runs: its next step, if there is one, waits."""
    busy_us: int = 0
    """Microseconds for which the microbatch that runs now has been running; 0 without one."""


SessionFrame = (
    Open
    | Opened
    | Resume
    | Step
    | Token
    | Gap
    | Failed
    | Close
    | Keep
    | Release
    | Copy
    | KV
    | Copied
    | Leaving
    | Poll
    | Polled
)

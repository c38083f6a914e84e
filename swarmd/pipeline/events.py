"""What goes into this room's state machines and what comes out, as values.

Those that are made for every token are not frozen, as to make one that is takes several times as
long.

`hop.HopTable` and `driver.Driver` say what each means; the daemon's shells carry the actions out.
"""

from __future__ import annotations

from dataclasses import dataclass

from swarmd.core.errors import SwarmdError
from swarmd.core.frames import Payload, SessionFrame, Step
from swarmd.core.route import Route
from swarmd.core.sampling import SamplingParams
from swarmd.core.span import Span

# Events of both machines.


@dataclass(slots=True)
class Received:
    """A frame came in over the link from `peer_id`."""

    peer_id: str
    frame: SessionFrame


@dataclass(frozen=True, slots=True)
class PeerLost:
    """The link to a peer broke, or could not be made: frames under way may be gone."""

    peer_id: str
    known: bool = True
    """False: it could not even be dialled, as the view does not hold it."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed: sent at `next_deadline()` or later."""


# Events of the hop table only.


@dataclass(slots=True)
class Drawn:
    """The id that the last hop drew for `position`, which follows the wanted one."""

    position: int
    id: int
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True)
class Computed:
    """A submitted step is done: hidden states `(n, hidden)`, or on the last hop drawn tokens."""

    session: bytes
    ticket: int
    payload: Payload | None = None
    tokens: tuple[Drawn, ...] = ()
    waited_us: int = 0
    """How long the step waited for the executor."""


@dataclass(frozen=True, slots=True)
class ComputeFailed:
    """A submitted step could not be computed; what the session's KV holds is no longer known.

    The session is freed; until that `Free` comes, its other steps need not be computed.
    """

    session: bytes
    ticket: int
    message: str
    exhausted: bool = False
    """Whether the machine had no memory left: nothing is wrong with the step."""


@dataclass(frozen=True, slots=True)
class Exported:
    """KV of some positions, as `Export` asked for; None where it could not be had."""

    session: bytes
    ticket: int
    position: int
    blocks: tuple[dict[str, Payload], ...] | None


@dataclass(frozen=True, slots=True)
class Imported:
    """KV that came from another hop is in the session's own now."""

    session: bytes
    ticket: int
    converted: bool = False
    """Whether it came in another dtype than this stage computes in."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Take no new sessions from now on; those that run go on until they are moved. Not `on`: take
    them again."""

    on: bool = True


# Events of the driver only.


@dataclass(frozen=True, slots=True)
class Start:
    """Begin. Comes once, first."""

    suspected: frozenset[str] = frozenset()
    """Peers that have fallen silent: hops of a session that is resumed are not looked for there."""


@dataclass(frozen=True, slots=True)
class RouteFound:
    """The answer to `NeedRoute(ask, ...)`: hops that cover exactly the spans, in order."""

    ask: int
    hops: Route


@dataclass(frozen=True, slots=True)
class RouteMissing:
    """The other answer to `NeedRoute(ask, ...)`: these blocks have no peer that may be used."""

    ask: int
    missing: tuple[tuple[int, int], ...]
    error: SwarmdError | None = None
    """Set when it is not that they have no peer: a CapacityError when only room is lacking."""


@dataclass(frozen=True, slots=True)
class LinksKnown:
    """The answer to `NeedLinks(ask, ...)`: all other peers have a live link."""

    ask: int
    unreachable: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class RoutesChanged:
    """The view changed: a wait for peers may be over."""


@dataclass(frozen=True, slots=True)
class PeerLags:
    """Another session leaves this peer for being slow."""

    peer_id: str
    starving: frozenset[str] = frozenset()
    """Those that say so themselves, if it is one of them: whoever can goes round it."""


@dataclass(frozen=True, slots=True)
class HandOver:
    """This node is about to go: let another coordinator go on as soon as a token has come."""

    stays: bool = False
    """It is not, but slow: let another one go on if somebody can take over its blocks as well."""


@dataclass(frozen=True, slots=True)
class Stop:
    """End now: the client left, a deadline passed (`error`), or a stop string was found."""

    reason: str = "cancelled"
    error: SwarmdError | None = None


# Actions of both machines.


@dataclass(slots=True)
class Send:
    """Put a frame on the link to a peer, after all earlier ones.

    When that peer is not known or cannot be dialled, answer with `PeerLost`; a `Close` or `Keep`
    is worth no dialling.
    """

    peer_id: str
    frame: SessionFrame


# Actions of the hop table only. Those for the executor keep their order.


@dataclass(slots=True)
class Submit:
    """Compute a step over `blocks`; answer with `Computed` or `ComputeFailed`, in order.

    KV for `session` and `blocks` is made at its first submit, or by an `Attach`. `sampling` is set
    on the last hop, and `ids`, the ids of positions `[0, step.end)`, where sampling needs them.
    """

    session: bytes
    ticket: int
    blocks: Span
    step: Step
    max_positions: int
    sampling: SamplingParams | None = None
    ids: tuple[int, ...] = ()
    prompt_tokens: int = 0
    """How many of the ids are the prompt's: some penalties count the output only."""
    tenant: bytes = b""
    """Tenants take turns."""


@dataclass(frozen=True, slots=True)
class Truncate:
    """Forget the session's KV at and above `length`."""

    session: bytes
    length: int


@dataclass(frozen=True, slots=True)
class Free:
    """Forget the session; results of its submitted steps are no longer wanted."""

    session: bytes


@dataclass(frozen=True, slots=True)
class Attach:
    """Make KV for a new session that begins with these shared units, in order from position 0.

    It holds the first `length` positions of them; 0: all.
    """

    session: bytes
    units: tuple[bytes, ...]
    length: int = 0


@dataclass(frozen=True, slots=True)
class Freeze:
    """Keep positions `[start, end)` of a session, which are computed, as a shared unit.

    One that ends within a unit's length can only be the last of an `Attach`.
    """

    session: bytes
    unit: bytes
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Export:
    """Take positions `[start, end)` of some blocks, which are computed, out of a session's KV.

    Answer with `Exported`. Nothing that is queued touches these positions.
    """

    session: bytes
    ticket: int
    blocks: Span
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Import:
    """Put KV that was computed elsewhere at `position`, where the session's ends by then.

    Answer with `Imported`, or with `ComputeFailed`.
    """

    session: bytes
    ticket: int
    blocks: Span
    position: int
    parts: tuple[dict[str, Payload], ...]


@dataclass(frozen=True, slots=True)
class Drop:
    """Forget a shared unit: no session uses it."""

    unit: bytes


# Actions of the driver only.


@dataclass(frozen=True, slots=True)
class NeedRoute:
    """Find hops that cover exactly `spans` without `exclude`, and answer with the same `ask`.

    `keep` are the hops that stay, for a router that weighs the links to the neighbours.
    """

    ask: int
    spans: tuple[Span, ...]
    exclude: frozenset[str]
    keep: Route
    precisions: tuple[str, ...] = ()
    """For each of the spans, what it was computed in: a replay gives the same bits there only."""
    trusted: bool = False
    """Only peers in good standing: nothing is gained by going from one slow peer to another."""
    spare: bool = False
    """For a copy that no stream waits for: the view will do as it is, and peers of any other than
    these precisions will not do."""


@dataclass(frozen=True, slots=True)
class NeedLinks:
    """Make links to these peers; answer with the same `ask` once it is known of all of them."""

    ask: int
    peers: frozenset[str]


@dataclass(frozen=True, slots=True)
class Routed:
    """All hops have agreed, or peers hold copies: what a client needs to resume elsewhere."""

    route: Route
    epoch: int
    standbys: Route = ()
    """Peers that hold a second copy of some hop's KV."""


@dataclass(slots=True)
class Emit:
    """The next id of the output; positions count from the start of the prompt."""

    position: int
    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Lagging:
    """A hop has held a token up for too long: others should rather not be sent there."""

    peer_id: str


@dataclass(frozen=True, slots=True)
class OtherPrecision:
    """Blocks of a running session went to peers of another precision: there were no others."""

    hops: Route


@dataclass(frozen=True, slots=True)
class Finished:
    """The end. `reason` is `stop`, `length`, that of `Stop`, or `error` with `error` set."""

    reason: str
    error: SwarmdError | None = None


HopEvent = Received | PeerLost | Tick | Computed | ComputeFailed | Exported | Imported | Drain
Operation = Submit | Truncate | Free | Attach | Freeze | Export | Import | Drop
"""What the executor is told."""
HopAction = Send | Operation
DriverEvent = (
    Received
    | PeerLost
    | Tick
    | Start
    | RouteFound
    | RouteMissing
    | LinksKnown
    | RoutesChanged
    | PeerLags
    | HandOver
    | Stop
)
DriverAction = Send | NeedRoute | NeedLinks | Routed | Emit | Lagging | OtherPrecision | Finished

"""One session as one hop holds it: how far it is, what is being computed, what was sent on.

Who may say what to it, and the memory it may use, is `hop.HopTable`'s business.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass, field, replace

from swarmd.core.errors import SessionError
from swarmd.core.frames import Leaving, Open, Payload, Step
from swarmd.core.sampling import SamplingParams
from swarmd.core.span import Span
from swarmd.pipeline.events import Drawn, Submit
from swarmd.pipeline.replay_log import ReplayLog
from swarmd.pipeline.steps import cut, rows, take


class HopState(enum.Enum):
    """Whether outputs may go on to the next hop."""

    FLOWING = "flowing"
    HELD = "held"
    """Logged only: a new route has been opened, or the next hop is lost."""


class HopInput(enum.Enum):
    """What moves a session between its states."""

    OPEN_FRESH = "open (fresh)"
    OPEN_AGAIN = "open (not fresh)"
    RESUME = "resume"
    NEXT_LOST = "next hop lost"


HOP_TRANSITIONS: dict[tuple[HopState, HopInput], HopState] = {
    (HopState.HELD, HopInput.OPEN_FRESH): HopState.FLOWING,
    (HopState.HELD, HopInput.OPEN_AGAIN): HopState.HELD,
    (HopState.HELD, HopInput.RESUME): HopState.FLOWING,
    (HopState.HELD, HopInput.NEXT_LOST): HopState.HELD,
    (HopState.FLOWING, HopInput.OPEN_FRESH): HopState.FLOWING,
    (HopState.FLOWING, HopInput.OPEN_AGAIN): HopState.HELD,
    (HopState.FLOWING, HopInput.NEXT_LOST): HopState.HELD,
}
"""A resume while flowing is a duplicate and not in the table."""


@dataclass(slots=True)
class CopyTo:
    """How far a copy on another peer is."""

    blocks: Span
    sent: int
    """Positions below it are there, under way, or being taken out of the KV."""
    held: int
    """Positions below it are there."""
    round: int = 0
    sure: int = 0
    """Before the hop comes to that round, positions above these are not sent."""
    ticket: int | None = None
    """Of what is being taken out."""


@dataclass(slots=True)
class HopSession:
    """A session's state on one hop. Positions `[0, length)` are accepted, in order."""

    id: bytes
    secret: bytes
    blocks: Span
    log: ReplayLog
    born: int = 0
    """Tickets up to this one were given out before."""
    coordinator: str = ""
    prev_peer: str = ""
    next_peer: str = ""
    donor: str = ""
    """The hop whose KV is copied here; nothing is computed while there is one."""
    epoch: int = 0
    round: int = 0
    max_positions: int = 0
    prompt_tokens: int = 0
    sampling: SamplingParams | None = None
    ids: list[int] = field(default_factory=list)
    """On the last hop: prompt and output so far, as penalties count them."""
    prefix: tuple[bytes, ...] = ()
    """Names of the units of the prompt, as far as they may be shared."""
    shared: dict[int, bytes] = field(default_factory=dict)
    """Index -> name of the units that are shared, wherever they came from."""
    grain: int = 1
    """Length of the prompt's chunks."""
    keeps: bool = False
    """It is to be kept after its end."""
    private: bool = False
    """Nothing more of it is shared: whether its KV belongs to the ids that it is said to have, only
    its client knows."""
    tenant: bytes = b""
    next_unit: int = 0
    """Units below it have been looked at for sharing."""
    state: HopState = HopState.HELD
    length: int = 0
    send_from: int = 0
    """Outputs at and above it go on to the next hop."""
    unsent: deque[Step] = field(default_factory=deque)
    """What goes on to the next hop before any other output, when its link has room."""
    rewound_to: int | None = None
    """The lowest rewind of this epoch: what lies above, the next hop must be sent anew."""
    gap_told: int = -1
    """The round of this epoch in which the coordinator was told of a gap."""
    pending: dict[int, Step] = field(default_factory=dict)
    """Ticket -> step that is being computed, without what rewinds have cut off."""
    copies: dict[str, CopyTo] = field(default_factory=dict)
    """By the peers that hold them."""
    imports: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Ticket -> where the KV begins and ends that is being put in."""
    copied: int = 0
    """To where another hop's KV has come here in this round."""
    behind: tuple[int, int] = (0, 0)
    """Where the positions begin and end that the hop has computed in whose place this one is, and
    that are not computed here yet."""
    seen_at: float = 0.0
    """When the coordinator was last heard of."""
    lapses_at: float | None = None
    """Until it is used, when the reservation lapses."""

    @property
    def computed(self) -> int:
        """Positions `[0, computed)` are held; those above are with the executor, or unknown."""
        if not self.pending and not self.imports:
            return self.length
        coming = [step.position for step in self.pending.values()]
        return min(self.length, *coming, *(start for start, _ in self.imports.values()))

    @property
    def last(self) -> bool:
        """Whether this is the last hop, which samples."""
        return not self.next_peer

    def leaving(self, decision: int, *, stays: bool = False) -> Leaving:
        """What a node that is about to go, or stays after all, tells the coordinator."""
        return Leaving(self.id, self.epoch, decision, stays)

    def move(self, what: HopInput) -> None:
        """Change the state as HOP_TRANSITIONS says. Raises SessionError for any other pair."""
        try:
            self.state = HOP_TRANSITIONS[self.state, what]
        except KeyError:
            raise SessionError(f"hop session: {self.state.value} knows no {what.value}") from None
        self.unsent.clear()  # a resume begins with the log, and nothing else lets anything go on

    def point(self, sender: str, order: Open) -> None:
        """Take the place in the route that a new epoch gives."""
        self.coordinator, self.epoch, self.round = sender, order.epoch, 0
        self.prev_peer, self.next_peer = order.prev_peer, order.next_peer
        self.donor, self.copied = order.donor, 0
        self.private |= order.claimed
        self.max_positions, self.sampling = order.max_positions, order.sampling
        self.ids, self.prompt_tokens = list(order.token_ids), order.prompt_tokens
        self.send_from, self.rewound_to, self.gap_told = 0, None, -1
        self.move(HopInput.OPEN_FRESH if order.fresh else HopInput.OPEN_AGAIN)

    def recomputes(self, step: Step) -> int:
        """How many positions of a step another hop has computed in this one's place."""
        start, end = self.behind
        if step.position >= end:
            return 0
        self.behind = max(start, min(step.end, end)), end
        return self.behind[0] - start

    def accept(self, ticket: int, step: Step) -> Submit:
        """Take the step that follows what is held; return what is to be computed."""
        self.pending[ticket] = step
        self.length = step.end
        sampling = self.sampling if self.last else None
        ids = tuple(self.ids[: step.end]) if sampling and sampling.needs_ids else ()
        return Submit(
            self.id,
            ticket,
            self.blocks,
            step,
            self.max_positions,
            sampling,
            ids,
            self.prompt_tokens,
            self.tenant,
        )

    def rewind(self, position: int, keep: int) -> int:
        """Begin a new round at `position`, of which `keep` positions stay; return how many go.

        Steps that are being computed lose what lies above, so that it has no effect any more.
        """
        self.send_from = min(self.send_from, position)
        lowest = position if self.rewound_to is None else self.rewound_to
        self.rewound_to = min(lowest, position)
        gone = max(0, self.length - keep)
        self.length = min(self.length, keep)
        self.log.truncate(keep)
        below = (step for step in self.unsent if step.position < position)
        self.unsent = deque(cut(step, step.position, position) for step in below)
        self.pending = {
            ticket: cut(step, step.position, keep)
            for ticket, step in self.pending.items()
            if step.position < keep
        }
        return gone

    def hold(self, length: int) -> None:
        """Hold positions `[0, length)`, of which another hop has sent the last; log no outputs."""
        self.length = self.copied = length
        self.log.skip(length)

    def resume(self, send_from: int) -> None:
        """Let outputs at and above `send_from` go on, and those that a rewind has called for."""
        self.move(HopInput.RESUME)
        self.send_from = send_from
        if self.rewound_to is not None:
            self.send_from = min(send_from, self.rewound_to)

    def output(self, ticket: int, payload: Payload, waited_us: int = 0) -> Step | None:
        """Log what was computed; return it, or None where a rewind has left nothing of it.

        Raises SessionError when it lacks rows of the step, or comes out of order.
        """
        step = self.pending.pop(ticket, None)
        if step is None:
            return None
        if payload.shape[0] < step.length:
            raise SessionError(f"{payload.shape[0]} rows came out of {step.length} positions")
        whole = payload.shape[0] == step.length
        hidden = payload if whole else rows(payload, 0, step.length)
        done = Step(
            step.session,
            step.epoch,
            step.round,
            step.position,
            step.chunks,
            hidden=hidden,
            wants=step.wants,
            waited_us=step.waited_us + waited_us,
        )
        self.log.append(done)
        return done

    def drawn(self, ticket: int, tokens: tuple[Drawn, ...]) -> tuple[Step, list[Drawn]] | None:
        """Take note of drawn tokens; return those that still count, with the step they end.

        Those of an earlier epoch do not: every repair asks for the newest token again.
        """
        step = self.pending.pop(ticket, None)
        if step is None or step.epoch != self.epoch:
            return None
        wanted = []
        for token in tokens:
            if token.position - 1 in step.wants:
                wanted.append(token)
                if token.position == len(self.ids):
                    self.ids.append(token.id)
        return step, wanted

    def stamped(self, step: Step) -> Step:
        """A logged step as it goes out. What an earlier epoch took in belongs to round 0.

        Nor does it ask for tokens any more: its coordinator may have known ids that the last hop,
        which draws with regard to them, no longer does.
        """
        if step.epoch == self.epoch:
            return step
        return replace(step, epoch=self.epoch, round=0, wants=())

    def onward(self, done: Step) -> Step | None:
        """The part of an output that is to be sent on now, if any: not before what is unsent."""
        if self.state is not HopState.FLOWING or done.end <= self.send_from:
            return None
        step = done if done.position >= self.send_from else cut(done, self.send_from, done.end)
        if step.epoch != self.epoch:
            step = self.stamped(step)
        if not self.unsent:
            return step
        self.unsent.append(step)
        return None

    def queue_log(self) -> int:
        """Make all that a resume has to send out of the log unsent; return how many positions."""
        self.unsent.extend(self.stamped(step) for step in self.log.since(self.send_from))
        return sum(step.length for step in self.unsent)

    def next_unsent(self, most: int) -> Step:
        """Take what is to be sent next, as a step of at most `most` positions."""
        return take(self.unsent, most)

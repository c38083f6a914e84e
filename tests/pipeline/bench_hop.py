"""A hop table on the bench: frames in, actions out, nothing computed unless told to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from swarmd.core.frames import DType, Failed, Open, Opened, Payload, SessionFrame, Step, Token
from swarmd.core.sampling import SamplingParams
from swarmd.core.span import Span
from swarmd.pipeline.events import (
    Computed,
    Drawn,
    HopAction,
    HopEvent,
    PeerLost,
    Received,
    Send,
    Submit,
    Tick,
)
from swarmd.pipeline.hop import HopPolicy, HopTable, StageFacts
from swarmd.toys import TOY_HIDDEN, ToyAccount, toy_model

SESSION = b"s" * 16
SECRET = b"k" * 16
MODEL = toy_model(num_blocks=8, vocab_size=1000, max_len=512)


def hidden(first: int, count: int) -> Payload:
    """Rows that can be told apart: row r holds the number `first + r`."""
    rows = [(first + row).to_bytes(4 * TOY_HIDDEN, "little") for row in range(count)]
    return Payload(DType.FLOAT32, (count, TOY_HIDDEN), b"".join(rows))


def numbers(payload: Payload | None) -> list[int]:
    """What `hidden` wrote."""
    assert payload is not None
    width, data = 4 * TOY_HIDDEN, bytes(payload.data)
    assert len(data) == payload.shape[0] * width
    return [int.from_bytes(data[at : at + width], "little") for at in range(0, len(data), width)]


class Bench:
    """A node `hop` with some blocks, between `before` and `after`, opened by `boss`."""

    def __init__(self, blocks: str = "2:4", policy: HopPolicy | None = None, **facts: Any) -> None:
        span = Span.parse(blocks, MODEL.num_blocks)
        self.account = ToyAccount(10_000)
        self.table = HopTable(StageFacts(MODEL, span, **facts), self.account, policy)
        self.order = Open(
            session=SESSION,
            secret=SECRET,
            epoch=1,
            fresh=True,
            model_digest=MODEL.digest,
            blocks=span,
            next_peer="" if span.end == MODEL.num_blocks else "after",
            prev_peer="before" if span.start else "boss",
            max_positions=100,
            prompt_tokens=10,
            sampling=SamplingParams() if span.end == MODEL.num_blocks else None,
            token_ids=tuple(range(10)) if span.end == MODEL.num_blocks else (),
        )
        self.now = 0.0

    @property
    def counters(self) -> Any:
        return self.table.counters

    def handle(self, event: HopEvent) -> list[HopAction]:
        return self.table.handle(event, self.now)

    def tell(self, frame: SessionFrame, sender: str = "boss") -> list[HopAction]:
        return self.handle(Received(sender, frame))

    def open(self, sender: str = "boss", **changes: Any) -> Opened:
        """Open, and return the answer."""
        told = frames(self.tell(replace(self.order, **changes), sender), sender)
        return [answer for answer in told if isinstance(answer, Opened)][-1]

    def step(
        self,
        position: int,
        length: int = 1,
        epoch: int = 1,
        round: int = 0,
        wants: tuple[int, ...] = (),
        sender: str = "",
    ) -> list[HopAction]:
        """Send a step of one chunk."""
        first = self.order.blocks.start == 0
        ids = tuple(range(position, position + length)) if first else ()
        state = None if first else hidden(position, length)
        step = Step(SESSION, epoch, round, position, (length,), ids, state, wants)
        return self.tell(step, sender or self.order.prev_peer)

    def compute(self, submit: Submit) -> list[HopAction]:
        """Let a submitted step be done: row r of the output holds 1000 + its position."""
        step = submit.step
        if submit.sampling is not None:
            drawn = tuple(Drawn(want + 1, want + 500) for want in step.wants)
            return self.handle(Computed(SESSION, submit.ticket, tokens=drawn))
        payload = hidden(1000 + step.position, step.length)
        return self.handle(Computed(SESSION, submit.ticket, payload))

    def apply(self, position: int, length: int = 1, **rest: Any) -> list[HopAction]:
        """Send a step and let it be computed; return what came of that."""
        return self.compute(only(self.step(position, length, **rest), Submit))

    def lose(self, peer_id: str, known: bool = True) -> list[HopAction]:
        return self.handle(PeerLost(peer_id, known))

    def tick(self, now: float) -> list[HopAction]:
        self.now = now
        return self.handle(Tick())


def frames(actions: list[HopAction], to: str) -> list[SessionFrame]:
    """The frames that go to a peer."""
    return [a.frame for a in actions if isinstance(a, Send) and a.peer_id == to]


def steps(actions: list[HopAction]) -> list[Step]:
    """The steps that go on to the next hop."""
    return [frame for frame in frames(actions, "after") if isinstance(frame, Step)]


def tokens(actions: list[HopAction]) -> list[Token]:
    return [frame for frame in frames(actions, "boss") if isinstance(frame, Token)]


def failures(actions: list[HopAction], to: str = "boss") -> list[Failed]:
    return [frame for frame in frames(actions, to) if isinstance(frame, Failed)]


def only(actions: list[HopAction], kind: type[Any]) -> Any:
    """The one action of a kind, which there must be."""
    found = [action for action in actions if isinstance(action, kind)]
    assert len(found) == 1, actions
    return found[0]

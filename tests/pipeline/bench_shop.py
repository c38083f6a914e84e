"""A hop in the middle on the bench, with many sessions of like prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from bench_hop import MODEL, SECRET, hidden, only

from swarmd.core.frames import Close, Open, Opened, Step
from swarmd.core.prefix import prefix_keys
from swarmd.core.span import Span
from swarmd.pipeline.events import Computed, Freeze, HopAction, Received, Send, Submit
from swarmd.pipeline.hop import HopPolicy, HopTable, StageFacts
from swarmd.toys import ToyAccount

UNIT = 4
CHUNK = 8
PROMPT = tuple(range(100, 130))
BLOCKS = Span(2, 4)


class Shop:
    """A hop with room for `total` positions, and sessions of one coordinator, or of several."""

    def __init__(
        self,
        total: int = 1000,
        unit: int = UNIT,
        log_bytes: int = 1 << 20,
        pending: Callable[[str], int] = lambda peer_id: 0,
        **policy: Any,
    ) -> None:
        limits = HopPolicy(prefix_unit=unit, replay_log_bytes=log_bytes, **policy)
        self.account = ToyAccount(total * len(BLOCKS))
        self.table = HopTable(StageFacts(MODEL, BLOCKS), self.account, limits, pending)
        self.now = 0.0
        self.actions: list[HopAction] = []

    def open(
        self, number: int, ids: tuple[int, ...] = PROMPT, boss: str = "boss", **changes: Any
    ) -> Opened:
        """Open a session for a prompt and 10 more; return the answer."""
        order = Open(
            session=bytes([number]) * 16,
            secret=SECRET,
            epoch=1,
            fresh=True,
            model_digest=MODEL.digest,
            blocks=BLOCKS,
            next_peer="after",
            prev_peer="before",
            max_positions=len(ids) + 10,
            prompt_tokens=len(ids),
            prefix=prefix_keys(ids, MODEL.digest, CHUNK, unit=UNIT),
            prefix_unit=UNIT,
            prefix_grain=CHUNK,
        )
        self.actions = self.table.handle(Received(boss, replace(order, **changes)), self.now)
        answer = only(self.actions, Send).frame
        assert isinstance(answer, Opened)
        return answer

    def step(
        self, number: int, position: int, length: int, round: int = 0, epoch: int = 1
    ) -> list[HopAction]:
        """One chunk comes in and is computed: row r of the output is `position + r`."""
        step = Step(
            bytes([number]) * 16, epoch, round, position, (length,), (), hidden(position, length)
        )
        taken = self.table.handle(Received("before", step), self.now)
        submit = only(taken, Submit)
        done = Computed(submit.session, submit.ticket, hidden(position, length))
        return [*taken, *self.table.handle(done, self.now)]

    def prefill(self, number: int, ids: tuple[int, ...] = PROMPT, start: int = 0) -> list[Freeze]:
        """Compute a prompt in chunks; return what was shared of it."""
        round = int(start > 0)
        made: list[HopAction] = []
        for position in range(start, len(ids), CHUNK):
            made += self.step(number, position, min(CHUNK, len(ids) - position), round)
        return [action for action in made if isinstance(action, Freeze)]

    def close(
        self, number: int, boss: str = "boss", epoch: int = 1, keep_s: float = 0.0
    ) -> list[HopAction]:
        order = Close(bytes([number]) * 16, epoch, keep_s=keep_s)
        return self.table.handle(Received(boss, order), self.now)

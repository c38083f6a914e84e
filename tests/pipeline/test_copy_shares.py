"""Copies of many sessions to one peer: what is under way is bounded, shared, and never stuck."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

import pytest
from bench_hop import MODEL, SECRET, hidden, only

from swarmd.core.frames import KV, Close, Copied, Copy, DType, Open, Payload, Step
from swarmd.core.span import Span
from swarmd.pipeline.events import (
    Computed,
    Export,
    Exported,
    HopAction,
    HopEvent,
    PeerLost,
    Received,
    Send,
    Submit,
    Tick,
)
from swarmd.pipeline.hop import HopPolicy, HopTable, StageFacts
from swarmd.toys import ToyAccount

BLOCKS = Span(2, 4)
EACH = 2
"""Bytes of KV of a position."""
LENGTH = 200
FRAME, WINDOW, PEER, SESSIONS = 20, 160, 640, 64
LEAST = PEER // SESSIONS
LIMITS: dict[str, Any] = {
    "copy_frame_bytes": FRAME,
    "copy_window_bytes": WINDOW,
    "copy_peer_bytes": PEER,
    "max_sessions": SESSIONS,
    "copy_rate": float("inf"),
    "prefix_unit": 0,
}


def key(number: int) -> bytes:
    return bytes([number]) * 16


class Donor:
    """A hop whose sessions are copied; what it sends waits for links until it is delivered."""

    def __init__(self, account: ToyAccount | None = None, **policy: Any) -> None:
        self.now = 0.0
        self.links: dict[str, deque[KV]] = {}
        self.waits: Counter[str] = Counter()
        """Bytes that wait for links beside these."""
        self.held: Counter[tuple[str, bytes]] = Counter()
        self.order: list[bytes] = []
        """Whose KV was taken out, one after the other."""
        limits = HopPolicy(**{**LIMITS, **policy})
        facts = StageFacts(MODEL, BLOCKS)
        account = account or ToyAccount(1 << 20)
        self.table = HopTable(facts, account, limits, lambda peer: self.waits[peer])

    def handle(self, event: HopEvent) -> list[HopAction]:
        actions = self.table.handle(event, self.now)
        for action in list(actions):
            if isinstance(action, Export):
                actions += self._export(action)
            elif isinstance(action, Send) and isinstance(action.frame, KV):
                self.links.setdefault(action.peer_id, deque()).append(action.frame)
        return actions

    def _export(self, op: Export) -> list[HopAction]:
        count = op.end - op.start
        part = {"key": Payload(DType.FLOAT32, (1, count, 1), bytes(4 * count))}
        self.order.append(op.session)
        return self.handle(Exported(op.session, op.ticket, op.start, (part, part)))

    def open(self, number: int, length: int = LENGTH, epoch: int = 1) -> None:
        """Open a session and let it compute so many positions."""
        fresh = epoch == 1
        order = Open(
            session=key(number),
            secret=SECRET,
            epoch=epoch,
            fresh=fresh,
            model_digest=MODEL.digest,
            blocks=BLOCKS,
            next_peer="after",
            prev_peer="before",
            max_positions=500,
            prompt_tokens=length,
        )
        self.handle(Received("boss", order))
        if fresh:
            self.compute(number, 0, length)

    def compute(self, number: int, position: int, length: int, round: int = 0) -> None:
        step = Step(key(number), 1, round, position, (length,), (), hidden(position, length))
        submit = only(self.handle(Received("before", step)), Submit)
        self.handle(Computed(submit.session, submit.ticket, hidden(position, length)))

    def copy(self, number: int, peer: str = "heir", position: int = 0, epoch: int = 1) -> None:
        self.handle(Received("boss", Copy(key(number), epoch, peer, BLOCKS, position)))

    def deliver(self, peer: str = "heir", frames: int = 1) -> None:
        """Let a link carry some frames, and the peer say that it has them."""
        for _ in range(frames):
            if link := self.links.get(peer):
                kv = link.popleft()
                assert kv.position <= self.held[peer, kv.session], "a gap"
                self.held[peer, kv.session] = kv.end
                self.handle(Received(peer, Copied(kv.session, kv.epoch, kv.end)))

    def under_way(self, peer: str = "heir") -> int:
        """Bytes that wait for a link."""
        return sum(kv.length * EACH for kv in self.links.get(peer, ()))


def begin(count: int, **policy: Any) -> Donor:
    """So many sessions, of which copies are ordered one after the other."""
    donor = Donor(**policy)
    for number in range(count):
        donor.open(number)
    for number in range(count):
        donor.copy(number)
    return donor


@pytest.mark.parametrize("count", [1, 4, 17, 40, 64])
def test_copies_to_one_peer_cannot_overrun_its_link(count: int) -> None:
    donor = begin(count)
    most = donor.under_way()
    for number in range(count):
        donor.compute(number, LENGTH, 8)
        most = max(most, donor.under_way())
    assert {kv.session for kv in donor.links["heir"]} == {key(n) for n in range(count)}
    while donor.links["heir"]:
        donor.deliver()
        most = max(most, donor.under_way())
    assert most <= min(count * WINDOW, PEER + count * LEAST)
    assert all(donor.held["heir", key(number)] == LENGTH + 8 for number in range(count))
    assert not donor.table.copies.under_way


def test_the_lag_is_what_copies_lack() -> None:
    donor = begin(3)
    assert donor.table.copies.lag == 3 * LENGTH
    donor.compute(0, LENGTH, 8)
    assert donor.table.copies.lag == 3 * LENGTH + 8
    donor.deliver()
    assert donor.table.copies.lag == 3 * LENGTH + 8 - FRAME // EACH
    while donor.links["heir"]:
        donor.deliver()
    assert donor.table.copies.lag == 0


def test_what_is_under_way_does_not_fall_to_shreds() -> None:
    """Others' news, and tokens, make room for a position here and there."""
    count = 20
    donor = begin(count)
    for position in range(LENGTH, LENGTH + 50):
        donor.deliver(frames=2)
        for number in range(count):
            donor.compute(number, position, 1)
    while donor.links["heir"]:
        donor.deliver()
    assert len(donor.order) <= count * (LENGTH + 50) * EACH // FRAME * 1.5


def test_sessions_share_what_may_be_under_way() -> None:
    """Those that began first do not keep what they took when they were few."""
    count = 20
    donor = begin(count)
    while all(donor.held["heir", key(number)] < LENGTH for number in range(count)):
        donor.deliver()
    least = min(donor.held["heir", key(number)] for number in range(count))
    assert least >= LENGTH // 4


def test_peers_do_not_share_with_each_other() -> None:
    donor = begin(20)
    donor.open(20)
    donor.copy(20, "other")
    assert donor.under_way("other") == WINDOW


def test_copies_that_nobody_takes_in_do_not_stop_those_of_others() -> None:
    """A peer may have forgotten some of its sessions."""
    donor = begin(10)
    donor.links["heir"].clear()
    donor.open(10)
    donor.copy(10)
    for _ in range(LENGTH):
        donor.deliver()
    assert donor.held["heir", key(10)] == LENGTH


def test_what_else_waits_for_the_link_goes_before_copies() -> None:
    donor = Donor()
    donor.waits["heir"] = 10 * PEER
    donor.open(1)
    donor.copy(1)
    assert donor.under_way() == LEAST
    donor.deliver()
    assert donor.under_way() == LEAST, "a little goes in any case"
    donor.waits["heir"] = 0
    donor.deliver()
    donor.deliver()
    assert donor.under_way() > LEAST


def test_a_copy_that_stands_still_for_its_link_is_not_sent_twice() -> None:
    donor = begin(1)
    frames = len(donor.links["heir"])
    donor.waits["heir"] = FRAME + 1
    donor.copy(0)
    assert len(donor.links["heir"]) == frames
    donor.waits["heir"] = 0
    donor.links["heir"].clear()
    donor.copy(0)
    assert donor.links["heir"][0].position == 0, "it is lost, not late"


def test_a_copy_for_another_peer_ends_the_one_before() -> None:
    donor = begin(1)
    donor.copy(0, "other")
    assert list(donor.table.sessions[key(0)].copies) == ["other"]
    donor.handle(Received("heir", Copied(key(0), 1, 10)))
    assert donor.under_way() == WINDOW, "nothing more"


def test_a_copy_for_nobody_ends_the_one_before() -> None:
    donor = begin(2)
    donor.copy(0, "")
    assert not donor.table.sessions[key(0)].copies
    assert donor.table.copies.lag == LENGTH, "that of the other session"
    assert donor.table.copies.under_way.of("heir", key(0)) == 0


def test_sessions_take_turns_at_the_rate() -> None:
    donor = begin(3, copy_rate=float(FRAME))
    for _ in range(6):
        due = donor.table.next_deadline()
        assert due is not None
        donor.now = due
        donor.handle(Tick())
    assert donor.order[1:7] == [key(n) for n in (0, 1, 2, 0, 1, 2)], "after the very first"
    assert donor.now == pytest.approx(6.0)


class Tiles(ToyAccount):
    """Memory is taken in tiles of 64 positions."""

    def size(self, blocks: Span, positions: int) -> int:
        return super().size(blocks, -(-positions // 64) * 64)


def test_frames_are_as_large_as_the_limit_says_where_memory_is_taken_in_tiles() -> None:
    donor = Donor(Tiles(1 << 20))
    donor.open(1)
    donor.copy(1)
    assert {kv.length for kv in donor.links["heir"]} == {FRAME // EACH}
    assert donor.under_way() == WINDOW


def test_nothing_counts_as_under_way_that_is_given_up() -> None:
    donor = begin(4)
    under_way = donor.table.copies.under_way
    assert under_way.total("heir") == donor.under_way() == 4 * WINDOW
    donor.compute(0, 20, 4, round=1)
    assert under_way.of("heir", key(0)) < WINDOW, "the rewind"
    donor.handle(Received("boss", Close(key(0), 1)))
    assert under_way.total("heir") == 3 * WINDOW
    donor.open(1, epoch=2)
    assert under_way.total("heir") == 2 * WINDOW
    donor.handle(PeerLost("heir"))
    assert not under_way
    assert donor.table.copies.lag == 0

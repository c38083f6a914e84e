"""What resumed sessions send out of their logs: as fast as their links take it, and all of it."""

from __future__ import annotations

from collections import Counter

from bench_hop import numbers
from bench_shop import PROMPT, Shop

from swarmd.core.frames import Resume, Step
from swarmd.pipeline.backlogs import LOOK_AGAIN
from swarmd.pipeline.events import HopAction, PeerLost, Received, Send, Tick

LIMIT, STEP = 1000, 8
STEP_BYTES = STEP * 16
WHOLE = len(PROMPT) * 16
SESSIONS = range(2, 10)


class Repaired:
    """Sessions that share a prompt, whose next hop is lost: all are resumed with another one.

    That one is `heir`, and its link takes nothing until it is told to.
    """

    def __init__(self) -> None:
        self.pending: Counter[str] = Counter()
        self.queue: list[Step] = []
        self.most = 0
        """Bytes that have waited for the link at once."""
        self.shop = Shop(
            backlog_bytes=LIMIT, replay_step=STEP, pending=lambda peer: self.pending[peer]
        )
        self.held: dict[bytes, list[int]] = {}
        """By session, the rows that the heir has."""
        self.rounds: Counter[bytes] = Counter()
        self.carried: Counter[bytes] = Counter()
        """Positions that the link has carried."""
        self.shop.open(1)
        self.shop.prefill(1)
        self.shop.close(1)
        for number in SESSIONS:
            self.shop.open(number)
            self.shop.prefill(number, start=24)
        self.take(self.shop.table.handle(PeerLost("after"), 0.0))
        self.resume_all()

    def resume_all(self, epoch: int = 2) -> None:
        """All in one moment, before the link can take anything."""
        made: list[HopAction] = []
        for number in SESSIONS:
            self.shop.open(number, epoch=epoch, fresh=False, next_peer="heir")
            order = Resume(bytes([number]) * 16, epoch, 0)
            made += self.shop.table.handle(Received("boss", order), self.shop.now)
        self.take(made)

    def take(self, actions: list[HopAction]) -> None:
        """Carry out what is to be sent to the heir."""
        for action in actions:
            if isinstance(action, Send) and action.peer_id == "heir":
                assert isinstance(action.frame, Step)
                assert action.frame.hidden is not None
                self.queue.append(action.frame)
                self.pending["heir"] += action.frame.hidden.nbytes
        self.most = max(self.most, self.pending["heir"])

    def deliver(self, nbytes: int) -> None:
        """Let the link take so much; the heir takes it as a hop does."""
        while self.queue and nbytes > 0:
            step = self.queue.pop(0)
            assert step.hidden is not None
            nbytes -= step.hidden.nbytes
            self.pending["heir"] -= step.hidden.nbytes
            rows = self.held.setdefault(step.session, [])
            if step.round > self.rounds[step.session]:
                self.rounds[step.session] = step.round
                del rows[step.position :]
            assert step.position == len(rows), "nothing is skipped, nothing comes twice"
            rows += numbers(step.hidden)
            self.carried[step.session] += step.length

    def tick(self) -> None:
        due = self.shop.table.next_deadline()
        assert due is not None
        self.shop.now = due
        self.take(self.shop.table.handle(Tick(), due))

    def finish(self) -> None:
        """Let the link take all, little by little."""
        while self.queue:
            self.deliver(300)
            if self.shop.table.backlogs.due is not None:
                self.tick()

    @property
    def behind(self) -> list[int]:
        """Sessions that have more to send than there was room for."""
        sessions = self.shop.table.sessions
        return [number for number in SESSIONS if sessions[bytes([number]) * 16].unsent]


def test_sessions_that_share_a_prompt_do_not_overrun_the_link_when_all_are_resumed() -> None:
    repaired = Repaired()
    assert repaired.most >= LIMIT, "as much as may wait goes at once"
    repaired.finish()
    assert repaired.most < LIMIT + STEP_BYTES < len(SESSIONS) * WHOLE
    assert all(rows == list(range(len(PROMPT))) for rows in repaired.held.values())
    assert len(repaired.held) == len(SESSIONS)
    counters = repaired.shop.table.counters
    assert counters.replayed_positions == len(SESSIONS) * len(PROMPT)
    assert repaired.shop.table.backlogs.due is None


def test_sessions_take_turns() -> None:
    repaired = Repaired()
    behind = repaired.behind
    assert len(behind) > 3
    repaired.deliver(10**6)
    repaired.tick()
    turns = [step.session[0] for step in repaired.queue]
    assert sorted(turns[: len(behind)]) == behind


def test_a_link_that_takes_nothing_is_sent_nothing_more() -> None:
    repaired = Repaired()
    for _ in range(10):
        repaired.tick()
    assert repaired.most < LIMIT + STEP_BYTES
    assert repaired.shop.table.next_deadline() == repaired.shop.now + LOOK_AGAIN


def test_what_is_computed_meanwhile_comes_after_what_waits() -> None:
    repaired = Repaired()
    before, behind = len(repaired.queue), repaired.behind
    for number in behind:
        for position in range(30, 34):
            repaired.take(repaired.shop.step(number, position, 1, epoch=2))
    assert len(repaired.queue) == before
    repaired.finish()
    assert all(repaired.held[bytes([number]) * 16] == list(range(34)) for number in behind)
    repaired.take(repaired.shop.step(behind[0], 34, 1, epoch=2))
    assert len(repaired.queue) == 1, "what waits for nothing goes at once"


def test_a_rewind_meanwhile_sends_again_what_is_computed_again_and_no_more() -> None:
    repaired = Repaired()
    behind = repaired.behind
    for number in SESSIONS:
        repaired.take(repaired.shop.step(number, 16, 8, round=1, epoch=2))
        repaired.take(repaired.shop.step(number, 24, 6, round=1, epoch=2))
    repaired.finish()
    assert all(repaired.carried[bytes([number]) * 16] == 30 for number in behind)
    assert all(rows == list(range(30)) for rows in repaired.held.values())
    assert all(repaired.rounds[session] == 1 for session in repaired.held)


def test_what_waits_survives_its_log() -> None:
    """Others' outputs may need the room of what a log has and the link has not had yet."""
    repaired = Repaired()
    for number in SESSIONS:
        log = repaired.shop.table.sessions[bytes([number]) * 16].log
        while len(log):
            log.drop_oldest()
    repaired.finish()
    assert all(rows == list(range(30)) for rows in repaired.held.values())


def test_what_waits_for_a_peer_that_is_lost_goes_nowhere_until_the_next_epoch() -> None:
    repaired = Repaired()
    repaired.queue.clear()
    repaired.pending.clear()
    repaired.take(repaired.shop.table.handle(PeerLost("heir"), 0.0))
    repaired.tick()
    assert not repaired.queue
    repaired.resume_all(epoch=3)
    repaired.finish()
    assert all(rows == list(range(30)) for rows in repaired.held.values())


def test_what_waits_does_not_outlive_its_session() -> None:
    repaired = Repaired()
    repaired.deliver(10**6)
    for number in SESSIONS:
        repaired.shop.close(number, epoch=2)
    repaired.take(repaired.shop.table.handle(Tick(), 1.0))
    assert not repaired.queue
    assert repaired.shop.table.next_deadline() is None

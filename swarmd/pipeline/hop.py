"""The hop's side: every session in which this node computes some blocks, as one state machine.

It decides what is computed, logged, sent on, refused and freed. Computing is the executor's,
sending the links', and the bytes of KV are counted by the account that it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

from swarmd.core.clock import earliest
from swarmd.core.errors import SessionError
from swarmd.core.frames import (
    KV,
    Close,
    Copied,
    Copy,
    Failed,
    Gap,
    Keep,
    Open,
    Opened,
    Poll,
    Refusal,
    Release,
    Resume,
    Step,
    Token,
)
from swarmd.pipeline import admission
from swarmd.pipeline.admission import Refused
from swarmd.pipeline.backlogs import Backlogs
from swarmd.pipeline.copies import Copies
from swarmd.pipeline.events import (
    Computed,
    ComputeFailed,
    Drain,
    Exported,
    Free,
    HopAction,
    HopEvent,
    Imported,
    PeerLost,
    Received,
    Send,
    Tick,
    Truncate,
)
from swarmd.pipeline.hop_session import HopInput, HopSession, HopState
from swarmd.pipeline.hop_values import HopCounters, HopPolicy, KVAccount, StageFacts
from swarmd.pipeline.lapses import Lapses
from swarmd.pipeline.leases import Leases
from swarmd.pipeline.polls import Polls
from swarmd.pipeline.prefix_index import PrefixIndex
from swarmd.pipeline.replay_log import ReplayBudget, ReplayLog
from swarmd.pipeline.shortage import Shortage
from swarmd.pipeline.steps import cut

__all__ = ["HopCounters", "HopPolicy", "HopTable", "KVAccount", "StageFacts"]


class HopTable:
    """All sessions of a stage. `handle` is the only way in; it never raises for a peer's fault."""

    def __init__(
        self,
        facts: StageFacts,
        account: KVAccount,
        policy: HopPolicy | None = None,
        pending: Callable[[str], int] = lambda peer_id: 0,
    ) -> None:
        """`pending` says how many bytes wait for the link to a peer."""
        self.facts = facts
        self.policy = policy or HopPolicy()
        self.counters = HopCounters()
        self.sessions: dict[bytes, HopSession] = {}
        self.budget = ReplayBudget(self.policy.replay_log_bytes)
        self.draining = False
        self._decisions = 0  # to go, or to stay after all
        self.prefixes = PrefixIndex(account, self.counters, facts, self.policy)
        self.leases = Leases(
            self.prefixes,
            account,
            self.counters,
            self.policy,
            self.budget,
            chunk_exact=facts.chunk_exact,
        )
        self.copies = Copies(
            self.sessions,
            account,
            self.counters,
            self.policy,
            self._next_ticket,
            self._give_up,
            pending,
            self.prefixes.shrink,
        )
        self.backlogs = Backlogs(self.sessions, self.counters, self.policy, pending)
        self.lapses = Lapses(self.counters, self.policy)
        self._account = account
        self.polls = Polls(self._of_coordinator)
        self._ticket = 0
        self._shortage = Shortage(self.policy.exhausted_for)
        self._events: dict[type[Any], Callable[[Any, float], list[HopAction]]] = {
            Received: self._received,
            Computed: self._computed,
            ComputeFailed: self._compute_failed,
            Exported: self.copies.exported,
            Imported: self.copies.imported,
            PeerLost: self._peer_lost,
            Tick: self._tick,
            Drain: self._drain,
        }
        self._frames: dict[type[Any], Callable[[str, Any, float], list[HopAction]]] = {
            Open: self._open,
            Resume: self._resume,
            Step: self._step,
            Keep: self._keep,
            Close: self._close,
            Copy: self._copy,
            KV: self.copies.kv,
            Copied: self.copies.copied,
            Failed: self._failed_downstream,
            Poll: self.polls.answer,
            Release: self.leases.release,
        }

    def handle(self, event: HopEvent, now: float) -> list[HopAction]:
        """Take an event at `now`, in seconds of a monotonic clock; return what is to be done."""
        return self._events[type(event)](event, now)

    def next_deadline(self) -> float | None:
        """When the next `Tick` is due at the latest that matters; None without sessions."""
        due = earliest(self.lapses.due, self.copies.due, self.backlogs.due)
        due = due if self.sessions or len(self.leases) else None
        return self._shortage.before(due) if self._shortage.until is not None else due

    def _next_ticket(self) -> int:
        self._ticket += 1
        return self._ticket

    def _received(self, event: Received, now: float) -> list[HopAction]:
        handler = self._frames.get(type(event.frame))
        return handler(event.peer_id, event.frame, now) if handler else []

    # Opening.

    def _open(self, sender: str, order: Open, now: float) -> list[HopAction]:
        actions: list[HopAction] = []
        try:
            if session := self.sessions.get(order.session):
                admission.check_claim(session, sender, order)
                if order.epoch == session.epoch:
                    return [self._opened(session)]
            admission.check_order(order, self.facts)
            if session and (session.blocks != order.blocks or (order.fresh and session.length)):
                actions += self._free(session)
                session = None
            new = session is None
            actions += self.copies.opened(session, order) if session else []
            session, made = self._admit(sender, order, session)
        except Refused as no:
            self.counters.refused += 1
            answer = Opened(order.session, no.epoch or order.epoch, no.refusal, str(no))
            return [*actions, Send(sender, answer)]
        if not (order.fresh or order.donor) and (new or session.donor):
            session.behind = session.length, order.computed
        self.counters.taken_over += bool(session.donor and not order.donor and session.length)
        session.point(sender, order)
        self.lapses.opened(session, now, unused=new or not session.length)
        leaving = [self._leaving(session)] if self.draining else []
        return [*actions, *made, self._opened(session), *leaving]

    def _admit(
        self, sender: str, order: Open, known: HopSession | None
    ) -> tuple[HopSession, list[HopAction]]:
        """Make room for a session; return it, with what the executor has to do for it."""
        if known is None:
            admission.check_newcomer(len(self.sessions), self.policy, self._shortage, self.draining)
        capacity = self._account.capacity(order.blocks)
        admission.check_length(order, min(capacity, self.facts.model.max_model_len))
        session, actions = known or self._new(sender, order), []
        session.keeps = known.keeps if known else self.leases.admits(order, self.sessions.values())
        session.max_positions, before = order.max_positions, session.max_positions
        if known is None:
            actions = self.leases.attach(session, order) or self.prefixes.attach(session)
        fits, dropped = self.prefixes.reserve(session)
        if not fits:
            session.max_positions = before
            if known is None:
                self.prefixes.release(session)
                session.log.truncate(0)
            message = (
                f"KV for {order.max_positions} positions does not fit now: "
                f"{self.free_bytes()} bytes are free"
            )
            raise Refused(Refusal.KV_EXHAUSTED, message)
        self.counters.adopted += known is not None
        self.counters.opened += known is None
        self.sessions[order.session] = session
        return session, [*dropped, *actions]

    def _new(self, sender: str, order: Open) -> HopSession:
        log = ReplayLog(self.budget)
        session = HopSession(order.session, order.secret, order.blocks, log, self._ticket)
        session.prompt_tokens, session.next_peer = order.prompt_tokens, order.next_peer
        session.tenant = order.tenant
        self.prefixes.name(session, sender, order)
        return session

    def free_bytes(self) -> int:
        """Bytes of KV that a new session could have."""
        return 0 if self._shortage else self._account.free_bytes() + self.prefixes.idle_bytes

    def _opened(self, session: HopSession) -> Send:
        return Send(session.coordinator, admission.opened(session, self.facts, self.free_bytes()))

    # The coordinator's other frames.

    def _of_coordinator(self, sender: str, session_id: bytes) -> HopSession | None:
        session = self.sessions.get(session_id)
        if session is None:
            self.counters.unknown_session += 1
            return None
        if sender != session.coordinator:
            self.counters.wrong_sender += 1
            return None
        return session

    def _resume(self, sender: str, order: Resume, now: float) -> list[HopAction]:
        session = self._of_coordinator(sender, order.session)
        if session is None:
            return []
        if order.epoch != session.epoch:
            self.counters.stale_epochs += 1
            return []
        self.lapses.used(session, now)
        if session.state is HopState.FLOWING:
            self.counters.duplicates += 1
            return []
        session.resume(order.send_from)
        if session.last or session.log.start > session.send_from:
            return []  # what the log lacks is computed again, and what it has follows on that
        return self.backlogs.begin(session, now)

    def _keep(self, sender: str, order: Keep, now: float) -> list[HopAction]:
        for session_id in order.sessions:
            if session := self._of_coordinator(sender, session_id):
                self.lapses.used(session, now)
        return []

    def _close(self, sender: str, order: Close, now: float) -> list[HopAction]:
        session = self._of_coordinator(sender, order.session)
        if session is None or order.epoch < session.epoch:
            return []
        names = self.prefixes.names(sender, session.blocks, order.prefix_unit, order.prefix)
        session.prefix = names or session.prefix
        actions = self.prefixes.share(session)
        if order.keep_s > 0:
            actions += self.leases.keep(session, order.keep_s, now)
            self.lapses.look_by(self.leases.next_end)
        return [*actions, *self._free(session)]

    # Copies.

    def _copy(self, sender: str, order: Copy, now: float) -> list[HopAction]:
        session = self._of_coordinator(sender, order.session)
        if session is None or order.epoch != session.epoch or not self.facts.rewinds:
            return []
        self.lapses.used(session, now)
        return self.copies.order(session, order, now)

    # Steps.

    def _step(self, sender: str, step: Step, now: float) -> list[HopAction]:
        session = self.sessions.get(step.session)
        if session is None:
            self.counters.unknown_session += 1
            unknown = Failed(step.session, step.epoch, Refusal.UNKNOWN_SESSION, "not open here")
            return [Send(sender, unknown)]
        if sender != session.prev_peer or session.donor:
            self.counters.wrong_sender += 1
            return []
        if step.epoch != session.epoch:
            self.counters.stale_epochs += 1
            return []
        if step.round < session.round:
            self.counters.stale_rounds += 1
            return []
        problem = admission.misfit(session, step, self.facts.model)
        if problem:
            self.counters.bad_steps += 1
            return [self._fail(session, Refusal.BAD_STEP, problem)]
        session.lapses_at = None
        rewound = [] if step.round == session.round else self._new_round(session, step)
        if rewound is None:
            message = f"KV of its own for {session.max_positions} positions does not fit now"
            return self._give_up(session, Refusal.KV_EXHAUSTED, message)
        if sender == session.coordinator or (step.wants and step.end > session.length):
            session.seen_at = now  # who else would ask for a token that is new?
        return [*rewound, *self._take(session, step)]

    def _new_round(self, session: HopSession, step: Step) -> list[HopAction] | None:
        """Rewind as a step of a new round says; None when what was shared has no room now."""
        session.round = step.round
        keep = step.position if self.facts.rewinds or step.position >= session.length else 0
        gone = session.rewind(step.position, keep)
        if not gone:
            return []
        self.counters.recomputed_positions += gone
        self.copies.rewind(session)
        fits, dropped = self.prefixes.shrink(session)
        return [*dropped, Truncate(session.id, keep)] if fits else None

    def _take(self, session: HopSession, step: Step) -> list[HopAction]:
        if step.position > session.length:
            return self._gap(session)
        if step.end <= session.length:
            self.counters.duplicates += 1
            return []
        if len(session.pending) >= self.policy.max_queued_steps:
            message = f"{len(session.pending)} steps of this session are waiting already"
            return [self._fail(session, Refusal.BAD_STEP, message)]
        if step.position < session.length:
            step = cut(step, session.length, step.end)
        if session.behind[1] > step.position:
            self.counters.recomputed_positions += session.recomputes(step)
        return [session.accept(self._next_ticket(), step)]

    def _gap(self, session: HopSession) -> list[HopAction]:
        self.counters.gaps += 1
        if session.gap_told == session.round:
            return []
        session.gap_told = session.round
        gap = Gap(session.id, session.epoch, session.round, session.length)
        return [Send(session.coordinator, gap)]

    # Results.

    def _computed(self, event: Computed, now: float) -> list[HopAction]:
        session = self.sessions.get(event.session)
        if session is None or event.ticket not in session.pending:
            return []  # cut off by a rewind, or of a session of the same id that is gone
        if session.last:
            return [*self._tokens(session, event), *self.copies.advance(session, now)]
        if event.payload is None:
            return self._broken(session, "no hidden states came out of a step")
        try:
            done = session.output(event.ticket, event.payload, event.waited_us)
        except SessionError as error:
            return self._broken(session, str(error))
        if done is None:
            return []
        copied = self.copies.advance(session, now)
        if self.budget.is_exceeded:
            logs = (other.log for other in self.sessions.values())
            self.counters.evicted_positions += self.budget.enforce(chain(logs, self.leases.logs))
        onward = session.onward(done)
        shared = [*copied, *self.prefixes.share(session)]
        return shared if onward is None else [Send(session.next_peer, onward), *shared]

    def _tokens(self, session: HopSession, event: Computed) -> list[HopAction]:
        result, shared = session.drawn(event.ticket, event.tokens), self.prefixes.share(session)
        if result is None:
            return shared
        (step, drawn), told = result, list[HopAction]()
        waited_us = step.waited_us + event.waited_us
        for t in drawn:
            place = (session.id, step.epoch, step.round, t.position)
            told.append(Send(session.coordinator, Token(*place, t.id, t.logprob, t.top, waited_us)))
        return told + shared

    def _compute_failed(self, event: ComputeFailed, now: float) -> list[HopAction]:
        session = self.sessions.get(event.session)
        if session is None or event.ticket <= session.born:
            return []
        # Even where a rewind has made the step void: the KV below it may be damaged.
        if not event.exhausted:
            return self._broken(session, event.message)
        self.counters.memory_exhausted += 1
        self._shortage.begin(now)
        message = f"out of memory: {event.message}"
        return [*self._broken(session, message, Refusal.KV_EXHAUSTED), *self.prefixes.clear()]

    def _broken(
        self, session: HopSession, message: str, refusal: Refusal = Refusal.COMPUTE_FAILED
    ) -> list[HopAction]:
        self.counters.compute_failed += 1
        failed = self._fail(session, refusal, message)
        return [*self._free(session), failed]

    # Losses and time.

    def _peer_lost(self, event: PeerLost, now: float) -> list[HopAction]:
        refusal = Refusal.NEXT_UNREACHABLE if event.known else Refusal.UNKNOWN_PEER
        actions: list[HopAction] = []
        for session in self.sessions.values():
            self.copies.lost(session, event.peer_id)
            if session.next_peer == event.peer_id and not session.donor:
                session.move(HopInput.NEXT_LOST)
                if session.coordinator == event.peer_id:
                    continue  # it cannot be told either, and to try would lose it again
                message = f"the next hop {event.peer_id} cannot be reached"
                actions.append(self._fail(session, refusal, message, event.peer_id))
        return actions

    def _failed_downstream(self, sender: str, failed: Failed, now: float) -> list[HopAction]:
        session = self.sessions.get(failed.session)
        if session is None or sender != session.next_peer or failed.epoch != session.epoch:
            return []
        session.move(HopInput.NEXT_LOST)
        return [self._fail(session, failed.refusal, failed.message, sender)]

    def _tick(self, event: Tick, now: float) -> list[HopAction]:
        actions: list[HopAction] = []
        self._shortage.tick(now)
        self.leases.end(now)
        for session in self.lapses.over(self.sessions.values(), now):
            actions += self._free(session)
        self.lapses.look_by(self.leases.next_end)
        return [*actions, *self.copies.serve(now), *self.backlogs.advance(now)]

    def _drain(self, event: Drain, now: float) -> list[HopAction]:
        said = event.on or self.draining
        self.draining = event.on
        self._decisions += 1
        return [self._leaving(session) for session in self.sessions.values() if said]

    def _leaving(self, session: HopSession) -> Send:
        news = session.leaving(self._decisions, stays=not self.draining)
        return Send(session.coordinator, news)

    def _fail(self, session: HopSession, why: Refusal, message: str, lost: str = "") -> Send:
        failed = Failed(session.id, session.epoch, why, message, lost)
        return Send(session.coordinator, failed)

    def _give_up(self, session: HopSession, refusal: Refusal, message: str) -> list[HopAction]:
        return [*self._free(session), self._fail(session, refusal, message)]

    def _free(self, session: HopSession) -> list[HopAction]:
        del self.sessions[session.id]
        self.copies.end(session)
        session.log.truncate(0)
        self.prefixes.release(session)
        self._account.release(session.id)
        self.counters.freed += 1
        return [Free(session.id)]

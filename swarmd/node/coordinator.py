"""The sessions that this node coordinates: a driver each, fed by frames, time and the view.

Every decision is `swarmd.pipeline.driver`'s; routes come from `swarmd.node.presence`; what a client
is told is `swarmd.node.inference`'s.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import random
from collections.abc import Callable, Collection, Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from hmac import compare_digest
from itertools import islice
from typing import Any

from swarmd.core.errors import (
    CoverageError,
    KVExhausted,
    QueueFull,
    RequestError,
    SessionLost,
    SwarmdError,
)
from swarmd.core.frames import Release, SessionFrame
from swarmd.core.peers import ModelInfo
from swarmd.core.prefix import PREFIX_UNIT
from swarmd.node.coordinator_stats import CoordinatorStats
from swarmd.node.gate import Gate
from swarmd.node.histogram import Histogram
from swarmd.node.kept import Kept, KeptBook
from swarmd.node.knocks import Knocks
from swarmd.node.prompt_book import PromptBook
from swarmd.node.requests import Generation, session_request
from swarmd.node.routes import Asked, RouteFinder
from swarmd.node.run import Output, Run, go_round
from swarmd.node.timer import Deadline
from swarmd.node.waiting_line import WaitingLine
from swarmd.pipeline import events as ev
from swarmd.pipeline.driver import Driver, DriverState
from swarmd.pipeline.experience import Experience
from swarmd.pipeline.policy import DriverPolicy

log = logging.getLogger(__name__)

GAPS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 15.0, 30.0)
FIRST_S = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 15.0, 30.0, 60.0, 120.0)
EASED = 8
"""Sessions that are given to others at once, when this node is slow."""
STAYS_S = 30.0
"""For so long a session stays that was given to this node, or could be given to nobody."""
BEARS_S = 5.0
"""For so long it bears a slow hop, where it found nobody for its place."""
TURN_S = 10.0
"""How long a session waits for another one's prompt that nobody has begun to compute."""

MAX_UNREAD = 4096
"""Outputs that may wait for a client beside what its connection holds: who reads as little as that
is told to come again, and holds no KV meanwhile."""


@dataclass(frozen=True, slots=True)
class CoordinatorLimits:
    """What one node coordinates at most, and how it cuts prompts."""

    max_sessions: int
    chunk_size: int
    prefix_unit: int = PREFIX_UNIT
    """Positions of prompts that sessions share together; 0 shares nothing."""
    keep_limit: float = 0.0
    """Seconds that sessions are kept after their end at most; 0: not at all."""


class Coordinator:
    """All sessions coordinated here."""

    def __init__(
        self,
        own_id: str,
        model: ModelInfo,
        send: Callable[[str, Sequence[SessionFrame]], None],
        routes: RouteFinder,
        knocks: Knocks,
        policy: DriverPolicy,
        limits: CoordinatorLimits,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        self.stats = CoordinatorStats()
        self.gaps = Histogram(GAPS_S)
        """Seconds between the tokens of a session: stalls are at its end. Where a client came from
        another coordinator, since the last token there; a wait that no token ended is not in it."""
        self.first_tokens = Histogram(FIRST_S)
        """Seconds from a session's coming here to its first token."""
        self._own_id = own_id
        self._model = model
        self._send = send
        self._routes = routes
        self._knocks = knocks
        self._policy = policy
        self._limits = limits
        self._spawn = spawn
        self._runs: dict[bytes, Run] = {}
        self._experience = Experience(routes.speed)
        self._book = PromptBook(limits.prefix_unit)
        self._line = WaitingLine()
        self._arrivals = Gate("sessions are coordinated", limits.max_sessions)
        self.kept = KeptBook(4 * limits.max_sessions)
        self._outbox: dict[str, list[SessionFrame]] | None = None
        """Frames that wait until all that came together is handled."""

    def __len__(self) -> int:
        return len(self._runs)

    @property
    def waiting(self) -> int:
        """How many sessions stand in line for KV."""
        return len(self._line)

    @contextmanager
    def run(self, generation: Generation) -> Iterator[Run]:
        """Start a generation; leaving the context ends the session on all hops.

        Raises QueueFull, or RequestError when the session is coordinated here already, unless its
        client resumes it: that one is believed that the other call is lost.
        """
        run = self._start(generation)
        try:
            self._begin(run)
            yield run
        finally:
            self.stop(run, "cancelled")
            self._forget(run)

    def place(self) -> AbstractContextManager[None]:
        """Keep a place for a session whose prompt is read yet. Raises QueueFull."""
        return self._arrivals.enter(len(self._runs))

    def _begin(self, run: Run) -> None:
        """Start, or wait until another one has computed what begins alike."""
        request = run.driver.request
        if request.resumed or request.past or self._book.begin(run.session, request.prefix):
            self._handle(run, ev.Start(self._routes.suspected()))
        else:
            asyncio.get_running_loop().call_later(TURN_S, self._wait_on, run)

    def _wait_on(self, run: Run) -> None:
        """Begin after all, unless the prompt is being computed: then its driver's deadlines hold.

        Else a crowd on slow machines would compute at once what one of it is about to have done.
        """
        if run.driver.state is not DriverState.NEW or not self._lives(run):
            return
        ahead = self._runs.get(self._book.ahead_of(run.session))
        if ahead is not None and ahead.admitted:
            asyncio.get_running_loop().call_later(TURN_S, self._wait_on, run)
        else:
            self._handle(run, ev.Start(self._routes.suspected()))

    def _prompt_done(self, run: Run) -> None:
        """Let those begin that waited for this prompt."""
        for session in self._book.done(run.session):
            other = self._runs.get(session)
            if other is not None and other.driver.state is DriverState.NEW:
                self._begin(other)

    def _learn(self, run: Run, output: Output) -> None:
        """Note that hops work, and what they hold of prompts: what they say, and have computed."""
        if isinstance(output, ev.Emit) and not run.proved:
            self._routes.worked(run.driver.route)
        run.proved = not isinstance(output, ev.Routed)
        driver, shares = run.driver, not run.driver.request.claimed
        keys = driver.request.prefix if shares else ()
        if isinstance(output, ev.Routed):
            run.admitted = True
            self._line.leave(run.session, served=True)
            for peer, answer in driver.held:
                self._book.correct(keys, peer, answer.kv_length)
            return
        if not run.has_begun:
            run.has_begun = True
            if isinstance(output, ev.Emit):
                self._book.learn(keys, [hop.peer_id for hop in driver.route])
            self._prompt_done(run)
        if isinstance(output, ev.Finished) and output.error is None and shares:
            self._book.learn(driver.keys, [hop.peer_id for hop in driver.route])

    def hand_over(self) -> None:
        """Let others go on with the sessions coordinated here."""
        self._tell_all(ev.HandOver())

    def ease(self) -> None:
        """Let others go on with some of the sessions, where they can: this node is slow."""
        now = asyncio.get_running_loop().time()
        movable = [run for run in self._runs.values() if run.has_begun and now >= run.stays_until]
        for run in movable[:EASED]:
            run.stays_until = now + STAYS_S
            self._handle(run, ev.HandOver(stays=True))

    def go_round(self, peers: Collection[str]) -> None:
        """Have some of the sessions leave hops that say that they are slow, for quicker ones."""
        slow = functools.cache(lambda hop: hop.peer_id in peers and self._routes.has_better(hop))
        now = asyncio.get_running_loop().time()
        for run, peer_id in [*islice(go_round(self._runs.values(), slow, now), EASED)]:
            run.bears, run.bears_until = peer_id, now + BEARS_S
            self._handle(run, ev.PeerLags(peer_id, frozenset(peers)))

    def stop(self, run: Run, reason: str, tokens: int | None = None) -> None:
        """End a session before its driver would, after so many tokens of output."""
        self._handle(run, ev.Stop(reason))
        if tokens is not None:
            self.kept.cut(run.session, len(run.driver.request.prompt_ids) + tokens)

    def release(self, session: bytes, secret: bytes) -> None:
        """End the lease of a kept session on all hops. Raises LeaseEnded, RequestError."""
        kept = self.kept.release(session, secret, asyncio.get_running_loop().time())
        for hop in kept.route:
            self._send(hop.peer_id, (Release(session, secret),))

    def on_frames(self, peer_id: str, frames: Sequence[SessionFrame]) -> None:
        """Take frames that are meant for a coordinator; what follows from them leaves together."""
        self._outbox = {}
        try:
            for frame in frames:
                run = self._runs.get(getattr(frame, "session", b""))
                if run is not None:
                    self._handle(run, ev.Received(peer_id, frame))
        finally:
            outbox, self._outbox = self._outbox, None
            for receiver, batch in outbox.items():
                self._send(receiver, batch)

    def on_peer_lost(self, peer_id: str) -> None:
        """Tell every session; those without that hop do not care."""
        self._book.lost(peer_id)
        self._tell_all(ev.PeerLost(peer_id))

    def on_view_changed(self) -> None:
        """Sessions that wait for a peer look again."""
        self._tell_all(ev.RoutesChanged())

    def _tell_all(self, event: ev.DriverEvent) -> None:
        for run in list(self._runs.values()):
            self._handle(run, event)

    def _start(self, generation: Generation) -> Run:
        if generation.session in self._runs:
            self._turn_out(self._runs[generation.session], generation)
        self._arrivals.check(len(self._runs))
        if generation.keep_s > self._limits.keep_limit:
            raise RequestError(_too_long_kept(generation.keep_s, self._limits.keep_limit))
        resume = generation.resume
        begun = resume or generation.past  # at a node, perhaps, whose chunks are of another length
        chunk_size = (begun.chunk_size if begun else 0) or self._limits.chunk_size
        prefix_unit = self._limits.prefix_unit
        request = session_request(generation, self._model, self._own_id, chunk_size, prefix_unit)
        driver = Driver(request, self._policy, random.random(), self._experience)
        positions = len(generation.prompt_ids) + generation.max_tokens
        run = Run(generation.session, driver, positions, chunk_size)
        run.priority, run.tenant, run.past = generation.priority, generation.tenant, generation.past
        run.lost = resume.lost if resume else ""
        run.waits_since = asyncio.get_running_loop().time() - (resume.waited_s if resume else 0.0)
        run.has_emitted = resume is not None and bool(resume.output_ids)
        run.stays_until = asyncio.get_running_loop().time() + STAYS_S if resume else 0.0
        run.deadline = Deadline(lambda: self._handle(run, ev.Tick()))
        self._runs[run.session] = run
        self.stats.sessions_started += 1
        self.stats.resumed += resume is not None
        return run

    def _turn_out(self, run: Run, generation: Generation) -> None:
        """End a run whose client has come back: it missed its stream before this node did."""
        request = run.driver.request
        if generation.resume is None or not compare_digest(request.secret, generation.secret):
            raise RequestError("this session runs here already: its stream is still open")
        self._handle(run, ev.Stop("cancelled", SessionLost("its client goes on in another call")))

    def _handle(self, run: Run, event: ev.DriverEvent) -> None:
        if not self._lives(run):
            return
        now = asyncio.get_running_loop().time()
        actions = run.driver.handle(event, now)
        run.noted = self.stats.note(run.driver, run.noted)
        for action in actions:
            self._carry_out(run, action)
        if run.deadline is not None and self._lives(run):
            run.deadline.set(run.driver.next_deadline())

    def _carry_out(self, run: Run, action: ev.DriverAction) -> None:
        if isinstance(action, ev.Send) and self._outbox is not None:
            self._outbox.setdefault(action.peer_id, []).append(action.frame)
        elif isinstance(action, ev.Send):
            self._send(action.peer_id, (action.frame,))
        elif isinstance(action, ev.NeedRoute):
            # Later, not now: the driver's other actions come first.
            asyncio.get_running_loop().call_soon(self._find_route, run, action)
        elif isinstance(action, ev.NeedLinks):
            self._reach(run, action)
        elif isinstance(action, ev.OtherPrecision):
            for hop in action.hops:
                log.warning(
                    "no peer of the same precision is left: ids may differ session=%s "
                    "blocks=%s peer=%s precision=%s",
                    run.session.hex()[:8],
                    hop.blocks,
                    hop.peer_id[:8],
                    hop.precision,
                )
        elif isinstance(action, ev.Lagging):
            log.warning("a hop is slow peer=%s", action.peer_id[:8])
            self._routes.lagging(action.peer_id)
            asyncio.get_running_loop().call_soon(self._tell_all, ev.PeerLags(action.peer_id))
        else:
            if not (run.proved and run.has_begun and isinstance(action, ev.Emit)):
                self._learn(run, action)
            unread = run.put(action)
            if isinstance(action, ev.Emit):
                self.stats.tokens_emitted += 1
                self._time_token(run)
            if isinstance(action, ev.Finished):
                if run.driver.is_kept:
                    self._keep(run)
                self.stats.sessions_finished += action.error is None
                moved = action.reason == "moved"
                self.stats.moved += moved
                self.stats.sessions_failed += action.error is not None and not moved
                self._forget(run)
            elif unread == MAX_UNREAD:
                asyncio.get_running_loop().call_soon(self._unread, run)

    def _unread(self, run: Run) -> None:
        """The client takes too little: it may resume when it reads again."""
        error = QueueFull(f"{MAX_UNREAD} tokens of this stream wait to be read: resume it")
        self._handle(run, ev.Stop("error", error))

    def _keep(self, run: Run) -> None:
        request, ids = run.driver.request, tuple(run.driver.feed.ids)
        kept = Kept(
            request.session,
            request.secret,
            ids,
            len(request.prompt_ids),
            request.borders,
            run.driver.route,
            request.keep_s,
            chunk_size=run.chunk_size,
        )
        self.kept.add(kept, asyncio.get_running_loop().time())

    def _time_token(self, run: Run) -> None:
        now = asyncio.get_running_loop().time()
        (self.gaps if run.has_emitted else self.first_tokens).observe(now - run.waits_since)
        run.waits_since, run.has_emitted = now, True

    def _lives(self, run: Run) -> bool:
        return self._runs.get(run.session) is run

    def _find_route(self, run: Run, need: ev.NeedRoute) -> None:
        if not self._lives(run):
            return  # nor may it stand in line: nobody would take it out again
        answer = self._look(run, need)
        if isinstance(answer, ev.RouteFound) or answer.error is not None or need.spare:
            self._handle(run, answer)
        else:
            # The view may be seconds old, and the peer that is missing younger than that.
            self._spawn(self._look_afresh(run, need))

    def _reach(self, run: Run, need: ev.NeedLinks) -> None:
        def answer(unreachable: frozenset[str]) -> None:
            self._handle(run, ev.LinksKnown(need.ask, unreachable))

        hurried = {run.lost: self._policy.lost_patience} if run.lost in need.peers else {}
        self._knocks.ask(need.peers, self._policy.open_timeout, answer, hurried)

    async def _look_afresh(self, run: Run, need: ev.NeedRoute) -> None:
        await self._routes.refresh()
        if self._lives(run):
            self._handle(run, self._look(run, need))

    def _held(self, run: Run) -> dict[str, int]:
        """By peer, how much of a session's prompt should be there: in its past, or of others."""
        held = self._book.held(run.driver.request.prefix)
        if run.past is not None:
            for hop in run.past.route:
                held[hop.peer_id] = max(held.get(hop.peer_id, 0), len(run.past.ids) - 1)
        return held

    def _look(self, run: Run, need: ev.NeedRoute) -> ev.RouteFound | ev.RouteMissing:
        try:
            self._wait_in_line(run)
            request = run.driver.request
            precisions = dict(zip(need.spans, need.precisions, strict=False))
            stays = self._book.is_spread(request.prefix)
            held, prompt = self._held(run), len(request.prompt_ids)
            asked = Asked(run.positions, prompt, held, stays, precisions, strict=need.spare)
            exclude = need.exclude | (self._routes.distrusted() if need.trusted else frozenset())
            if need.spare or need.trusted:
                exclude |= run.unfit(need, self._routes.starving())
            hops = self._routes.find(need.spans, exclude, need.keep, asked)
            if not (need.keep or run.past or request.claimed or run.has_begun):
                self._book.goes(run.session, request.prefix, [hop.peer_id for hop in hops])
        except CoverageError as error:
            return ev.RouteMissing(need.ask, error.missing)
        except SwarmdError as error:
            if isinstance(error, KVExhausted) and not run.admitted:
                self._stand_in_line(run)
            missing = tuple((span.start, span.end) for span in need.spans)
            return ev.RouteMissing(need.ask, missing, error)
        return ev.RouteFound(need.ask, hops)

    def _wait_in_line(self, run: Run) -> None:
        """Raise KVExhausted while others that wait for KV go before a session that holds none."""
        if run.admitted:
            return
        if isinstance(run.driver.error, KVExhausted):
            self._stand_in_line(run)  # refused by a hop, whatever the view says
        ahead = self._line.ahead_of(run.session, run.priority, run.tenant)
        if ahead:
            raise KVExhausted(f"{ahead} sessions that wait for KV go before this one: try later")

    def _stand_in_line(self, run: Run) -> None:
        self._line.join(run.session, run.priority, run.tenant, run.positions)

    def _wake_line(self) -> None:
        """Room has come: whoever stands first in line looks again."""
        first = self._runs.get(self._line.first or b"")
        if first is not None:
            self._handle(first, ev.RoutesChanged())

    def _forget(self, run: Run) -> None:
        if self._lives(run):
            self._line.leave(run.session)
            del self._runs[run.session]
            self._prompt_done(run)
            if run.admitted:
                positions = 0 if run.driver.is_kept else run.positions
                self._routes.ended(run.driver.route, positions)
                asyncio.get_running_loop().call_soon(self._wake_line)
        if run.deadline is not None:
            run.deadline.set(None)


def _too_long_kept(asked: float, limit: float) -> str:
    if not limit:
        return "this node keeps no sessions: ask without keep_alive"
    return f"keep_alive of {asked:g} s: this node keeps sessions for {limit:g} s at most"

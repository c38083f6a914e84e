"""The coordinator's side: one session across its hops, as a state machine.

It feeds, repairs and ends; `opening.Opening` finds hops and opens the session on them. Routes are
chosen by whoever answers `NeedRoute`, text is made of ids by whoever takes `Emit`, and time is what
`handle` is told.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from swarmd.core import errors
from swarmd.core.clock import earliest
from swarmd.core.frames import Copied, Failed, Gap, Keep, Leaving, Opened, Polled, Resume, Token
from swarmd.core.route import Hop
from swarmd.pipeline import events as ev
from swarmd.pipeline import repair
from swarmd.pipeline.causes import cause_of
from swarmd.pipeline.driver_state import TAKEOVER, DriverState
from swarmd.pipeline.pacing import Pacing
from swarmd.pipeline.request import Request
from swarmd.pipeline.search import Reach

__all__ = ["DRIVER_TABLE", "Driver", "DriverState", "Request"]


class Driver(Pacing):
    """Drives one session. `handle` is the only way in.

    It raises SessionError for an event that its user may not send in this state; what peers send
    out of turn is ignored.
    """

    _wakes_at: float | None = None

    def handle(self, event: ev.DriverEvent, now: float) -> list[ev.DriverAction]:
        """Take an event at `now`, in seconds of a monotonic clock; return what is to be done."""
        kind = type(event.frame) if isinstance(event, ev.Received) else type(event)
        handler = DRIVER_TABLE[self.state].get(kind)
        if handler is None:
            if isinstance(event, ev.Received):
                return []
            raise errors.SessionError(f"driver: no {kind.__name__} when {self.state.value}")
        self._patience.awake(self._wakes_at, now)
        handler(self, event, now)
        self._wakes_at = self._next_due()
        out, self._out = self._out, []
        return out

    def next_deadline(self) -> float | None:
        """When a `Tick` is due."""
        return self._wakes_at

    def _next_due(self) -> float | None:
        if self.state in (DriverState.NEW, DriverState.DONE):
            return None
        looks = (self.standbys.due, self._watch.due, self._prompt.due)
        running = self.state is DriverState.RUNNING
        return earliest(self._due, self._keep_at, *(looks if running else ()))

    # Beginning and end.

    def _start(self, event: ev.Start, now: float) -> None:
        try:
            self.request.check()
        except errors.RequestError as error:
            return self._fail(error)
        reason = self.request.ends_with(self.feed.ids)
        if reason:
            return self._finish(reason)
        if self.request.resumed:
            self.epoch += TAKEOVER - 1
        self._patience.search(now)
        self._search.take_over(self.request.route)
        self.standbys.take_over(self.route, self.request.standbys)
        for hop in self.route:
            if hop.peer_id in event.suspected:
                self._search.lose(hop.peer_id, now + self.policy.lost_for)
        return self._seek(now)

    def _stop(self, event: ev.Stop, now: float) -> None:
        self._finish(event.reason, event.error)

    # Running.

    def _run(self, now: float) -> None:
        self.state = DriverState.RUNNING
        self._agreed = self._has_run = True
        self._patience.found()
        self._compare_precision()
        self._out.append(ev.Routed(self.route, self.epoch, self._spares()))
        if self._may_move:
            return self._move()
        self._eases = False  # what was asked for that has no answer in this epoch
        self.feed.begin(self.epoch)
        behind = self.feed.known
        if self._started:
            behind -= self._catch_up()
        else:
            behind -= self._begin()
        self._copies_wait = self._started and not self.standbys.is_hurried
        self._started = True
        self._slow = None
        if not self._copies_wait:
            self._begin_standbys(now)
        self._pump()
        self._watch_prompt(now)  # the first token comes after all that is behind
        self._due = now + self.policy.time_for(behind)
        return None

    def _compare_precision(self) -> None:
        before, self._computed_on = self._computed_on, self.route
        changed = repair.other_precision(before, self.route)
        if changed:
            self.precision_changes += 1
            self._out.append(ev.OtherPrecision(changed))

    def _begin(self) -> int:
        """Start a session where all hops have what others computed; return that position.

        It is a chunk's start where it matters how prompts are cut.
        """
        self._keep()
        lengths = self.held.lengths(self.route)
        self.cached = min(*lengths, self.feed.known - 1)
        if not self.held.chunk_exact:
            self.cached = self.feed.chunks.floor(self.cached)
        if any(lengths):
            self.feed.rewind(self.cached)
        return self.cached

    def _catch_up(self) -> int:
        """Let all hops come to hold the same; return what the one that is furthest behind holds."""
        held = self.held.held(self.route)
        send_from, replay = self.feed.catch_up(held)
        for hop, position in zip(self.route, send_from, strict=True):
            self._send(hop, Resume(self.request.session, self.epoch, position))
        for step in replay:
            self._send(self.route[0], step)
        return min(hop.kv_length for hop in held)

    def _pump(self) -> None:
        for step in self.feed.pump():
            self._send(self.route[0], step)

    def _token(self, event: ev.Received, now: float) -> None:
        token = event.frame
        assert isinstance(token, Token)
        if not self._current(token.epoch, token.round) or event.peer_id != self.route[-1].peer_id:
            return
        self.feed.waited_us = token.waited_us
        self._watch.token(token.waited_us, now)
        news = self.feed.answered(token.position)
        if token.position == self.feed.known and 0 <= token.id < self.request.model.vocab_size:
            news = True
            self.feed.ids.append(token.id)
            self._out.append(ev.Emit(token.position, token.id, token.logprob, token.top))
            reason = self.request.ends_with(self.feed.ids)
            if reason:
                self._finish(reason)
                return
        if self._may_move:
            self._move()
        elif news:
            self._patience.progress()
            self._due = now + self.policy.time_for(self.feed.outstanding)
            if self.standbys.exist or self.feed.paused:
                self._settle(now)
            self._pump()
            if self._copies_wait:
                self._begin_standbys(now)
            if self.feed.outstanding == 1:
                if not self.standbys.exist:  # the step before was a sign of life to all hops
                    self._keep_at = now + self.policy.keep_every
                self._watch_token(now)

    def _current(self, epoch: int, number: int) -> bool:
        return epoch == self.epoch and number == self.feed.round

    # Faults.

    def _gap(self, event: ev.Received, now: float) -> None:
        gap = event.frame
        assert isinstance(gap, Gap)
        if not self._current(gap.epoch, gap.round) or self._search.hop(event.peer_id) is None:
            return
        self._patience.strikes += 1
        if self._patience.is_spent:
            self._fail(errors.SessionError(f"{event.peer_id} reports gap after gap"))
            return
        self.feed.rewind(self.feed.chunks.floor(min(gap.kv_length, self.feed.last_chunk)))
        self.standbys.rewound()
        self._pump()
        self._watch_prompt(now)
        self._due = now + self.policy.time_for(self.feed.known)

    def _failed(self, event: ev.Received, now: float) -> None:
        failed = event.frame
        assert isinstance(failed, Failed)
        if failed.epoch != self.epoch:
            return
        if self._search.hop(event.peer_id) is None:
            self._standby_lost(event.peer_id, self.policy.avoid_for, now)
            return
        blamed = self._search.hop(failed.lost_peer or event.peer_id)
        if blamed is not None:
            self._refused(blamed, failed.refusal, failed.message, now)

    def _peer_lost(self, event: ev.PeerLost, now: float) -> None:
        self._standby_lost(event.peer_id, self.policy.lost_for, now)
        hop = self._search.hop(event.peer_id)
        if hop is None or self._search.is_lost(event.peer_id):
            return
        error = errors.PeerUnreachable(f"{hop.peer_id} ({hop.blocks}) cannot be reached")
        self._lose(hop, self.policy.lost_for, error, now)

    def _lose(self, hop: Hop, seconds: float, error: errors.SwarmdError, now: float) -> None:
        self._search.lose(hop.peer_id, now + seconds)
        if self.state is DriverState.ROUTING:
            self._seek(now)
        elif self.state not in (DriverState.WAITING, DriverState.REACHING):
            self._repair(error, now)

    def _repair(self, error: errors.SwarmdError, now: float) -> None:
        """Find a way on after a fault: at once the first time, then after growing pauses."""
        if self.state is DriverState.RUNNING:
            self.repairs += 1
            self.causes[cause_of(error)] += 1
        self.error, self._eases = error, False
        pause = self._patience.fault(now)
        # For room it is waited by the clock: here too, as the view may go on showing what is not.
        no_room = isinstance(error, errors.CapacityError)
        if self._gives_up(now) if no_room else self._patience.is_spent:
            return self._fail(error)
        if not self._started:
            # A session that waits holds nothing.
            self._close(self.route)
            self._search.start_over()
        if not pause:
            return self._seek(now)
        self._search.reach = Reach.OTHERS
        return self._wait(now + pause)

    # Time.

    def _tick(self, event: ev.Tick, now: float) -> None:
        if self._keep_at is not None and now >= self._keep_at:
            self._keep()
            self._keep_at = now + self.policy.keep_every
            if self.state is DriverState.RUNNING:
                self._look_after_copies(now)
        if self.state is DriverState.RUNNING:
            self._time_tokens(now)
        if self.state is DriverState.RUNNING:  # not by way of a slow hop any more, perhaps
            self._look(now)
        if self._due is not None and now >= self._due:
            self._overdue(now - self._due, now)

    def _keep(self) -> None:
        for hop in (*self._search.kept(), *self._spares()):
            self._send(hop, Keep((self.request.session,)))

    def _overdue(self, late: float, now: float) -> None:
        stood_still = late > self.policy.late
        if self.state is DriverState.WAITING:
            afresh = self._search.reach is Reach.OTHERS
            return self._seek(now) if afresh else self._need_route(now)
        if stood_still:
            self._due = now + self.policy.open_timeout
            return None
        return self._unanswered(now) if self.state is DriverState.OPENING else self._stalled(now)

    def _unanswered(self, now: float) -> None:
        silent = self.held.silent(self.route)
        for hop in silent:
            self._search.lose(hop.peer_id, now + self.policy.avoid_for)
        names = ", ".join(f"{hop.peer_id} ({hop.blocks})" for hop in silent)
        self._repair(errors.PeerUnreachable(f"no answer to open from {names}"), now)

    def _stalled(self, now: float) -> None:
        """Nothing came for long: open all hops again, and from the second time on replace one."""
        if self.feed.paused and self.feed.is_quiet:
            return self._unpause(now)
        if self._puts_up(now):
            return None
        error = errors.DeadlineExceeded(f"no token for position {self.feed.known} in time")
        self._patience.stalls += 1
        if self._patience.stalls < 2:
            return self._repair(error, now)
        lengths = self.held.lengths(self.route)
        suspect = self.route[repair.suspect(lengths)]
        return self._lose(suspect, self.policy.avoid_for, error, now)

    def _unpause(self, now: float) -> None:
        """Go on without a handoff: the copy that was nearly whole has not become so."""
        for standby in self.standbys.successors(1):
            self._end_copy(standby.hop.peer_id, self.standbys.drop(standby, now))
        self._end_pause(now)

    def _end_pause(self, now: float) -> None:
        if not self.feed.paused:
            return
        was_quiet, self.feed.paused = self.feed.is_quiet, False
        self._pump()
        if was_quiet:  # otherwise a token is on its way, and has its time
            self._due = now + self.policy.time_for(self.feed.outstanding)
            self._watch_token(now)


Handler = Callable[[Driver, Any, float], None]


def _ignore(driver: Driver, event: ev.DriverEvent, now: float) -> None:
    """A late answer, or news that this state has no use for."""


_ALWAYS: dict[type[Any], Handler] = {
    ev.Stop: Driver._stop,
    ev.PeerLost: Driver._peer_lost,
    ev.Tick: Driver._tick,
    ev.RoutesChanged: _ignore,
    ev.RouteFound: _ignore,
    ev.RouteMissing: _ignore,
    ev.LinksKnown: _ignore,
    ev.PeerLags: Driver._peer_lags,
    ev.HandOver: Driver._hand_over,
}

_AT_FIRST: dict[type[Any], Handler] = {
    ev.Start: Driver._start,
    ev.Stop: Driver._stop,
    ev.HandOver: Driver._hand_over,
}
DRIVER_TABLE: dict[DriverState, dict[type[Any], Handler]] = {
    DriverState.NEW: {**dict.fromkeys(_ALWAYS, _ignore), **_AT_FIRST},
    DriverState.ROUTING: {
        **_ALWAYS,
        ev.RouteFound: Driver._route_found,
        ev.RouteMissing: Driver._route_missing,
    },
    DriverState.WAITING: {**_ALWAYS, ev.RoutesChanged: Driver._routes_changed},
    DriverState.REACHING: {**_ALWAYS, ev.LinksKnown: Driver._links_known},
    DriverState.OPENING: {
        **_ALWAYS,
        Opened: Driver._opened,
        Failed: Driver._failed,
        Leaving: Driver._leaving,
    },
    DriverState.RUNNING: {
        **_ALWAYS,
        Token: Driver._token,
        Gap: Driver._gap,
        Failed: Driver._failed,
        Leaving: Driver._leaving,
        Copied: Driver._copied,
        Polled: Driver._polled,
        Opened: Driver._standby_opened,
        ev.RouteFound: Driver._peers_found,
        ev.RouteMissing: Driver._peers_missing,
        ev.RoutesChanged: Driver._standby_again,
    },
    DriverState.DONE: dict.fromkeys([*_ALWAYS], _ignore),
}
"""State -> event or frame -> what is done. A frame that is not in it is ignored."""

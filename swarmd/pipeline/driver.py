"""The coordinator's side: one session across its hops, as a state machine.

It opens, feeds, repairs and closes. Routes are chosen by whoever answers `NeedRoute`, text is made
of ids by whoever takes `Emit`, and time is what `handle` is told.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from swarmd.core.errors import (
    CapacityError,
    CoverageError,
    DeadlineExceeded,
    KVExhausted,
    PeerError,
    PeerUnreachable,
    PromptTooLong,
    ProtocolError,
    RequestError,
    SessionError,
    SessionLost,
    SwarmdError,
    WrongModel,
)
from swarmd.core.frames import (
    Close,
    Failed,
    Gap,
    Keep,
    Open,
    Opened,
    Refusal,
    Resume,
    SessionFrame,
    Token,
)
from swarmd.core.peers import ModelInfo
from swarmd.core.route import Hop, Route, check_route
from swarmd.core.sampling import SamplingParams
from swarmd.core.span import Span
from swarmd.pipeline import repair
from swarmd.pipeline.events import (
    DriverAction,
    DriverEvent,
    Emit,
    Finished,
    NeedRoute,
    PeerLost,
    Received,
    Routed,
    RouteFound,
    RouteMissing,
    RoutesChanged,
    Send,
    Start,
    Stop,
    Tick,
)
from swarmd.pipeline.feed import Feed
from swarmd.pipeline.policy import Avoided, DriverPolicy
from swarmd.pipeline.repair import Held
from swarmd.pipeline.steps import ChunkPlan

MAX_EPOCH = 1 << 31
LATE = 0.5
"""Seconds that a tick may come too late before the wait is prolonged."""


@dataclass(frozen=True, slots=True)
class Request:
    """One generation: all the state that it has."""

    session: bytes
    secret: bytes
    model: ModelInfo
    me: str
    """Peer id of the coordinator: the first hop's steps come from it."""
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    max_tokens: int
    chunk_size: int
    stop_ids: frozenset[int] = frozenset()
    """Ids that end the output, beside the model's own unless `ignore_eos`."""
    ignore_eos: bool = False
    known_ids: tuple[int, ...] = ()
    """Output so far, when another coordinator began it."""
    epoch: int = 0
    """The last epoch that is known of; 0 for a new session."""
    route: Route = ()
    """The route of that epoch, as far as it is known."""

    @property
    def resumed(self) -> bool:
        return self.epoch > 0

    @property
    def all_stop_ids(self) -> frozenset[int]:
        return self.stop_ids if self.ignore_eos else self.stop_ids | {*self.model.eos_token_ids}


class DriverState(enum.Enum):
    """Where a session is."""

    NEW = "new"
    ROUTING = "routing"
    """A route has been asked for."""
    WAITING = "waiting"
    """Until it is time to ask again."""
    OPENING = "opening"
    RUNNING = "running"
    DONE = "done"


class Driver:
    """Drives one session. `handle` is the only way in.

    It raises SessionError for an event that its user may not send in this state; what peers send
    out of turn is ignored.
    """

    def __init__(
        self, request: Request, policy: DriverPolicy | None = None, jitter: float = 0.0
    ) -> None:
        self.request = request
        self.policy = policy or DriverPolicy()
        self.jitter = jitter
        self.state = DriverState.NEW
        self.route: Route = ()
        self.epoch = request.epoch
        self.repairs = 0
        self.error: SwarmdError | None = None
        """Why the last repair began."""
        self.held: dict[str, Opened] = {}
        """What the hops of the route answered in this epoch."""
        plan = ChunkPlan(len(request.prompt_ids), request.chunk_size)
        self.feed = Feed(
            request.session,
            [*request.prompt_ids, *request.known_ids],
            plan,
            self.policy.window,
            self.policy.replay_step,
        )
        self._out: list[DriverAction] = []
        self._gone: set[str] = set()
        self._avoided = Avoided()
        self._ask = 0
        self._level = 0
        self._strikes = 0
        self._stalls = 0
        self._started = request.resumed
        self._agreed = False
        self._stuck_since: float | None = None
        self._reuse_at = 0.0
        self._due: float | None = None
        self._keep_at: float | None = None

    @property
    def output_ids(self) -> list[int]:
        """Ids of the output so far."""
        return self.feed.ids[len(self.request.prompt_ids) :]

    def handle(self, event: DriverEvent, now: float) -> list[DriverAction]:
        """Take an event at `now`, in seconds of a monotonic clock; return what is to be done."""
        kind = type(event.frame) if isinstance(event, Received) else type(event)
        handler = DRIVER_TABLE[self.state].get(kind)
        if handler is None:
            if isinstance(event, Received):
                return []
            raise SessionError(f"driver: state {self.state.value} knows no event {kind.__name__}")
        handler(self, event, now)
        out, self._out = self._out, []
        return out

    def next_deadline(self) -> float | None:
        """When a `Tick` is due."""
        if self.state in (DriverState.NEW, DriverState.DONE):
            return None
        due = [at for at in (self._due, self._keep_at) if at is not None]
        return min(due, default=None)

    # Beginning and end.

    def _start(self, event: Start, now: float) -> None:
        request = self.request
        try:
            self._check_request()
        except RequestError as error:
            return self._fail(error)
        if self._is_over():
            return None
        self._stuck_since = now
        if request.route:
            try:
                check_route(request.route, request.model.num_blocks)
                self.route = request.route
            except CoverageError:
                self.route = ()
        return self._seek(now)

    def _check_request(self) -> None:
        request = self.request
        if not request.prompt_ids or request.max_tokens < 1:
            raise RequestError("a prompt of at least one token and max_tokens >= 1 are needed")
        if not all(0 <= token < request.model.vocab_size for token in self.feed.ids):
            raise RequestError(f"token ids must be below {request.model.vocab_size}")
        total = len(request.prompt_ids) + request.max_tokens
        if total > request.model.max_model_len:
            raise PromptTooLong(
                f"{len(request.prompt_ids)} prompt tokens + max_tokens {request.max_tokens} "
                f"exceed the model's length of {request.model.max_model_len}: shorten one of them"
            )

    def _is_over(self) -> bool:
        output = self.output_ids
        if output and output[-1] in self.request.all_stop_ids:
            self._finish("stop")
        elif len(output) >= self.request.max_tokens:
            self._finish("length")
        else:
            return False
        return True

    def _stop(self, event: Stop, now: float) -> None:
        self._finish(event.reason, event.error)

    def _fail(self, error: SwarmdError) -> None:
        self._finish("error", error)

    def _finish(self, reason: str, error: SwarmdError | None = None) -> None:
        self._close(self.route)
        self.state = DriverState.DONE
        self._out.append(Finished(reason, error))

    def _close(self, hops: Iterable[Hop]) -> None:
        if self.epoch:
            for hop in hops:
                self._send(hop, Close(self.request.session, self.epoch))

    def _send(self, hop: Hop, frame: SessionFrame) -> None:
        self._out.append(Send(hop.peer_id, frame))

    # Routing: first without peers that are avoided or have a part already, then with them.

    def _kept(self) -> Route:
        return tuple(hop for hop in self.route if hop.peer_id not in self._gone)

    def _seek(self, now: float) -> None:
        self._level = 0
        if self.route and not repair.lost_spans(self.route, self._gone):
            self._open(self.route, now)
        else:
            self._need_route(now)

    def _need_route(self, now: float) -> None:
        whole = (Span(0, self.request.model.num_blocks),)
        spans = repair.lost_spans(self.route, self._gone) if self.route else whole
        kept = self._kept()
        exclude: frozenset[str] = frozenset()
        if self._level < 2:
            exclude |= self._avoided.at(now)
        if self._level < 1:
            exclude |= {hop.peer_id for hop in kept}
        self._ask += 1
        self.state = DriverState.ROUTING
        self._due = None
        self._out.append(NeedRoute(self._ask, spans, exclude, kept))

    def _route_found(self, event: RouteFound, now: float) -> None:
        if event.ask != self._ask:
            return
        route = repair.splice(self._kept(), event.hops)
        try:
            check_route(route, self.request.model.num_blocks)
        except CoverageError as error:
            self._fail(error)
            return
        self._gone -= {hop.peer_id for hop in route}
        self._close(hop for hop in self.route if hop.peer_id not in {h.peer_id for h in route})
        self._open(route, now)

    def _route_missing(self, event: RouteMissing, now: float) -> None:
        if event.ask != self._ask:
            return None
        if self._level == 0:
            self._level = 1
            return self._need_route(now)
        if self._level == 1 and self._avoided.at(now):
            return self._reuse(event, now)
        self.error = self._uncovered(event.missing)
        if not self._has_run() or self._gives_up(now):
            return self._fail(self.error)
        self._level = 0
        return self._wait(now + self.policy.gap_poll)

    def _reuse(self, event: RouteMissing, now: float) -> None:
        """Turn to peers that are avoided, in a while; unless that has gone on for too long."""
        if self._gives_up(now):
            if self.error is None or isinstance(self.error, PeerError):
                return self._fail(self._uncovered(event.missing))
            return self._fail(self.error)
        self._level = 2
        return self._wait(self._reuse_at) if now < self._reuse_at else self._need_route(now)

    def _uncovered(self, missing: tuple[tuple[int, int], ...]) -> CoverageError:
        blocks = ", ".join(f"{start}:{end}" for start, end in missing)
        cause = f" (the last one tried: {self.error})" if isinstance(self.error, PeerError) else ""
        return CoverageError(
            f"no live peer holds blocks {blocks} of {self.request.model.name}{cause}: "
            "start a node that serves them",
            missing,
        )

    def _has_run(self) -> bool:
        return self._agreed or self.request.resumed

    def _wait(self, until: float) -> None:
        self.state = DriverState.WAITING
        self._due = until

    def _routes_changed(self, event: RoutesChanged, now: float) -> None:
        if isinstance(self.error, CoverageError):
            self._seek(now)

    # Opening.

    def _open(self, route: Route, now: float) -> None:
        if self.epoch + 1 >= MAX_EPOCH:
            return self._fail(SessionError(f"session has had {self.epoch} epochs"))
        self.epoch += 1
        self.route = route
        self.held = {}
        self.state = DriverState.OPENING
        self._due = now + self.policy.open_timeout
        self._keep_at = now + self.policy.keep_every
        for index, hop in enumerate(route):
            self._send(hop, self._open_frame(index, hop))
        return None

    def _open_frame(self, index: int, hop: Hop) -> Open:
        request, last = self.request, index + 1 == len(self.route)
        return Open(
            session=request.session,
            secret=request.secret,
            epoch=self.epoch,
            fresh=not self._started,
            model_digest=request.model.digest,
            blocks=hop.blocks,
            next_peer="" if last else self.route[index + 1].peer_id,
            prev_peer=self.route[index - 1].peer_id if index else request.me,
            max_positions=len(request.prompt_ids) + request.max_tokens,
            prompt_tokens=len(request.prompt_ids),
            sampling=request.sampling if last else None,
            token_ids=tuple(self.feed.ids) if last else (),
        )

    def _hop(self, peer_id: str) -> Hop | None:
        return next((hop for hop in self.route if hop.peer_id == peer_id), None)

    def _opened(self, event: Received, now: float) -> None:
        answer = event.frame
        assert isinstance(answer, Opened)
        hop = self._hop(event.peer_id)
        if hop is None or hop.peer_id in self.held:
            return None
        if answer.refusal is Refusal.STALE_EPOCH and answer.epoch >= self.epoch:
            return self._overtaken(answer.epoch, now)
        if answer.epoch != self.epoch:
            return None
        if answer.refusal is not None:
            return self._refused(hop, answer.refusal, answer.message, now)
        limit = len(self.request.prompt_ids) + self.request.max_tokens
        if not 0 <= answer.log_start <= answer.kv_length <= limit:
            error = ProtocolError(f"{hop.peer_id} claims {answer.kv_length} of {limit} positions")
            return self._lose(hop.peer_id, self.policy.lost_for, error, now)
        self.held[hop.peer_id] = answer
        if len(self.held) == len(self.route):
            self._run(now)
        return None

    def _overtaken(self, epoch: int, now: float) -> None:
        if self._agreed or epoch + 1 >= MAX_EPOCH:
            return self._fail(SessionLost("another coordinator has taken the session over"))
        self.epoch = epoch
        return self._repair(SessionLost(f"the session was at epoch {epoch} already"), now)

    def _refused(self, hop: Hop, refusal: Refusal, message: str, now: float) -> None:
        error = _refusal_error(refusal, f"{hop.peer_id} ({hop.blocks}): {message}")
        if refusal in FINAL_REFUSALS:
            return self._fail(error)
        if refusal is Refusal.UNKNOWN_SESSION:
            return self._repair(error, now)
        lasting = refusal in LASTING_REFUSALS
        seconds = self.policy.gap_wait if lasting else self.policy.avoid_for
        return self._lose(hop.peer_id, seconds, error, now)

    # Running.

    def _run(self, now: float) -> None:
        self.state = DriverState.RUNNING
        self._agreed = True
        self._stuck_since = None
        self._out.append(Routed(self.route, self.epoch))
        self.feed.begin(self.epoch)
        if self._started:
            behind = self._catch_up()
        else:
            behind = self.feed.known
            self._keep()
        self._started = True
        self._pump()
        self._expect(behind, now)

    def _catch_up(self) -> int:
        held = [
            Held(self.held[hop.peer_id].kv_length, self.held[hop.peer_id].log_start)
            for hop in self.route
        ]
        plan = repair.plan(held, self.feed.last_chunk, self.feed.plan)
        for hop, send_from in zip(self.route, plan.send_from, strict=True):
            self._send(hop, Resume(self.request.session, self.epoch, send_from))
        for step in self.feed.replay(plan.feed_from, plan.rewind_to):
            self._send(self.route[0], step)
        self.feed.rewind(plan.rewind_to)
        return self.feed.known - min(hop.kv_length for hop in held)

    def _pump(self) -> None:
        for step in self.feed.pump():
            self._send(self.route[0], step)

    def _expect(self, positions: int, now: float) -> None:
        wait = self.policy.step_timeout + self.policy.position_timeout * max(1, positions)
        self._due = now + wait

    def _token(self, event: Received, now: float) -> None:
        token = event.frame
        assert isinstance(token, Token)
        if not self._current(token.epoch, token.round) or event.peer_id != self.route[-1].peer_id:
            return
        news = self.feed.answered(token.position)
        if token.position == self.feed.known and token.id < self.request.model.vocab_size:
            self.feed.ids.append(token.id)
            self._out.append(Emit(token.position, token.id, token.logprob, token.top))
            if self._is_over():
                return
            news = True
        if news:
            self._strikes = self._stalls = 0
            self._pump()
            self._expect(self.feed.outstanding, now)

    def _current(self, epoch: int, number: int) -> bool:
        return epoch == self.epoch and number == self.feed.round

    # Faults.

    def _gap(self, event: Received, now: float) -> None:
        gap = event.frame
        assert isinstance(gap, Gap)
        if not self._current(gap.epoch, gap.round) or self._hop(event.peer_id) is None:
            return
        self._strikes += 1
        if self._strikes > self.policy.repair_budget:
            self._fail(SessionError(f"{event.peer_id} reports gap after gap"))
            return
        self.feed.rewind(self.feed.plan.floor(min(gap.kv_length, self.feed.last_chunk)))
        self._pump()
        self._expect(self.feed.known, now)

    def _failed(self, event: Received, now: float) -> None:
        failed = event.frame
        assert isinstance(failed, Failed)
        hop = self._hop(event.peer_id)
        if hop is None or failed.epoch != self.epoch:
            return
        blamed = self._hop(failed.lost_peer) if failed.lost_peer else hop
        if blamed is not None:
            self._refused(blamed, failed.refusal, failed.message, now)

    def _peer_lost(self, event: PeerLost, now: float) -> None:
        hop = self._hop(event.peer_id)
        if hop is None or event.peer_id in self._gone:
            return
        error = PeerUnreachable(f"{hop.peer_id} ({hop.blocks}) cannot be reached")
        self._lose(hop.peer_id, self.policy.lost_for, error, now)

    def _lose(self, peer_id: str, seconds: float, error: SwarmdError, now: float) -> None:
        self._gone.add(peer_id)
        self._avoided.add(peer_id, now + seconds)
        if self.state is DriverState.WAITING:
            return
        if self.state is DriverState.ROUTING:
            self._level = 0
            self._need_route(now)
            return
        self._repair(error, now)

    def _repair(self, error: SwarmdError, now: float) -> None:
        if self.state is DriverState.RUNNING:
            self.repairs += 1
        self.error = error
        self._strikes += 1
        if self._stuck_since is None:
            self._stuck_since = now
        over = self._strikes > self.policy.repair_budget
        if over and not isinstance(error, CapacityError):
            return self._fail(error)
        if not self._started:
            self._close(self.route)
            self.route, self._gone = (), set()
        self._reuse_at = now + self.policy.pause(self._strikes + 1, self.jitter)
        pause = self.policy.pause(self._strikes, self.jitter)
        if pause:
            self._level = 0
            return self._wait(now + pause)
        return self._seek(now)

    def _gives_up(self, now: float) -> bool:
        if self._stuck_since is None:
            return False
        limit = self.policy.new_wait
        if self._has_run():
            limit = self.policy.gap_wait
        elif isinstance(self.error, CapacityError):
            limit = self.policy.admission_wait
        return now >= self._stuck_since + limit

    # Time.

    def _tick(self, event: Tick, now: float) -> None:
        if self._keep_at is not None and now >= self._keep_at:
            self._keep()
            self._keep_at = now + self.policy.keep_every
        if self._due is not None and now >= self._due:
            self._overdue(now)

    def _keep(self) -> None:
        for hop in self._kept():
            self._send(hop, Keep((self.request.session,)))

    def _overdue(self, now: float) -> None:
        if self.state is DriverState.WAITING:
            return self._seek(now) if self._level == 0 else self._need_route(now)
        if self._due is not None and now > self._due + LATE:
            # This node has stood still: what it waits for may be here, unread.
            self._due = now + self.policy.open_timeout
            return None
        return self._unanswered(now) if self.state is DriverState.OPENING else self._stalled(now)

    def _unanswered(self, now: float) -> None:
        silent = [hop for hop in self.route if hop.peer_id not in self.held]
        for hop in silent:
            self._gone.add(hop.peer_id)
            self._avoided.add(hop.peer_id, now + self.policy.avoid_for)
        names = ", ".join(f"{hop.peer_id} ({hop.blocks})" for hop in silent)
        self._repair(PeerUnreachable(f"no answer to open from {names}"), now)

    def _stalled(self, now: float) -> None:
        """Nothing came for long: open all hops again, and from the second time on replace one."""
        self._stalls += 1
        error = DeadlineExceeded(f"no token for position {self.feed.known} in time")
        suspect = self._suspect() if self._stalls > 1 else None
        if suspect is None:
            return self._repair(error, now)
        return self._lose(suspect.peer_id, self.policy.avoid_for, error, now)

    def _suspect(self) -> Hop | None:
        """The first hop that had taken everything in, while the one after it had not."""
        lengths = [self.held[hop.peer_id].kv_length for hop in self.route]
        for hop, own, after in zip(self.route, lengths, [*lengths[1:], -1], strict=True):
            if own > after:
                return hop
        return None


FINAL_REFUSALS = frozenset({Refusal.WRONG_SECRET, Refusal.BAD_REQUEST, Refusal.STALE_EPOCH})
LASTING_REFUSALS = frozenset(
    {Refusal.WRONG_MODEL, Refusal.WRONG_BLOCKS, Refusal.TOO_LONG, Refusal.DRAINING}
)


def _refusal_error(refusal: Refusal, message: str) -> SwarmdError:
    kinds: dict[Refusal, type[SwarmdError]] = {
        Refusal.WRONG_MODEL: WrongModel,
        Refusal.WRONG_BLOCKS: PeerError,
        Refusal.KV_EXHAUSTED: KVExhausted,
        Refusal.TOO_LONG: PromptTooLong,
        Refusal.WRONG_SECRET: SessionLost,
        Refusal.STALE_EPOCH: SessionLost,
        Refusal.DRAINING: PeerError,
        Refusal.UNKNOWN_PEER: PeerUnreachable,
        Refusal.UNKNOWN_SESSION: SessionLost,
        Refusal.NEXT_UNREACHABLE: PeerUnreachable,
        Refusal.BAD_REQUEST: RequestError,
    }
    return kinds.get(refusal, SessionError)(f"{message} ({refusal.name})")


Handler = Callable[[Driver, Any, float], None]


def _ignore(driver: Driver, event: DriverEvent, now: float) -> None:
    """A late answer, or a frame that crossed with another."""


_ALWAYS: dict[type[Any], Handler] = {
    Stop: Driver._stop,
    PeerLost: Driver._peer_lost,
    Tick: Driver._tick,
    RoutesChanged: _ignore,
    RouteFound: _ignore,
    RouteMissing: _ignore,
}

DRIVER_TABLE: dict[DriverState, dict[type[Any], Handler]] = {
    DriverState.NEW: {Start: Driver._start, Stop: Driver._stop},
    DriverState.ROUTING: {
        **_ALWAYS,
        RouteFound: Driver._route_found,
        RouteMissing: Driver._route_missing,
    },
    DriverState.WAITING: {**_ALWAYS, RoutesChanged: Driver._routes_changed},
    DriverState.OPENING: {**_ALWAYS, Opened: Driver._opened, Failed: Driver._failed},
    DriverState.RUNNING: {
        **_ALWAYS,
        Token: Driver._token,
        Gap: Driver._gap,
        Failed: Driver._failed,
    },
    DriverState.DONE: dict.fromkeys([*_ALWAYS], _ignore),
}
"""State -> event or frame -> what is done. A frame that is not in it is ignored."""

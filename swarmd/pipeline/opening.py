"""Finding hops for a session and opening it on them: what the driver does before it can run.

What happens once all hops have agreed, and when one of them fails, is `driver.Driver`'s business.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

from swarmd.core import errors
from swarmd.core.frames import Close, Opened, Refusal, SessionFrame
from swarmd.core.route import Hop, Route
from swarmd.pipeline import events as ev
from swarmd.pipeline.answers import Answers
from swarmd.pipeline.driver_state import DriverState, is_later_attempt
from swarmd.pipeline.feed import Feed
from swarmd.pipeline.policy import DriverPolicy, Patience
from swarmd.pipeline.refusals import FINAL, LASTING, refusal_error, uncovered
from swarmd.pipeline.request import Request, open_frames
from swarmd.pipeline.search import Reach, RouteSearch
from swarmd.pipeline.standbys import Standbys
from swarmd.pipeline.steps import ChunkPlan


class Opening(ABC):
    """A session's state, its search for hops, and its opens."""

    def __init__(
        self, request: Request, policy: DriverPolicy | None = None, jitter: float = 0.0
    ) -> None:
        self.request = request
        self.policy = policy or DriverPolicy()
        self.state = DriverState.NEW
        self.epoch = request.epoch
        self.repairs = 0
        self.handoffs = 0
        """Hops that have left, and whose KV their successors had by then."""
        self.error: errors.SwarmdError | None = None
        """Why the last repair began."""
        self.cached = 0
        """Positions that were not computed for this session, since hops had them."""
        self.is_kept = False
        """Whether the hops were told to keep the session."""
        self.keys = request.prefix
        """Keys of what hops share of this session; in the end with its output."""
        self.held = Answers()
        """What the hops of the route answered in this epoch."""
        self.feed = Feed(
            request.session,
            [*request.prompt_ids, *request.known_ids],
            ChunkPlan(len(request.prompt_ids), request.chunk_size, request.borders),
            self.policy.window,
            self.policy.replay_step,
            request.computed,
        )
        self.standbys = Standbys(request, self.feed, self.policy.standby_retry)
        self.precision_changes = 0
        """Times that blocks went to peers of another precision, as there were no others."""
        self._computed_on: Route = request.route
        """The last route that has run."""
        self.attempts = 0
        """Times that hops were opened."""
        self._patience = Patience(self.policy, jitter)
        self._out: list[ev.DriverAction] = []
        self._search = RouteSearch(request.model.num_blocks)
        self._started = request.resumed
        """Whether hops may hold KV of this session."""
        self._agreed = False
        """Whether all hops of some route have agreed to this driver."""
        self._has_run = request.resumed
        self._copies_wait = False
        """Whether copies are to be opened in this epoch yet: the first token goes before."""
        self._links_ask = 0
        """Of the last question for links."""
        self._decisions: dict[str, int] = {}
        """By peer, the last decision to go or to stay that was heard of in this epoch."""
        self._must_move = False
        """Whether this node is about to go."""
        self._eases = False
        """Whether it is slow, and somebody is to take over its blocks."""
        self._due: float | None = None
        self._keep_at: float | None = None

    @property
    def route(self) -> Route:
        """The hops that the session has, or is being opened on."""
        return self._search.route

    @property
    def recomputed(self) -> int:
        """Positions that any hop had to compute once more."""
        return self.feed.recomputed

    # Ending.

    def _fail(self, error: errors.SwarmdError) -> None:
        self._finish("error", error)

    def _finish(self, reason: str, error: errors.SwarmdError | None = None) -> None:
        if self.state is DriverState.RUNNING and self.held.chunk_exact:
            # The output was computed one by one; where that is all the same it serves others, too.
            self.keys = self.request.keys(self.feed.ids)
        whole = self.state is DriverState.RUNNING and reason in ("stop", "length")
        self.is_kept = whole and self.request.keep_s > 0
        self._close(self.route, self.keys, self.request.keep_s if self.is_kept else 0.0)
        self._close(self._spares())
        self._end(reason, error)

    def _end(self, reason: str, error: errors.SwarmdError | None) -> None:
        self.state = DriverState.DONE
        self._out.append(ev.Finished(reason, error))

    def _spares(self) -> Route:
        """Peers that hold copies and have no part in the route."""
        hops = {hop.peer_id for hop in self.route}
        return tuple(peer for peer in self.standbys.peers if peer.peer_id not in hops)

    def _close(
        self, hops: Iterable[Hop], keys: tuple[bytes, ...] = (), keep_s: float = 0.0
    ) -> None:
        unit = self.request.prefix_unit if keys else 0
        for hop in hops if self.epoch else ():
            self._send(hop, Close(self.request.session, self.epoch, keys, unit, keep_s))

    def _send(self, hop: Hop, frame: SessionFrame) -> None:
        self._out.append(ev.Send(hop.peer_id, frame))

    # Routing.

    def _seek(self, now: float) -> None:
        """Find hops for what is lost; others than those that are avoided come first."""
        self._search.reach = Reach.OTHERS
        self._put_in_standbys(now)
        if self._search.lost():
            self._need_route(now)
        else:
            self._open(now)

    def _put_in_standbys(self, now: float) -> None:
        """Have copies take the places of hops that are lost: they hold what those held."""
        avoided = self._search.avoided(now)
        for hop in self.route:
            if not self._search.is_lost(hop.peer_id):
                continue
            successors = self.standbys.instead_of(hop)
            taken = avoided | {other.peer_id for other in self.route}
            if successors and not any(peer.peer_id in taken for peer in successors):
                self._search.substitute(hop.peer_id, successors)

    def _need_route(self, now: float) -> None:
        self.state, self._due = DriverState.ROUTING, None
        self._out.append(self._search.need(now))

    def _route_found(self, event: ev.RouteFound, now: float) -> None:
        if not self._search.answers(event.ask):
            return
        self._take_hops(event, now)

    def _take_hops(self, event: ev.RouteFound, now: float) -> None:
        """Open the session on the hops that were found, and close it on those in whose place."""
        try:
            self._close(self._search.adopt(event.hops))
        except errors.CoverageError as error:
            self._fail(error)
        else:
            self._open(now)

    def _route_missing(self, event: ev.RouteMissing, now: float) -> None:
        if not self._search.answers(event.ask):
            return None
        if self._search.reach is Reach.OTHERS:
            self._search.reach = Reach.HOPS
            return self._need_route(now)
        # Not who is avoided now: to look may have taken longer than that was to last.
        if self._search.reach is Reach.HOPS and self._search.passed_over:
            return self._reuse(event, now)
        self.error = event.error or self._uncovered(event.missing)
        hopeless = not self._has_run and not isinstance(self.error, errors.CapacityError)
        if hopeless or self._gives_up(now):
            return self._fail(self.error)
        self._search.reach = Reach.OTHERS
        return self._wait(now + self.policy.gap_poll)

    def _reuse(self, event: ev.RouteMissing, now: float) -> None:
        """Turn to peers that are avoided, in a while; unless that has gone on for too long."""
        if self._gives_up(now):
            if self.error is None or isinstance(self.error, errors.PeerError):
                return self._fail(self._uncovered(event.missing))
            return self._fail(self.error)
        self._search.reach = Reach.AVOIDED
        reuse_at = self._patience.reuse_at
        return self._wait(reuse_at) if now < reuse_at else self._need_route(now)

    def _uncovered(self, missing: tuple[tuple[int, int], ...]) -> errors.CoverageError:
        return uncovered(self.request.model.name, missing, self.error)

    def _gives_up(self, now: float) -> bool:
        known = self._agreed or not isinstance(self.error, errors.SessionLost)
        return self._patience.is_out(self._has_run and known, self.error, now)

    def _wait(self, until: float) -> None:
        self.state, self._due = DriverState.WAITING, until

    def _routes_changed(self, event: ev.RoutesChanged, now: float) -> None:
        if isinstance(self.error, errors.CoverageError | errors.CapacityError):
            self._seek(now)

    # Opening.

    def _open(self, now: float) -> None:
        """Open the session on all hops, once there is a link to each: not on some in vain."""
        self.state, self._due = DriverState.REACHING, None
        peers = frozenset(hop.peer_id for hop in self.route)
        self._links_ask = self._search.next_ask()
        self._out.append(ev.NeedLinks(self._links_ask, peers))

    def _links_known(self, event: ev.LinksKnown, now: float) -> None:
        if event.ask != self._links_ask:
            return None
        for peer_id in event.unreachable:
            self._search.lose(peer_id, now + self.policy.lost_for)
        gone = [hop for hop in self.route if self._search.is_lost(hop.peer_id)]
        if not gone:
            return self._open_all(now)
        names = ", ".join(f"{hop.peer_id} ({hop.blocks})" for hop in gone)
        return self._repair(errors.PeerUnreachable(f"{names} cannot be reached"), now)

    def _open_all(self, now: float) -> None:
        self.epoch += 1
        self.attempts += 1
        self.held = Answers()
        self.standbys.open_again()
        self._decisions.clear()
        self.state = DriverState.OPENING
        self._due = now + self.policy.open_timeout
        self._keep_at = now + self.policy.keep_every
        fresh, ids = not self._started, tuple(self.feed.ids)
        computed = self.feed.highest
        for hop, order in open_frames(self.request, self.route, self.epoch, fresh, ids, computed):
            self._send(hop, order)

    def _opened(self, event: ev.Received, now: float) -> None:
        answer = event.frame
        assert isinstance(answer, Opened)
        hop = self._search.hop(event.peer_id)
        if hop is None or hop.peer_id in self.held:
            return None
        if answer.refusal is Refusal.STALE_EPOCH and answer.epoch >= self.epoch:
            return self._overtaken(answer.epoch, now)
        if answer.epoch != self.epoch:
            return None
        if answer.refusal is not None:
            return self._refused(hop, answer.refusal, answer.message, now)
        if not 0 <= answer.log_start <= answer.kv_length <= self.request.max_positions:
            lie = errors.ProtocolError(f"{hop.peer_id} claims {answer.kv_length} positions")
            return self._lose(hop, self.policy.lost_for, lie, now)
        self.held.add(hop.peer_id, answer)
        if self.held.complete(self.route):
            self._run(now)
        return None

    def _overtaken(self, epoch: int, now: float) -> None:
        # A hop at this very epoch refuses an open of before, which an old link has brought late:
        # it has agreed, and its answer is lost or to come. Epochs of two attempts never meet.
        later = epoch > self.epoch
        if later and (self._agreed or is_later_attempt(epoch, self.request.epoch)):
            return self._fail(errors.SessionLost("another coordinator has taken the session over"))
        self.epoch = epoch
        return self._repair(errors.SessionLost(f"the session was at epoch {epoch} already"), now)

    def _refused(self, hop: Hop, refusal: Refusal, message: str, now: float) -> None:
        error = refusal_error(refusal, f"{hop.peer_id} ({hop.blocks}): {message}")
        if refusal in FINAL:
            return self._fail(error)
        if refusal is Refusal.UNKNOWN_SESSION:
            return self._repair(error, now)
        seconds = self.policy.gap_wait if refusal in LASTING else self.policy.avoid_for
        return self._lose(hop, seconds, error, now)

    # What the driver does next.

    @abstractmethod
    def _run(self, now: float) -> None:
        """All hops have agreed."""

    @abstractmethod
    def _lose(self, hop: Hop, seconds: float, error: errors.SwarmdError, now: float) -> None:
        """Do without a hop, and avoid it for so long."""

    @abstractmethod
    def _repair(self, error: errors.SwarmdError, now: float) -> None:
        """Find a way on after a fault."""

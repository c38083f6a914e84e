"""A session that runs moves: hops hand off to their standbys, and the coordinator to another one.

Whose KV is copied where is kept by `standbys.Standbys`; a session pauses here for its handoff at a
moment when every step is answered, so that all hops hold the same and nothing is computed again.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence

from swarmd.core import errors
from swarmd.core.frames import Copied, Copy, Leaving, Opened
from swarmd.core.route import Hop
from swarmd.pipeline import events as ev
from swarmd.pipeline.driver_state import DriverState
from swarmd.pipeline.opening import Opening
from swarmd.pipeline.standbys import Standby


class Moving(Opening):
    """What a driver does so that nodes can leave, and about copies that stand by."""

    def _begin_standbys(self, now: float) -> None:
        """Have copies made in a new epoch, of the KV of hops that need one."""
        self._copies_wait = False
        # Where a hop was lost, or a coordinator, the stream's next tokens come before a new copy.
        pause = self.policy.standby_after if self.repairs or self.request.resumed else 0.0
        for hop in self.route if self.request.standby else ():
            if self.held.copies(hop.peer_id):
                self.standbys.want(hop, now + pause, leaving=False)
        before = self._spares()
        self._out += self.standbys.begin(self.route, self.epoch)
        spares = {peer.peer_id for peer in self._spares()}
        self._close(peer for peer in before if peer.peer_id not in spares)
        self._look(now)

    def _look(self, now: float) -> None:
        """Look for peers where a standby has none."""
        avoided = self._search.avoided(now)
        while need := self.standbys.look(self._search.next_ask(), self.route, avoided, now):
            self._out.append(need)

    def _standby_found(self, event: ev.RouteFound, now: float) -> None:
        for peer in event.hops:
            self._decisions.pop(peer.peer_id, None)  # it may be another process than before
        self._out += self.standbys.found(event.ask, event.hops, self.route, self.epoch, now)

    def _standby_missing(self, event: ev.RouteMissing, now: float) -> None:
        self.standbys.missing(event.ask, now)

    def _standby_again(self, event: ev.RoutesChanged, now: float) -> None:
        self.standbys.look_again(now)
        self._look(now)

    def _standby_opened(self, event: ev.Received, now: float) -> None:
        answer = event.frame
        assert isinstance(answer, Opened)
        if answer.epoch != self.epoch:
            return
        if answer.refusal is not None:
            self._standby_lost(event.peer_id, self.policy.avoid_for, now)
            return
        actions = self.standbys.opened(event.peer_id, answer)
        if actions is not None:
            self._out += actions
            self._out.append(ev.Routed(self.route, self.epoch, self._spares()))

    def _standby_lost(
        self, peer_id: str, seconds: float, now: float, *, lives: bool = False
    ) -> None:
        """Do without a peer that held a copy; it is told so if it `lives`."""
        standby = self.standbys.of(peer_id)
        if standby is not None:
            self._search.avoid(peer_id, now + seconds)
            peers = self.standbys.drop(standby, now)
            others = (peer for peer in peers if lives or peer.peer_id != peer_id)
            self._end_copy(standby.hop.peer_id, others)
            if self.state is DriverState.RUNNING:
                self._settle(now)

    def _end_copy(self, donor: str, peers: Iterable[Hop]) -> None:
        """Free what is wanted no more, and have the hop send no more, which would not know."""
        self._close(peers)
        hop = self._search.hop(donor)
        if hop is not None and not self._search.is_lost(donor):
            self._send(hop, Copy(self.request.session, self.epoch, "", hop.blocks, 0))

    def _look_after_copies(self, now: float) -> None:
        """Give up those that lag too far behind, and begin those anew that have stood still."""
        for donor, peers in self.standbys.stayed():
            self._end_copy(donor, peers)
        lagging = self.standbys.lagging(self.feed.reached, self.policy.standby_lag)
        for peer_id in lagging:
            self.standbys.rest(peer_id, self.policy.standby_rest, now)
            if standby := self.standbys.of(peer_id):  # with several peers it may be gone by now
                self._end_copy(standby.hop.peer_id, self.standbys.drop(standby, now))
        if lagging:
            self._out.append(ev.Routed(self.route, self.epoch, self._spares()))
        self._out += self.standbys.renew(self.epoch)

    def _copied(self, event: ev.Received, now: float) -> None:
        news = event.frame
        assert isinstance(news, Copied)
        if news.epoch == self.epoch:
            self.standbys.copied(event.peer_id, news)
            self._settle(now)

    # A node that leaves.

    def _leaving(self, event: ev.Received, now: float) -> None:
        """A hop, or a peer with a copy, is about to go; or it stays after all.

        What it said in another epoch, or before it decided otherwise, counts no more: in each epoch
        it says anew that it goes.
        """
        news = event.frame
        assert isinstance(news, Leaving)
        if news.epoch != self.epoch or news.decision <= self._decisions.get(event.peer_id, -1):
            return
        self._decisions[event.peer_id] = news.decision
        hop = self._search.hop(event.peer_id)
        if news.stays:
            if peers := self.standbys.stay(event.peer_id):
                self._end_copy(event.peer_id, peers)
        elif hop is None:
            self._standby_lost(event.peer_id, self.policy.gap_wait, now, lives=True)
        elif self.held.copies(event.peer_id):
            self.standbys.want(hop, now, leaving=True)
        if self.state is DriverState.RUNNING:
            if self._copies_wait:
                self._begin_standbys(now)
            self._look(now)
            self._settle(now)

    def _settle(self, now: float) -> None:
        """Hand off what can be: pause when copies are nearly whole, go on when they are.

        A session that has paused for a copy that is no more goes on without a handoff.
        """
        last = self.feed.known - 1
        if self.feed.sent < last:
            return  # hops are fed the past yet: to pause now would be for ever
        # The token that was under way at a pause must not end it again.
        lag = self.policy.handoff_lag * (2 if self.feed.paused else 1)
        if not self.standbys.successors(max(1, last - lag)):
            self._end_pause(now)
            return
        self.feed.paused = True
        if not self.feed.is_quiet:
            return
        self._due = now + self.policy.handoff_pause
        if whole := self.standbys.successors(last):
            self._hand_off(whole, now)

    def _hand_off(self, whole: Sequence[Standby], now: float) -> None:
        for standby in whole:
            self._search.substitute(standby.hop.peer_id, standby.peers)
        self._close([standby.hop for standby in whole])
        self.handoffs += len(whole)
        self._open(now)

    def _hand_over(self, event: ev.HandOver, now: float) -> None:
        """This node is about to go, or slow."""
        if event.stays:
            return self._ease(now)
        self._must_move = True
        if not self._has_run:
            error = errors.PeerUnreachable("this node is leaving: ask another one")
            self._finish("moved", error)
        elif self.state is not DriverState.RUNNING:
            self._move()
        return None

    @property
    def _may_move(self) -> bool:
        """Whether another coordinator is to go on, as this node has no other part in it."""
        must = self._must_move or self._eases
        return must and all(hop.peer_id != self.request.me for hop in self.route)

    def _move(self) -> None:
        """End here and keep what the hops hold: the client goes on at another node."""
        error = errors.PeerUnreachable("this node is slow, or leaving: go on at another one")
        self._end("moved", error)

    # What the driver does next.

    @abstractmethod
    def _ease(self, now: float) -> None:
        """Let another coordinator go on, if this node has no part then: it is slow."""

    @abstractmethod
    def _end_pause(self, now: float) -> None:
        """Send steps again, if the session has paused for a handoff."""

"""A session that runs goes round hops that are slow, where somebody can take their place.

Which hop that is, is for `watch.Watch` to say; while a prompt is computed, for `PromptWatch`.
"""

from __future__ import annotations

from collections import Counter

from swarmd.core import errors
from swarmd.core.frames import Poll, Polled
from swarmd.core.route import Hop
from swarmd.pipeline import events as ev
from swarmd.pipeline import repair
from swarmd.pipeline.causes import Cause
from swarmd.pipeline.driver_state import DriverState
from swarmd.pipeline.experience import Experience
from swarmd.pipeline.moving import Moving
from swarmd.pipeline.policy import DriverPolicy
from swarmd.pipeline.prompt_watch import PromptWatch
from swarmd.pipeline.request import Request
from swarmd.pipeline.watch import Watch


class Pacing(Moving):
    """What a driver does about tokens that are late."""

    def __init__(
        self,
        request: Request,
        policy: DriverPolicy | None = None,
        jitter: float = 0.0,
        experience: Experience | None = None,
    ) -> None:
        """`experience` is what the sessions of this node have measured together."""
        super().__init__(request, policy, jitter)
        known = Experience() if experience is None else experience
        self.causes: Counter[Cause] = Counter()
        """What the repairs were for."""
        self._watch = Watch(self.policy.watch, known)
        rows = max(request.chunk_size, self.policy.replay_step)
        self._prompt = PromptWatch(
            known.announced, request.chunk_size, self.policy.time_for(rows), self.policy.prompt
        )
        self._slow: Hop | None = None
        """Whose place somebody is sought for while the session goes on."""
        self._slow_ask = 0
        """Of the question for that."""
        self._asked_until: float | None = None
        """When the hops must have said what keeps them; something new came unless it is `_due`."""
        self._excused = False
        """Whether one of them has said that it works."""

    def _puts_up(self, now: float) -> bool:
        """Whether to wait on though nothing came for long: hops are asked what keeps them first.

        A prompt at the end of a long line is not lost as long as the stage works on what is before.
        """
        if self._asked_until is None or self._asked_until != self._due:
            self._ask_all()
            self._excused = False
            self._due = self._asked_until = now + self.policy.open_timeout
            return True
        if self._excused:
            self._due = now + self.policy.step_timeout
        return self._excused

    def _is_at_work(self, answer: Polled) -> bool:
        """Whether a hop has something of this session, and computes: that, or others' before it."""
        busy_s = answer.busy_us / 1e6
        return answer.accepted > answer.computed and 0 < busy_s < self.policy.step_timeout

    def _ask_all(self) -> None:
        for hop in self.route:
            self._send(hop, Poll(self.request.session, self.epoch))

    def _watch_prompt(self, now: float) -> None:
        """More than one token is on its way, which says nothing about how long one takes."""
        self._watch.rest()
        outputs = self.feed.known - len(self.request.prompt_ids)
        ones = self.policy.replay_step
        self._prompt.begin(ones if self.request.borders else min(ones, outputs), now)

    def _watch_token(self, now: float) -> None:
        """One token is on its way."""
        self._prompt.rest()
        self._watch.begin(self.feed.known, self.feed.waited_us, now, self.route)

    def _time_tokens(self, now: float) -> None:
        """If a token is late, ask the hops how far they are, then who could do better."""
        if self._prompt.due is not None and now >= self._prompt.due:
            self._prompt.asked(now)
            self._ask_all()
        if self._watch.due is None or now < self._watch.due:
            return
        if self._watch.look(now):
            self._ask_all()
            return
        self._replace(self._watch.blamed(self.route, now), now)

    def _replace(
        self, slow: Hop | None, now: float, starving: frozenset[str] = frozenset()
    ) -> None:
        """Find somebody for the place of a hop, if one is slow."""
        if slow is None:
            return
        self._slow = slow
        if not starving:  # which everybody hears from the peer itself
            self._out.append(ev.Lagging(slow.peer_id))
        copies = self.standbys.instead_of(slow)
        well = starving.isdisjoint(peer.peer_id for peer in copies)
        if copies and well and repair.is_same_precision(slow, copies):
            self._leave_slow(now)
            self._close([slow])
            self._seek(now)
        else:
            taken = frozenset(peer.peer_id for peer in self.standbys.peers)
            need = self._search.need_instead(slow, taken, now)
            self._slow_ask = need.ask
            self._out.append(need)

    def _ease(self, now: float) -> None:
        """This node is slow: its own part goes to somebody else first, then the session."""
        if self.state is DriverState.RUNNING and self._watch.may_switch(now):
            self._eases = True
            self._replace(self._search.hop(self.request.me), now)

    def _polled(self, event: ev.Received, now: float) -> None:
        answer = event.frame
        assert isinstance(answer, Polled)
        hop = self._search.hop(event.peer_id)
        if answer.epoch == self.epoch and hop is not None:
            self._excused = self._excused or self._is_at_work(answer)
            if self._prompt.answer(event.peer_id, answer, now) and self._watch.may_switch(now):
                self._replace(hop, now)
            self._replace(self._watch.answer(event.peer_id, answer, self.route, now), now)

    def _peer_lags(self, event: ev.PeerLags, now: float) -> None:
        hop = self._search.hop(event.peer_id)
        if hop is not None:
            self._watch.warned_of(event.peer_id)
            if event.starving and self.may_replace(now):
                self._replace(hop, now, event.starving)

    def may_replace(self, now: float) -> bool:
        """Whether the session could leave a hop now, if there is another one for its place."""
        running = self.state is DriverState.RUNNING and self._slow is None
        return running and self._watch.may_switch(now)

    def _peers_found(self, event: ev.RouteFound, now: float) -> None:
        """Go round a slow hop; not by way of another precision, which would change tokens."""
        slow = self._slow
        if slow is None or event.ask != self._slow_ask:
            self._standby_found(event, now)
        elif all(hop.precision == slow.precision for hop in event.hops):
            self._leave_slow(now)
            self._take_hops(event, now)
        else:
            self._bear()

    def _peers_missing(self, event: ev.RouteMissing, now: float) -> None:
        """Nobody could do better than a slow hop, or hold a copy."""
        if self._slow is not None and event.ask == self._slow_ask:
            self._bear()
        else:
            self._standby_missing(event, now)

    def _bear(self) -> None:
        """Nobody can take the place of the slow hop: it is used on."""
        if self._slow is not None and self._slow.peer_id == self.request.me:
            self._eases = False
        self._slow = None

    def _leave_slow(self, now: float) -> None:
        slow, self._slow = self._slow, None
        assert slow is not None
        self._watch.left(now)
        self.repairs += 1
        self.causes[Cause.SLOW] += 1
        self.error = errors.DeadlineExceeded(f"{slow.peer_id} ({slow.blocks}) takes too long")
        self._search.lose(slow.peer_id, now + self._watch.policy.avoid_for)

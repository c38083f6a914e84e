"""Who wants tokens of a simulated swarm: begins at some node, resumes at others, or walks away.

Where and how often it tries is `swarmd.client.resume`'s decision, as in `client.generation`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from swarmd.client.resume import ResumePolicy, another_node_may_do, resumable
from swarmd.core.errors import LeaseEnded, PeerUnreachable, SwarmdError
from swarmd.core.route import EPOCHS_PER_ATTEMPT, Route
from swarmd.core.sampling import SamplingParams
from swarmd.node.requests import Generation, Resumption
from swarmd.node.run import Output
from swarmd.pipeline import events as ev
from swarmd.sim.call import Call
from swarmd.toys import toy_oracle
from swarmd.v1 import inference_pb2 as pb

if TYPE_CHECKING:
    from swarmd.sim.world import World

POLICY = ResumePolicy()


@dataclass(frozen=True, slots=True)
class Kept:
    """What a client knows of a session that hops keep, to go on from it."""

    session: bytes
    secret: bytes
    ids: tuple[int, ...]
    peer_id: str
    """Who has coordinated it."""

    def first(self, tokens: int) -> Kept:
        """Return its beginning."""
        return replace(self, ids=self.ids[:tokens])


class Client:
    """One generation over all of its calls."""

    def __init__(
        self,
        world: World,
        number: int,
        prompt_ids: tuple[int, ...],
        max_tokens: int,
        sampling: SamplingParams,
    ) -> None:
        self.world, self.number = world, number
        self.prompt_ids, self.max_tokens, self.sampling = prompt_ids, max_tokens, sampling
        self.priority = 0
        self.standby = 0
        self.keep_s = 0.0
        self.kept: Kept | None = None
        """What is kept of it, once it has ended."""
        self.past: Kept | None = None
        """The beginning of its prompt, where that is kept; None also once it is not any more."""
        self.brings_past = True
        """Whether it sends the ids of its past along."""
        self.borders: tuple[int, ...] = ()
        self.ids: list[int] = []
        self.session = self.secret = b""
        self.epoch = 0
        self.route: Route = ()
        self.standbys: Route = ()
        self.chunk_size = 0
        self.begun = False
        self.call: Call | None = None
        self.began_at = self.ended_at = 0.0
        self.ended = ""
        """Why it is over: `length`, `error`, `left`; empty until then."""
        self.error: SwarmdError | None = None
        self.calls = 0
        """Calls over all; of a session without faults one, or two with a redirect."""
        self.resumes = 0
        self.first_token_at: float | None = None
        self._attempts = 0
        self._passes = 0
        self._broke_at = 0.0
        self._missed = ""
        """Its last coordinator, if that was lost without a word."""
        self._left_to_try: list[str] = []
        self._expected: list[int] | None = None

    def __repr__(self) -> str:
        return (
            f"client {self.number}: {len(self.ids)} of {self.max_tokens} ids, {self.calls} calls, "
            f"{self.ended or 'running'} {self.error or ''}"
        )

    # Beginning.

    def begin(self, *first: str) -> None:
        """Ask nodes in turn, these first."""
        self.began_at = self.world.timeline.now
        if self.past is not None:
            first = (self.past.peer_id,)
        others = [peer for peer in self.world.machines if peer not in first]
        self.world.random.shuffle(others)
        self._left_to_try = [*first, *others]
        self._try_next(PeerUnreachable("there is no node"))

    def _try_next(self, error: SwarmdError) -> None:
        if isinstance(error, LeaseEnded) and self.past is not None:
            self.past = None  # all of the prompt is sent then
            self._left_to_try = list(self.world.machines)
        elif not self._left_to_try or not another_node_may_do(error):
            self._end("error", error)
            return
        self._dial(self._left_to_try.pop(0), may_be_redirected=self.world.random.random() < 0.5)

    def redirected(self, call: Call, peer_id: str) -> None:
        """A node has named another one; should that fail, the client comes back."""
        call.over = True
        self._left_to_try.insert(0, call.peer_id)
        self._dial(peer_id, may_be_redirected=False)

    def _dial(self, peer_id: str, *, may_be_redirected: bool) -> None:
        self.calls += 1
        call = self.call = Call(self, peer_id, may_be_redirected, self._continues())
        self.world.timeline.after(self._delay(), functools.partial(self._knock, call))
        call.break_after(POLICY.connect_timeout_s, lambda: not call.accepted)

    def _knock(self, call: Call) -> None:
        machine = self.world.machines[call.peer_id]
        if machine.alive:
            process, generation = machine.running, self._generation()
            process.loop.do(
                lambda: self._accept(call, lambda: process.doors.take(call, generation))
            )
        else:
            call.break_after(self._delay())

    def _accept(self, call: Call, take: Callable[[], None]) -> None:
        if not call.over:
            call.accepted = True
            take()

    def _continues(self) -> pb.ContinueFrom | None:
        past = self.past
        if past is None or self.begun:
            return None
        return pb.ContinueFrom(
            session=past.session,
            secret=past.secret,
            tokens=len(past.ids),
            past_ids=past.ids if self.brings_past else (),
        )

    def _generation(self) -> Generation:
        ids = tuple(self.ids)
        if len(ids) == self.max_tokens:
            ids = ids[:-1]  # its end was not heard of, so it is asked for again
        resume = None
        if self.begun:
            resume = Resumption(
                self.session,
                self.secret,
                self.epoch,
                ids,
                0,
                self.chunk_size,
                self.route,
                self.standbys,
                self.borders,
                lost=self._missed,
            )
        else:
            self.session = b"%08d" % self.number + b"%08d" % self.calls
            self.secret = self.session[::-1]
        return Generation(
            session=self.session,
            secret=self.secret,
            prompt_ids=self.prompt_ids[
                0 if self.past is None or self.begun else len(self.past.ids) :
            ],
            sampling=self.sampling,
            max_tokens=self.max_tokens,
            stop=(),
            stop_token_ids=frozenset(),
            include_stop=False,
            ids_only=True,
            resume=resume,
            priority=self.priority,
            standby=self.standby,
            keep_s=self.keep_s,
        )

    def _delay(self) -> float:
        return self.world.draw(self.world.climate.delay)

    # While it runs.

    def take(self, call: Call, output: Output) -> None:
        """Take what a node says."""
        if isinstance(output, ev.Routed):
            self._routed(call, output)
        elif isinstance(output, ev.Emit):
            self._token(output)
        elif output.error is not None:
            self.lost(call, output.error)
        else:
            call.over = True
            if call.run is not None and call.run.driver.is_kept:
                ids = (*self.prompt_ids, *self.ids)
                self.kept = Kept(self.session, self.secret, ids, call.peer_id)
            self._end(output.reason, None)

    def _routed(self, call: Call, output: ev.Routed) -> None:
        assert call.run is not None
        if not self.begun:
            self.begun, self.chunk_size = True, call.run.chunk_size
            self.borders = call.run.driver.request.borders
            self._expected = None
        self.route, self.standbys = output.route, output.standbys
        self.epoch = max(self.epoch, output.epoch)

    def _token(self, output: ev.Emit) -> None:
        index = output.position - len(self.prompt_ids)
        if index < len(self.ids):
            return
        assert index == len(self.ids), f"{self}: token {index} came after {len(self.ids)}"
        assert index < self.max_tokens, f"{self}: more tokens than were asked for"
        assert output.id == self.expected[index], f"{self}: token {index} differs"
        self.ids.append(output.id)
        self._attempts = 0
        if self.first_token_at is None:
            self.first_token_at = self.world.timeline.now

    @property
    def expected(self) -> list[int]:
        """The output of one process that is never disturbed."""
        if self._expected is None or not self.begun:
            self._expected = toy_oracle(
                self.world.model,
                self.prompt_ids,
                self.sampling,
                self.max_tokens,
                self.chunk_size or self.world.chunk_size,
                chunk_exact=self.world.chunk_exact,
                borders=self.borders,
            )
        return self._expected

    def lost(self, call: Call, error: SwarmdError, *, silent: bool = False) -> None:
        """The call has failed, or its node seems to be gone: then without a word."""
        call.leave((0.0, 20.0) if call.accepted else (0.0, 0.0))
        if self.ended:
            return
        if not self.begun:
            self._try_next(error)
            return
        if not resumable(error):
            self._end("error", error)
            return
        if self._attempts == 0:
            self._broke_at, self._passes = self.world.timeline.now, 0
            self._missed = call.peer_id if silent else ""
            self._left_to_try = self._candidates(call.peer_id)
        self._resume(error)

    def _candidates(self, lost: str) -> list[str]:
        others = [peer for peer in self.world.machines if peer != lost]
        self.world.random.shuffle(others)
        return [*others, lost]

    def _resume(self, error: SwarmdError) -> None:
        """Go on at the next node, after a pause when all have been asked."""
        if self.ended:
            return
        now = self.world.timeline.now
        if not self._left_to_try:
            self._passes += 1
            self._missed = ""
            assert self.call is not None
            self._left_to_try = self._candidates(self.call.peer_id)
            pause = POLICY.delay(self._passes, self.world.random.random())
            self.world.timeline.after(pause, functools.partial(self._resume, error))
            return
        if not POLICY.allows(self._attempts, now - self._broke_at):
            self._end("error", error)
            return
        self._attempts += 1
        self.resumes += 1
        self.epoch += EPOCHS_PER_ATTEMPT
        self._dial(self._left_to_try.pop(0), may_be_redirected=False)

    # Its end.

    def leave(self, notice: tuple[float, float]) -> bool:
        """Want no more; return whether there was anything to leave."""
        if self.ended or self.call is None:
            return False
        self._end("left", None)
        self.call.leave(notice)
        return True

    def desert(self) -> None:
        """Take the coordinator for dead, which is not."""
        if self.begun and not self.ended and self.call is not None and not self.call.over:
            self.lost(self.call, PeerUnreachable("so it seemed"), silent=True)

    def _end(self, how: str, error: SwarmdError | None) -> None:
        if not self.ended:
            self.ended, self.error = how, error
            self.ended_at = self.world.timeline.now

"""What a generation has come to: every event folded into one record, each token counted once.

It makes no call and reads no clock; `swarmd.client.generation` does both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from swarmd.client import values
from swarmd.client.request import resume_request
from swarmd.core.errors import ProtocolError, UsageError
from swarmd.core.results import Completion, Coordinator, KeptSession, RouteHop, TokenOutput
from swarmd.core.route import EPOCHS_PER_ATTEMPT
from swarmd.v1 import inference_pb2 as pb
from swarmd.wire.status import printable


class Progress:
    """One session from the client's side, over all of its coordinators."""

    def __init__(self) -> None:
        self.started: pb.Started | None = None
        """The first `Started`, with the latest epoch, route and coordinator."""
        self.ids: list[int] = []
        self.text = ""
        self.resumes = 0
        self.times: list[float] = []
        """When each token was handed to the caller; the caller of this class writes it."""
        self.route: tuple[RouteHop, ...] = ()
        self._repairs_before = 0
        self._repairs = 0
        self._precision_before = 0
        self._precision = 0
        self._recomputed_before = 0
        self._recomputed = 0
        self._held: TokenOutput | None = None
        self._finished: pb.Finished | None = None

    @property
    def finished(self) -> bool:
        return self._finished is not None

    @property
    def repairs(self) -> int:
        """How often a hop was replaced, over all coordinators."""
        return self._repairs_before + self._repairs

    @property
    def precision_changes(self) -> int:
        """How often blocks went to a peer of another dtype, over all coordinators."""
        return self._precision_before + self._precision

    @property
    def recomputed(self) -> int:
        """How many positions were computed again, over all coordinators, as far as they said."""
        return self._recomputed_before + self._recomputed

    @property
    def coordinator(self) -> Coordinator | None:
        """Who drives the session now."""
        if self.started is None:
            return None
        m = self.started
        address = printable(m.coordinator_address)
        return Coordinator(printable(m.coordinator), address, m.coordinator_pid)

    def begin(self, message: pb.Started) -> None:
        """Take the first event, or that of the coordinator at which the session was resumed."""
        values.check_started(message)
        route = values.route(message.route)
        if self.started is None:
            self.started = pb.Started()
            self.started.CopyFrom(message)
        elif message.session != self.started.session:
            raise ProtocolError("the node that was to resume the session began another one")
        else:
            self._take_over(self.started, message)
        self.route = route

    def _take_over(self, started: pb.Started, message: pb.Started) -> None:
        self.resumes += 1
        self._repairs_before, self._repairs = self.repairs, 0
        self._precision_before, self._precision = self.precision_changes, 0
        self._recomputed_before, self._recomputed = self.recomputed, message.recomputed_tokens
        started.epoch = max(started.epoch, message.epoch)
        started.coordinator = message.coordinator
        started.coordinator_address = message.coordinator_address
        started.coordinator_pid = message.coordinator_pid
        self._set_route(started, message.route, message.standbys)

    def accept(self, event: pb.GenerateEvent) -> TokenOutput | None:
        """Take an event after `begin`; return what the caller is to see of it, if anything.

        Raises ProtocolError for an event that has no place here.
        """
        kind = event.WhichOneof("event")
        if self.started is None or self.finished:
            raise ProtocolError(f"the node sent {kind} before its time")
        if kind == "token":
            return self._token(self.started, event.token)
        if kind == "route_changed":
            self._route_changed(self.started, event.route_changed)
        elif kind == "finished":
            return self._finish(event.finished)
        elif kind is not None:  # None: of a newer node
            raise ProtocolError(f"the node sent {kind} in the middle of a stream")
        return None

    def resumption(
        self, request: pb.GenerateRequest, *, silent: bool = False, waited_s: float = 0.0
    ) -> pb.GenerateRequest:
        """Return the request with which another node goes on; each call is one attempt.

        `silent` says that the coordinator was lost without a word, `waited_s` for how long the
        caller has waited for the next token.

        A last token whose end was not heard of is asked for again: of a session with nothing left
        to generate no node could say how it ended. It is known here, so nobody sees it twice.
        """
        assert self.started is not None
        self.started.epoch += EPOCHS_PER_ATTEMPT
        ids, chars = self.ids, len(self.text)
        if self._held is not None:
            ids, chars = ids[:-1], chars - len(self._held.text)
        lost = self.started.coordinator if silent else ""
        return resume_request(request, self.started, ids, chars, lost, waited_s)

    def _token(self, started: pb.Started, message: pb.Generated) -> TokenOutput | None:
        if message.index < len(self.ids):
            return None  # a resumed coordinator repeats itself
        if message.index > len(self.ids):
            raise ProtocolError(f"token {message.index} came after {len(self.ids)} tokens")
        self.ids.append(message.id)
        self.text += message.text
        output = values.token_output(message)
        if len(self.ids) != started.max_tokens:
            return output
        # Nothing but `Finished` follows, with text that belongs to this last token.
        self._held = output
        return None

    def _route_changed(self, started: pb.Started, message: pb.RouteChanged) -> None:
        self.route = values.route(message.route)
        self._set_route(started, message.route, message.standbys)
        started.epoch = max(started.epoch, message.epoch)
        self._repairs = message.repairs
        self._precision = message.precision_changes
        self._recomputed = message.recomputed_tokens

    @staticmethod
    def _set_route(started: pb.Started, hops: Iterable[pb.Hop], standbys: Iterable[pb.Hop]) -> None:
        del started.route[:]
        started.route.extend(hops)
        del started.standbys[:]
        started.standbys.extend(standbys)

    def _finish(self, message: pb.Finished) -> TokenOutput | None:
        values.finish_reason(message)
        self._finished = message
        self._repairs = message.repairs
        self._precision = message.precision_changes
        self._recomputed = message.recomputed_tokens
        self.text += message.text
        if self._held is not None:
            return dataclasses.replace(self._held, text=self._held.text + message.text)
        return TokenOutput(message.text, -1, 0.0, len(self.ids)) if message.text else None

    def completion(self, began: float, max_stall_s: float) -> Completion:
        """Return the whole. Raises UsageError while the generation is not finished."""
        started, finished, coordinator = self.started, self._finished, self.coordinator
        if started is None or finished is None or coordinator is None:
            raise UsageError("this generation has no result yet: read its tokens to the end first")
        return Completion(
            text=self.text,
            token_ids=tuple(self.ids),
            finish_reason=values.finish_reason(finished),
            num_prompt_tokens=len(started.prompt_ids) or finished.prompt_tokens,
            ttft_s=self.times[0] - began if self.times else 0.0,
            tokens_per_s=_rate(self.times),
            repairs=self.repairs,
            resumes=self.resumes,
            max_stall_s=max_stall_s,
            route=self.route,
            session=started.session.hex(),
            coordinator=coordinator,
            seed=started.sampling.seed,
            model=printable(started.model),
            stop=finished.stop,
            recomputed_tokens=self.recomputed,
            cached_tokens=finished.cached_tokens,
            precision_changes=self.precision_changes,
            kept=self._kept(finished.kept) if finished.HasField("kept") else None,
        )

    def _kept(self, message: pb.Kept) -> KeptSession:
        assert self.started is not None
        ids = (*self.started.prompt_ids, *self.ids)
        return KeptSession(
            address=printable(message.address),
            session=message.session.hex(),
            secret=message.secret.hex(),
            tokens=message.tokens,
            lease_s=message.lease_s,
            token_ids=ids if len(ids) == message.tokens else (),
        )


def _rate(times: list[float]) -> float:
    """Tokens per second after the first."""
    took = times[-1] - times[0] if len(times) > 1 else 0.0
    return (len(times) - 1) / took if took > 0 else 0.0

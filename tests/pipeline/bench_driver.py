"""A driver on the bench: what hops answer is written by the test."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from swarmd.core.frames import Failed, Gap, Open, Opened, Refusal, SessionFrame, Step, Token
from swarmd.core.route import Hop, Route
from swarmd.core.sampling import SamplingParams
from swarmd.core.span import Span
from swarmd.pipeline.driver import Driver, Request
from swarmd.pipeline.events import (
    DriverAction,
    DriverEvent,
    Emit,
    Finished,
    LinksKnown,
    NeedLinks,
    NeedRoute,
    PeerLost,
    Received,
    RouteFound,
    RouteMissing,
    Send,
    Start,
    Tick,
)
from swarmd.pipeline.experience import Experience
from swarmd.pipeline.feed import Feed
from swarmd.pipeline.policy import DriverPolicy
from swarmd.pipeline.steps import ChunkPlan
from swarmd.toys import toy_model

SESSION = b"s" * 16
REQUEST = Request(
    session=SESSION,
    secret=b"k" * 16,
    model=toy_model(num_blocks=8, vocab_size=1000, max_len=512),
    me="me",
    prompt_ids=tuple(range(10)),
    sampling=SamplingParams(),
    max_tokens=5,
    chunk_size=4,
)

FEED = Feed(SESSION, list(REQUEST.prompt_ids), ChunkPlan(len(REQUEST.prompt_ids), 4), 8, 256)


def hops(*parts: str) -> Route:
    """`hops("a 0:4", "b 4:8")`."""
    return tuple(Hop(peer, Span.parse(blocks)) for peer, blocks in (part.split() for part in parts))


ROUTE = hops("a 0:4", "b 4:8")


class Bench:
    """A driver, the time, and all that it has done."""

    def __init__(
        self,
        policy: DriverPolicy | None = None,
        experience: Experience | None = None,
        **changes: Any,
    ) -> None:
        self.driver = Driver(replace(REQUEST, **changes), policy, experience=experience)
        self.now = 100.0
        self.done: list[DriverAction] = []
        self.unreachable: frozenset[str] = frozenset()
        """Peers to whom no link can be made."""

    def handle(self, event: DriverEvent) -> list[DriverAction]:
        actions = self.driver.handle(event, self.now)
        for need in [action for action in actions if isinstance(action, NeedLinks)]:
            actions.remove(need)
            answer = LinksKnown(need.ask, need.peers & self.unreachable)
            actions += self.driver.handle(answer, self.now)
        self.done += actions
        return actions

    def start(self) -> list[DriverAction]:
        return self.handle(Start())

    def found(self, route: Route = ROUTE) -> list[DriverAction]:
        """Answer the last question for a route."""
        return self.handle(RouteFound(self.need.ask, route))

    def missing(self, *blocks: tuple[int, int], **rest: Any) -> list[DriverAction]:
        return self.handle(RouteMissing(self.need.ask, blocks, **rest))

    @property
    def need(self) -> NeedRoute:
        return [action for action in self.done if isinstance(action, NeedRoute)][-1]

    def tell(self, peer_id: str, frame: SessionFrame) -> list[DriverAction]:
        return self.handle(Received(peer_id, frame))

    def opened(self, peer_id: str, kv_length: int = 0, log_start: int = 0) -> list[DriverAction]:
        answer = Opened(SESSION, self.driver.epoch, kv_length=kv_length, log_start=log_start)
        return self.tell(peer_id, answer)

    def refuse(self, peer_id: str, refusal: Refusal, epoch: int = 0) -> list[DriverAction]:
        return self.tell(peer_id, Opened(SESSION, epoch or self.driver.epoch, refusal, "because"))

    def fail(self, peer_id: str, refusal: Refusal, lost: str = "") -> list[DriverAction]:
        return self.tell(peer_id, Failed(SESSION, self.driver.epoch, refusal, "so", lost))

    def token(self, position: int, peer_id: str = "b", **changes: Any) -> list[DriverAction]:
        token = Token(SESSION, self.driver.epoch, self.driver.feed.round, position, position + 500)
        return self.tell(peer_id, replace(token, **changes))

    def gap(self, peer_id: str, kv_length: int) -> list[DriverAction]:
        frame = Gap(SESSION, self.driver.epoch, self.driver.feed.round, kv_length)
        return self.tell(peer_id, frame)

    def lose(self, peer_id: str) -> list[DriverAction]:
        return self.handle(PeerLost(peer_id))

    def wait(self, seconds: float) -> list[DriverAction]:
        """Let time pass; tick whenever the driver wants it."""
        until, actions = self.now + seconds, []
        while (due := self.driver.next_deadline()) is not None and due <= until:
            self.now = max(due, self.now)
            actions += self.handle(Tick())
        self.now = until
        return actions

    def run(self, route: Route = ROUTE) -> list[DriverAction]:
        """Bring a new session to where its prompt has been sent."""
        self.start()
        self.found(route)
        actions = []
        for hop in route:
            actions = self.opened(hop.peer_id)
        return actions


def sent(actions: list[DriverAction], peer_id: str, kind: type[Any]) -> list[Any]:
    """The frames of one kind that go to a peer."""
    return [
        action.frame
        for action in actions
        if isinstance(action, Send) and action.peer_id == peer_id and type(action.frame) is kind
    ]


def steps(actions: list[DriverAction], peer_id: str = "a") -> list[Step]:
    return sent(actions, peer_id, Step)


def opens(actions: list[DriverAction]) -> dict[str, Open]:
    """Who is opened, and how."""
    return {
        action.peer_id: action.frame
        for action in actions
        if isinstance(action, Send) and isinstance(action.frame, Open)
    }


def emitted(actions: list[DriverAction]) -> list[int]:
    return [action.id for action in actions if isinstance(action, Emit)]


def finish(actions: list[DriverAction]) -> Finished | None:
    return next((action for action in actions if isinstance(action, Finished)), None)

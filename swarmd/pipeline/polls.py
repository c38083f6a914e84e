"""How a hop answers a coordinator whose token is late: how far the session is here, and why.

Whom a coordinator blames for it is `watch.Watch`'s business.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from swarmd.core.frames import Poll, Polled
from swarmd.pipeline.events import HopAction, Send
from swarmd.pipeline.hop_session import HopSession


class Computing(Protocol):
    """A stage at work."""

    def computing(self) -> tuple[float, frozenset[bytes]] | None:
        """Return since when it computes the present microbatch, and for whom; None if none."""
        ...


class Polls:
    """Answers; changes nothing."""

    def __init__(self, find: Callable[[str, bytes], HopSession | None]) -> None:
        """`find` gives the session with that id which a sender coordinates."""
        self.stage: Computing | None = None
        self._find = find

    def answer(self, sender: str, order: Poll, now: float) -> list[HopAction]:
        """Say how far a session is."""
        session = self._find(sender, order.session)
        if session is None or order.epoch != session.epoch:
            return []
        since, computed = (self.stage and self.stage.computing()) or (now, frozenset())
        answer = Polled(
            session.id,
            session.epoch,
            accepted=session.length,
            computed=session.computed,
            waits=session.id not in computed,
            busy_us=int(max(0.0, now - since) * 1e6),
        )
        return [Send(sender, answer)]

"""Whether the peers of a route can be reached: their links are made before a session is opened.

A dial is shared by all sessions that want the peer, and tells in one round trip what an open would
find out for each of them. The links are `swarmd.wire.links`'s; what a loss means is the driver's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping

Answer = Callable[[frozenset[str]], None]


class _Question:
    """Some peers, until each of them is known to be there or not."""

    def __init__(self, waiting: set[str], answer: Answer) -> None:
        self.waiting, self.answer = waiting, answer
        self.unreachable: set[str] = set()
        self.timers: list[asyncio.TimerHandle] = []


class Knocks:
    """Questions whether peers can be reached. To be used on the event loop."""

    def __init__(
        self, own_id: str, dial: Callable[[str], None], connected: Callable[[], Collection[str]]
    ) -> None:
        """`dial` has a link made, `connected` says to whom there is one."""
        self._own_id = own_id
        self._dial = dial
        self._connected = connected
        self._open: list[_Question] = []

    def ask(
        self,
        peers: Collection[str],
        seconds: float,
        answer: Answer,
        hurried: Mapping[str, float] | None = None,
    ) -> None:
        """Answer with the peers that cannot be reached, when all are known or time is up.

        Never answers during this call. Who is silent until then counts as out of reach; for some
        peers that may be after fewer seconds, which `hurried` has.
        """
        loop = asyncio.get_running_loop()
        waiting = set(peers).difference(self._connected(), (self._own_id,))
        question = _Question(waiting, answer)
        if not waiting:
            loop.call_soon(answer, frozenset())
            return
        self._open.append(question)
        for peer_id, less in (hurried or {}).items():
            question.timers.append(loop.call_later(less, self._give_up, question, peer_id))
        question.timers.append(loop.call_later(seconds, self._time_is_up, question))
        for peer_id in sorted(waiting):
            self._dial(peer_id)

    def up(self, peer_id: str) -> None:
        """There is a link to a peer."""
        self._settle(peer_id)

    def lost(self, peer_id: str) -> None:
        """A link to a peer has ended, or could not be made."""
        self._settle(peer_id, is_lost=peer_id not in self._connected())

    def _settle(self, peer_id: str, is_lost: bool = False) -> None:
        for question in [q for q in self._open if peer_id in q.waiting]:
            self._note(question, peer_id, is_lost)

    def _give_up(self, question: _Question, peer_id: str) -> None:
        if peer_id in question.waiting:
            self._note(question, peer_id, is_lost=True)

    def _note(self, question: _Question, peer_id: str, is_lost: bool) -> None:
        question.waiting.discard(peer_id)
        if is_lost:
            question.unreachable.add(peer_id)
        if not question.waiting:
            self._answer(question)

    def _time_is_up(self, question: _Question) -> None:
        question.unreachable |= question.waiting
        self._answer(question)

    def _answer(self, question: _Question) -> None:
        self._open.remove(question)
        for timer in question.timers:
            timer.cancel()
        question.answer(frozenset(question.unreachable))

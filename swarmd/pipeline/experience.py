"""What a coordinator's sessions have measured of peers, for those that come after them.

What is late, and who is to blame, is `watch.Watch`'s and `prompt_watch.PromptWatch`'s business.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from swarmd.core.route import Route

FADES_S = 300.0
"""How long a measurement tells what to expect."""
SAMPLES = 64
"""Tokens that are remembered of one peer."""
UNSORTED = 16
"""Tokens that are noted before they are told apart by their peers, all at once: what runs once per
token runs with cold caches."""
MAX_PEERS = 256
"""Of these tokens are remembered; who has had none for longest is forgotten first."""


@dataclass(frozen=True, slots=True)
class Speed:
    """What a peer announces of its stage, in seconds; 0: not known."""

    position_s: float = 0.0
    """For one position of a prompt, among many others."""
    token_s: float = 0.0
    """For one position alone."""


def unknown(peer_id: str) -> Speed:
    """Say nothing of any peer."""
    return Speed()


@dataclass(frozen=True, slots=True)
class _Token:
    at: float
    known: int
    """Length of its session then."""
    seconds: float


class Experience:
    """How long tokens have taken over routes through each peer, all of such a route together."""

    def __init__(self, announced: Callable[[str], Speed] = unknown) -> None:
        """`announced` says what a peer announces of itself."""
        self.announced = announced
        self._tokens: OrderedDict[str, deque[_Token]] = OrderedDict()
        self._unsorted: list[tuple[Route, float, int, float]] = []

    def note(self, route: Route, known: int, seconds: float, now: float) -> None:
        """Take note of a token that came over these hops."""
        self._unsorted.append((route, now, known, seconds))
        if len(self._unsorted) >= UNSORTED:
            self._sort()

    def _sort(self) -> None:
        unsorted, self._unsorted = self._unsorted, []
        for route, at, known, seconds in unsorted:
            token = _Token(at, known, seconds)
            for hop in route:
                self._tokens.setdefault(hop.peer_id, deque(maxlen=SAMPLES)).append(token)
                self._tokens.move_to_end(hop.peer_id)
            while len(self._tokens) > MAX_PEERS:
                self._tokens.popitem(last=False)

    def of(self, route: Route, known: int, enough: int, now: float) -> list[float]:
        """Return what tokens of a session of that length should take, shortest first.

        It is what tokens over the slowest of the peers have taken: all of `enough` of these, or
        nothing where one of the peers has not been met that often. Of twenty the longest does not
        count: one hiccup would have new sessions wait for long. Sessions of less than half
        the length say nothing of this one.
        """
        self._sort()
        met = [self._over(hop.peer_id, known, now) for hop in route]
        if not met or min(map(len, met)) < enough:
            return []
        slowest = max(met, key=lambda seconds: seconds[len(seconds) // 2])
        last = len(slowest) - 1 - len(slowest) // 20
        return [slowest[last * i // max(1, enough - 1)] for i in range(enough)]

    def _over(self, peer_id: str, known: int, now: float) -> list[float]:
        tokens = self._tokens.get(peer_id, ())
        fresh = (t for t in tokens if t.at > now - FADES_S and 2 * t.known >= known)
        return sorted(token.seconds for token in fresh)

    @property
    def peers(self) -> int:
        """How many of them have been met."""
        self._sort()
        return len(self._tokens)

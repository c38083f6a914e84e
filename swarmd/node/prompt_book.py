"""What a coordinator knows of the prompts that it has sent out: who holds what, and who is at it.

Of prompts that begin alike, one goes ahead and the others find what it has computed. Decisions
only: `swarmd.node.coordinator` carries them out, and hops have the last word on what they hold.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

MAX_KEYS = 1 << 13
"""Units that are remembered; the ones that were used least lately are forgotten."""


class PromptBook:
    """Prompts by the keys of their units (see `swarmd.core.prefix`)."""

    def __init__(self, unit: int, max_keys: int = MAX_KEYS) -> None:
        self._unit = max(1, unit)  # where nothing is shared there are no keys
        self._max_keys = max_keys
        self._holders: OrderedDict[bytes, frozenset[str]] = OrderedDict()
        """Units that were computed together have one set of holders between them."""
        self._ahead: dict[bytes, Sequence[bytes]] = {}
        self._behind: dict[bytes, list[bytes]] = {}
        self._anew: set[bytes] = set()

    # Who holds what.

    def held(self, keys: Sequence[bytes]) -> dict[str, int]:
        """Return for each peer how many of the prompt's first positions it should have."""
        found: dict[str, int] = {}
        candidates: frozenset[str] | None = None
        for count, key in enumerate(keys, start=1):
            holders = self._holders.get(key, frozenset())
            candidates = holders if candidates is None else candidates & holders
            if not candidates:
                break
            for peer in candidates:
                found[peer] = count * self._unit
        return found

    def learn(self, keys: Sequence[bytes], peers: Iterable[str]) -> None:
        """A session with this prompt has been computed by these peers."""
        these = frozenset(peers)
        joined: dict[frozenset[str], frozenset[str]] = {}
        for key in reversed(keys):
            holders = self._holders.get(key, frozenset())
            self._holders[key] = joined.setdefault(holders, holders | these)
            self._holders.move_to_end(key)
        while len(self._holders) > self._max_keys:
            self._holders.popitem(last=False)

    def correct(self, keys: Sequence[bytes], peer: str, length: int) -> None:
        """A peer says that it has only so many of the prompt's positions."""
        for key in keys[length // self._unit :]:
            if peer in self._holders.get(key, ()):
                self._take_out(key, peer)

    def lost(self, peer: str) -> None:
        """A peer is gone, and what it held: if it comes back, hops say what is there."""
        for key in [key for key, holders in self._holders.items() if peer in holders]:
            self._take_out(key, peer)

    def _take_out(self, key: bytes, peer: str) -> None:
        left = self._holders[key] - {peer}
        if left:
            self._holders[key] = left
        else:
            del self._holders[key]

    # Who goes first.

    def begin(self, session: bytes, keys: Sequence[bytes]) -> bool:
        """Return whether a session may start; if not, `done` names it when its turn has come.

        It waits for one that is being computed if that spares it much: half of what is left to
        compute of the other one's prompt at least.
        """
        known = max(self.held(keys).values(), default=0) // self._unit
        for other, theirs in self._ahead.items():
            shared = _common(keys, theirs)
            if shared > known and 2 * (shared - known) >= len(theirs) - known:
                self._behind.setdefault(other, []).append(session)
                return False
        self._ahead[session] = keys
        return True

    def ahead_of(self, session: bytes) -> bytes:
        """Return the session that this one waits for; empty if it waits for none."""
        waited_for = (other for other, behind in self._behind.items() if session in behind)
        return next(waited_for, b"")

    def goes(self, session: bytes, keys: Sequence[bytes], peers: Iterable[str]) -> None:
        """Note over which peers a session goes: it may compute anew what others have computed."""
        held = self.held(keys)
        hit = min((held.get(peer, 0) for peer in peers), default=0)
        if 2 * hit < max(held.values(), default=0):
            self._ahead[session] = keys
            self._anew.add(session)

    def is_spread(self, keys: Sequence[bytes]) -> bool:
        """Whether a session computes anew, elsewhere, most of what is held of this prompt.

        Then others that begin alike stay where it is held, until there is one place more.
        """
        known = max(self.held(keys).values(), default=0) // self._unit
        shared = (_common(keys, self._ahead[session]) for session in self._anew)
        return any(2 * common > known for common in shared)

    def done(self, session: bytes) -> list[bytes]:
        """A session's prompt is computed, or will not be; return who may try to start now."""
        self._ahead.pop(session, None)
        self._anew.discard(session)
        return self._behind.pop(session, [])


def _common(one: Sequence[bytes], other: Sequence[bytes]) -> int:
    """Length of the common beginning."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))

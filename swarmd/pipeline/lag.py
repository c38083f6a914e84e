"""Whether one hop makes tokens late again and again, though never as late as to be left at once.

When a token is late, and who held it up, is found by `watch.Watch`.
"""

from __future__ import annotations

from collections import deque


class Lag:
    """Who has held up the latest tokens. One slow moment is no lag, nor are many with many causes:
    of `of` tokens a hop must have held up `times`."""

    def __init__(self, times: int, of: int) -> None:
        self._times = times
        self._held_up: deque[str] = deque(maxlen=of)

    def note(self, peer_id: str = "") -> None:
        """A token came in time, or one was late for that peer."""
        self._held_up.append(peer_id)

    def suspect(self, peer_id: str) -> None:
        """Have the next token that is late for that peer be the last that it takes."""
        self._held_up.extend([peer_id] * (self._times - 1))

    def is_of(self, peer_id: str) -> bool:
        """Whether that peer lags."""
        return self._held_up.count(peer_id) >= self._times

    def forget(self) -> None:
        """The session has another route."""
        self._held_up.clear()

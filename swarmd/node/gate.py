"""A door that lets so many through at once, and tells the others when to come again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from swarmd.core.errors import QueueFull

RETRY_S = 1.0


class Gate:
    """Counts who is inside. Used on the event loop."""

    def __init__(self, what: str, most: int) -> None:
        self.inside = 0
        self._what = what
        self._most = most

    def check(self, others: int = 0) -> None:
        """Raise QueueFull where there is no room beside `others`, which take places, too."""
        if self.inside + others >= self._most:
            raise QueueFull(
                f"{self.inside + others} {self._what} here already: try again in a second, or ask "
                "another node",
                RETRY_S,
            )

    @contextmanager
    def enter(self, others: int = 0) -> Iterator[None]:
        """Take a place for as long as the context is open. Raises QueueFull."""
        self.check(others)
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

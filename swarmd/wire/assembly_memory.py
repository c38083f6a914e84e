"""The memory that unfinished frames take, over all links of one node.

Putting frames together, within the limits of one link, is `wire.assembler`'s business.
"""

from __future__ import annotations

from typing import Protocol

from swarmd.core.errors import QueueFull
from swarmd.wire import limits


class Holder(Protocol):
    """What holds unfinished frames: one link's assembler."""

    @property
    def held_bytes(self) -> int: ...

    def evict(self, error: QueueFull) -> None:
        """Give back all that is held, and end the link with this error."""
        ...


class AssemblyMemory:
    """A budget. When it is full, the link goes that holds most, so that a few large unfinished
    frames of strangers are in nobody else's way."""

    def __init__(self, total_bytes: int = limits.MAX_NODE_ASSEMBLY_BYTES) -> None:
        self.total_bytes = total_bytes
        self.held_bytes = 0
        self._holders: set[Holder] = set()

    def take(self, holder: Holder, nbytes: int) -> None:
        """Count bytes that are about to be kept. Raises QueueFull if no link holds more."""
        while self.held_bytes + nbytes > self.total_bytes:
            most = max(self._holders, key=lambda other: other.held_bytes, default=holder)
            would_hold = holder.held_bytes + nbytes
            if most is holder or most.held_bytes <= would_hold:
                raise self._full(would_hold)
            most.evict(self._full(most.held_bytes))
        self.held_bytes += nbytes
        self._holders.add(holder)

    def give_back(self, nbytes: int) -> None:
        """Stop counting bytes that became a frame."""
        self.held_bytes -= nbytes

    def leave(self, holder: Holder) -> None:
        """Forget a holder and what it holds."""
        self.held_bytes -= holder.held_bytes
        self._holders.discard(holder)

    def _full(self, nbytes: int) -> QueueFull:
        return QueueFull(
            f"unfinished frames of all links would exceed {self.total_bytes} bytes, and none "
            f"holds more than this link with {nbytes}: send less at once"
        )

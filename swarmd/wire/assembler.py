"""Fragments back into frames, within bounds that are checked before anything is kept."""

from __future__ import annotations

from collections.abc import Callable

from google.protobuf.message import DecodeError

from swarmd.core.errors import ProtocolError, QueueFull
from swarmd.v1 import peer_pb2 as pb
from swarmd.wire import limits, unfold
from swarmd.wire.assembly_memory import AssemblyMemory


class Assembler:
    """Unfinished frames of one link."""

    def __init__(
        self,
        max_frame_bytes: int = limits.MAX_FRAME_BYTES,
        max_total_bytes: int = limits.MAX_ASSEMBLY_BYTES,
        max_unfinished: int = limits.MAX_UNFINISHED,
        memory: AssemblyMemory | None = None,
        on_evicted: Callable[[QueueFull], None] = lambda error: None,
    ) -> None:
        """`memory` is shared with other links; `on_evicted` is to end this one, which held most."""
        self._max_frame = max_frame_bytes
        self._max_total = max_total_bytes
        self._max_unfinished = max_unfinished
        self._memory = memory or AssemblyMemory()
        self._on_evicted = on_evicted
        self._parts: dict[int, tuple[int, bytearray]] = {}
        self.held_bytes = 0

    def add(self, part: pb.Fragment) -> pb.Frame | None:
        """Take one fragment; return the frame when it is whole.

        Raises ProtocolError when a piece is missing or out of order, a limit is exceeded, or the
        whole does not parse; QueueFull when there is no memory left for all links together.
        """
        total, data = self._parts.get(part.frame) or self._begin(part)
        end = len(data) + len(part.data)
        if part.offset != len(data) or part.total_bytes != total or end > total or not part.data:
            raise ProtocolError(
                f"fragment of {len(part.data)} bytes at {part.offset} of {part.total_bytes}; "
                f"expected one at {len(data)} of {total}"
            )
        if self.held_bytes + len(part.data) > self._max_total:
            raise ProtocolError(f"unfinished frames exceed {self._max_total} bytes")
        self._memory.take(self, len(part.data))
        self.held_bytes += len(part.data)
        data += part.data
        if end < total:
            self._parts[part.frame] = (total, data)
            return None
        self._parts.pop(part.frame, None)
        self.held_bytes -= total
        self._memory.give_back(total)
        return _parse(bytes(data))

    def clear(self) -> None:
        """Drop what is unfinished."""
        self._memory.leave(self)
        self._parts.clear()
        self.held_bytes = 0

    def evict(self, error: QueueFull) -> None:
        """Drop what is unfinished, for others' sake, and end the link."""
        self.clear()
        self._on_evicted(error)

    def _begin(self, part: pb.Fragment) -> tuple[int, bytearray]:
        if part.total_bytes > self._max_frame:
            raise ProtocolError(f"a frame of {part.total_bytes} bytes; at most {self._max_frame}")
        if len(self._parts) >= self._max_unfinished:
            raise ProtocolError(f"more than {self._max_unfinished} unfinished frames")
        return part.total_bytes, bytearray()


def _parse(data: bytes) -> pb.Frame:
    unfold.check(data)
    try:
        return pb.Frame.FromString(data)
    except DecodeError as error:
        raise ProtocolError(f"a fragmented frame does not parse: {error}") from error

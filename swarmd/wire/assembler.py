"""Fragments back into frames, within bounds that are checked before anything is kept."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from swarmd.core.errors import ProtocolError
from swarmd.v1 import peer_pb2 as pb
from swarmd.wire import limits, unfold


class Assembler:
    """Unfinished frames of one link."""

    def __init__(
        self,
        max_frame_bytes: int = limits.MAX_FRAME_BYTES,
        max_total_bytes: int = limits.MAX_ASSEMBLY_BYTES,
        max_unfinished: int = limits.MAX_UNFINISHED,
    ) -> None:
        self._max_frame = max_frame_bytes
        self._max_total = max_total_bytes
        self._max_unfinished = max_unfinished
        self._parts: dict[int, tuple[int, bytearray]] = {}
        self.held_bytes = 0

    def add(self, part: pb.Fragment) -> pb.Frame | None:
        """Take one fragment; return the frame when it is whole.

        Raises ProtocolError when a piece is missing or out of order, a limit is exceeded, or the
        whole does not parse.
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
        self.held_bytes += len(part.data)
        data += part.data
        if end < total:
            self._parts[part.frame] = (total, data)
            return None
        self._parts.pop(part.frame, None)
        self.held_bytes -= total
        return _parse(bytes(data))

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

"""Fragments back into frames, within bounds that are checked before anything is kept."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from swarmd.core.errors import ProtocolError
from swarmd.v1 import peer_pb2 as pb
from swarmd.wire import limits


class Assembler:
    """Unfinished frames of one link."""

    def __init__(
        self,
        max_frame_bytes: int = limits.MAX_FRAME_BYTES,
        max_total_bytes: int = limits.MAX_ASSEMBLY_BYTES,
    ) -> None:
        self._max_frame = max_frame_bytes
        self._max_total = max_total_bytes
        self._parts: dict[int, tuple[int, list[bytes], int]] = {}
        self._held = 0

    def add(self, part: pb.Fragment) -> pb.Frame | None:
        """Take one fragment; return the frame when it is whole.

        Raises ProtocolError when a piece is missing, out of order, or the frame too large.
        """
        if part.total_bytes > self._max_frame:
            raise ProtocolError(f"a frame of {part.total_bytes} bytes; at most {self._max_frame}")
        total, pieces, reached = self._parts.get(part.frame, (part.total_bytes, [], 0))
        end = reached + len(part.data)
        if part.offset != reached or part.total_bytes != total or end > total or not part.data:
            raise ProtocolError(f"fragment at {part.offset} of {total} bytes; expected {reached}")
        if self._held + len(part.data) > self._max_total:
            raise ProtocolError(f"unfinished frames exceed {self._max_total} bytes")
        pieces.append(part.data)
        if end < total:
            self._held += len(part.data)
            self._parts[part.frame] = (total, pieces, end)
            return None
        self._held -= reached
        self._parts.pop(part.frame, None)
        try:
            return pb.Frame.FromString(b"".join(pieces))
        except DecodeError as error:
            raise ProtocolError(f"a fragmented frame does not parse: {error}") from error

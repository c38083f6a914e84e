"""What waits to be written to one peer: in order within a session, in turns between sessions.

So a decode step waits for one fragment of somebody's prefill, never for all of it, and steps that
wait together travel together. Pure: the link writes what `next_message` returns.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator

from swarmd.core.errors import QueueFull
from swarmd.core.frames import Keep, SessionFrame, Step, Token
from swarmd.v1 import peer_pb2 as pb
from swarmd.wire import frames, limits

_SMALL_BYTES = 128 << 10
_BATCH_BYTES = 512 << 10
_FRAME_OVERHEAD = 128


class _Lane:
    """One session's frames in order, and what is left of the one that is being cut up."""

    __slots__ = ("fragments", "frames")

    def __init__(self) -> None:
        self.frames: deque[SessionFrame] = deque()
        self.fragments: deque[pb.Frame] = deque()

    def __bool__(self) -> bool:
        return bool(self.frames or self.fragments)

    def head(self, kinds: tuple[type, ...]) -> SessionFrame | None:
        """Return the next frame if it may travel in a batch of these kinds."""
        if self.fragments or not self.frames:
            return None
        frame = self.frames[0]
        return frame if isinstance(frame, kinds) and _size(frame) <= _SMALL_BYTES else None


class Outbound:
    """Frames that wait for one link."""

    def __init__(self, max_bytes: int = limits.MAX_OUTBOUND_BYTES) -> None:
        self._lanes: OrderedDict[bytes, _Lane] = OrderedDict()
        self._frame_count = 0
        self._max_bytes = max_bytes
        self.pending_bytes = 0

    def put(self, frame: SessionFrame) -> None:
        """Append a frame. Raises QueueFull when the peer takes too little."""
        size = _size(frame)
        if self.pending_bytes + size > self._max_bytes:
            raise QueueFull(f"{self.pending_bytes} bytes wait for this peer already")
        self.pending_bytes += size
        self._lanes.setdefault(_session_of(frame), _Lane()).frames.append(frame)

    def __bool__(self) -> bool:
        return bool(self._lanes)

    def next_message(self) -> pb.Frame | None:
        """Return the next message of at most MAX_MESSAGE_BYTES, or None when nothing waits."""
        if not self._lanes:
            return None
        key, lane = next(iter(self._lanes.items()))
        for kinds in ((Step,), (Token,)):
            if lane.head(kinds) is not None:
                return self._batch(kinds)
        if not lane.fragments:
            message = frames.encode(self._pop(lane))
            if message.ByteSize() <= limits.MAX_MESSAGE_BYTES // 2:
                self._after_turn(key)
                return message
            lane.fragments.extend(self._split(message.SerializeToString()))
        fragment = lane.fragments.popleft()
        self._after_turn(key)
        return fragment

    def _batch(self, kinds: tuple[type, ...]) -> pb.Frame:
        """Take one frame of this kind from every session that has one at its head."""
        batch: list[SessionFrame] = []
        room = _BATCH_BYTES
        for key, lane in list(self._lanes.items()):
            frame = lane.head(kinds)
            if frame is None:
                continue
            room -= _size(frame)
            if batch and room < 0:
                break
            batch.append(self._pop(lane))
            self._after_turn(key)
        if kinds == (Step,):
            return frames.encode_steps(f for f in batch if isinstance(f, Step))
        return frames.encode_tokens(f for f in batch if isinstance(f, Token))

    def _pop(self, lane: _Lane) -> SessionFrame:
        frame = lane.frames.popleft()
        self.pending_bytes -= _size(frame)
        return frame

    def _after_turn(self, key: bytes) -> None:
        if self._lanes[key]:
            self._lanes.move_to_end(key)
        else:
            del self._lanes[key]

    def _split(self, data: bytes) -> Iterator[pb.Frame]:
        self._frame_count += 1
        for offset in range(0, len(data), limits.FRAGMENT_BYTES):
            yield pb.Frame(
                fragment=pb.Fragment(
                    frame=self._frame_count,
                    total_bytes=len(data),
                    offset=offset,
                    data=data[offset : offset + limits.FRAGMENT_BYTES],
                )
            )


def _session_of(frame: SessionFrame) -> bytes:
    return b"" if isinstance(frame, Keep) else frame.session


def _size(frame: SessionFrame) -> int:
    """Bytes on the wire, roughly and cheaply."""
    if isinstance(frame, Step):
        held = frame.hidden.nbytes if frame.hidden is not None else 0
        return held + 4 * (len(frame.token_ids) + len(frame.chunks)) + _FRAME_OVERHEAD
    return 4 * len(getattr(frame, "token_ids", ())) + _FRAME_OVERHEAD

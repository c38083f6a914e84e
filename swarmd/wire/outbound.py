"""What waits to be written to one peer: in order within a session, in turns between sessions.

So a decode step waits for one fragment of somebody's prefill, never for all of it, and steps that
wait together travel together. Pure: the link writes what `next_message` returns.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from typing import TypeVar

from swarmd.core.errors import ProtocolError, QueueFull
from swarmd.core.frames import KV, Close, Keep, Open, SessionFrame, Step, Token
from swarmd.v1 import peer_pb2 as pb
from swarmd.wire import encoding, limits

_BATCH_BYTES = 512 << 10
# What a frame costs in memory beside its payload; on the wire it is less.
_FRAME_OVERHEAD = 256
_BLOCK_OVERHEAD = 128


_Kind = TypeVar("_Kind", Step, Token)


class Outbound:
    """Frames that wait for one link."""

    def __init__(self, max_bytes: int = limits.MAX_OUTBOUND_BYTES) -> None:
        self._max_bytes = max_bytes
        self._lanes: dict[bytes, deque[tuple[int, SessionFrame]]] = {}
        # Lanes by what is at their head, in turn; the lane that is being cut up is in neither.
        self._whole: OrderedDict[bytes, None] = OrderedDict()
        self._large: deque[bytes] = deque()
        self._cut: _Cut | None = None
        self._cut_count = 0
        self._cut_is_next = False
        self.pending_bytes = 0

    def put(self, frame: SessionFrame) -> None:
        """Append a frame.

        Raises QueueFull when the peer takes too little, and ProtocolError for a frame that no peer
        would accept, whatever else waits.
        """
        for part in _keeps(frame) if isinstance(frame, Keep) else (frame,):
            size = _size(part)
            if size > limits.MAX_FRAME_BYTES:
                raise ProtocolError(
                    f"a frame of {size} bytes cannot be sent, the limit is "
                    f"{limits.MAX_FRAME_BYTES}: shorter chunks make smaller frames"
                )
            if self.pending_bytes + size > self._max_bytes:
                raise QueueFull(f"{self.pending_bytes} bytes wait for this peer already")
            self.pending_bytes += size
            self._append(b"" if isinstance(part, Keep) else part.session, size, part)

    def put_all(self, batch: Sequence[SessionFrame]) -> None:
        """Append frames. Raises as `put`; a frame that no peer would accept keeps no other one."""
        refused: ProtocolError | None = None
        for frame in batch:
            try:
                self.put(frame)
            except ProtocolError as error:
                refused = error
        if refused is not None:
            raise refused

    def lets_pass(self, batch: Sequence[SessionFrame]) -> bool:
        """Whether frames need not wait in line: one step or token, where nothing else waits."""
        if len(batch) != 1 or self._lanes:
            return False
        frame = batch[0]
        if isinstance(frame, Step):
            return _size(frame) <= limits.FRAGMENT_BYTES
        return isinstance(frame, Token)

    def clear(self) -> None:
        """Forget everything that waits; not for use while a link sends from here."""
        self._lanes.clear()
        self._whole.clear()
        self._large.clear()
        self._cut = None
        self.pending_bytes = 0

    def __bool__(self) -> bool:
        return bool(self._lanes)

    def next_message(self) -> pb.Frame | None:
        """Return the next message of at most MAX_MESSAGE_BYTES, or None when nothing waits."""
        if self._whole and not (self._cut_is_next and (self._cut or self._large)):
            self._cut_is_next = True
            return self._whole_frames()
        self._cut_is_next = False
        if self._cut is None and self._large:
            self._cut = self._begin_cut(self._large.popleft())
        return self._next_fragment(self._cut) if self._cut is not None else None

    def _append(self, key: bytes, size: int, frame: SessionFrame) -> None:
        lane = self._lanes.get(key)
        if lane is not None:
            lane.append((size, frame))
        else:
            self._lanes[key] = deque([(size, frame)])
            self._line_up(key)

    def _line_up(self, key: bytes) -> None:
        """Put a lane at the end of the line that its first frame belongs in."""
        lane = self._lanes[key]
        if not lane:
            del self._lanes[key]
        elif lane[0][0] > limits.FRAGMENT_BYTES:
            self._large.append(key)
        else:
            self._whole[key] = None

    def _whole_frames(self) -> pb.Frame:
        """Take the first frame in line, or one from every session if they can share a message."""
        key = next(iter(self._whole))
        kind = type(self._lanes[key][0][1])
        if kind is Step:
            return encoding.encode_steps(self._batch(Step))
        if kind is Token:
            return encoding.encode_tokens(self._batch(Token))
        return encoding.encode(self._pop(key))

    def _batch(self, kind: type[_Kind]) -> list[_Kind]:
        """Take the first frame of every session that has one of this kind in line."""
        batch: list[_Kind] = []
        room = _BATCH_BYTES
        for key in list(self._whole):
            size, frame = self._lanes[key][0]
            if not isinstance(frame, kind):
                continue
            room -= size
            if batch and room < 0:
                break
            self._pop(key)
            batch.append(frame)
        return batch

    def _pop(self, key: bytes) -> SessionFrame:
        size, frame = self._lanes[key].popleft()
        self.pending_bytes -= size
        del self._whole[key]
        self._line_up(key)
        return frame

    def _begin_cut(self, key: bytes) -> _Cut:
        size, frame = self._lanes[key].popleft()
        self._cut_count += 1
        return _Cut(key, size, self._cut_count, encoding.encode(frame).SerializeToString())

    def _next_fragment(self, cut: _Cut) -> pb.Frame:
        # One frame at a time is cut up: the receiver's bound on unfinished frames is never met.
        fragment = cut.next_fragment()
        if cut.done:
            self._cut = None
            self.pending_bytes -= cut.size
            self._line_up(cut.key)
        return fragment


class _Cut:
    """A large frame on its way, in pieces."""

    __slots__ = ("_data", "_number", "_offset", "key", "size")

    def __init__(self, key: bytes, size: int, number: int, data: bytes) -> None:
        self.key = key
        self.size = size
        self._number = number
        self._data = data
        self._offset = 0

    @property
    def done(self) -> bool:
        return self._offset >= len(self._data)

    def next_fragment(self) -> pb.Frame:
        offset = self._offset
        self._offset += limits.FRAGMENT_BYTES
        message = pb.Frame()
        fragment = message.fragment
        fragment.frame = self._number
        fragment.total_bytes = len(self._data)
        fragment.offset = offset
        fragment.data = self._data[offset : self._offset]
        return message


def _keeps(frame: Keep) -> Iterator[Keep]:
    """Cut a Keep for very many sessions into ones that the other side's limits allow."""
    for start in range(0, len(frame.sessions), limits.MAX_STEPS):
        yield Keep(frame.sessions[start : start + limits.MAX_STEPS])


def _size(frame: SessionFrame) -> int:
    """Bytes that the frame takes here, cheaply; never less than what it takes on the wire."""
    if isinstance(frame, Step):
        held = frame.hidden.nbytes if frame.hidden is not None else 0
        numbers = len(frame.token_ids) + len(frame.chunks) + len(frame.wants)
        return held + 5 * numbers + _FRAME_OVERHEAD
    if isinstance(frame, Token):
        return 16 * len(frame.top) + _FRAME_OVERHEAD
    if isinstance(frame, Open):
        biases = len(frame.sampling.logit_bias) if frame.sampling is not None else 0
        numbers = 5 * len(frame.token_ids) + 13 * biases + 18 * len(frame.prefix)
        return numbers + 2 * _FRAME_OVERHEAD
    if isinstance(frame, Close):
        return 18 * len(frame.prefix) + _FRAME_OVERHEAD
    if isinstance(frame, Keep):
        return 18 * len(frame.sessions) + _FRAME_OVERHEAD
    if isinstance(frame, KV):
        return frame.nbytes + _BLOCK_OVERHEAD * len(frame.blocks) + _FRAME_OVERHEAD
    return 6 * limits.MAX_TEXT if hasattr(frame, "message") else _FRAME_OVERHEAD

"""What a serialised frame would take in memory once parsed, found out before it is parsed.

An empty sub-message is two bytes on the wire and about a hundred in memory, so 64 MiB of them would
cost gigabytes. Only reassembled frames come here: those that fit one message are small enough.
"""

from __future__ import annotations

from typing import Any

from swarmd.core.errors import ProtocolError
from swarmd.v1 import peer_pb2 as pb
from swarmd.wire import limits

# Rounded up, so far that counting a hostile frame ends after a tenth of a second.
_FIELD_COST = 1024
_PACKED_COST = 8

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def check(data: bytes, max_bytes: int = limits.MAX_UNFOLDED_BYTES) -> None:
    """Raise ProtocolError when parsing `data` as a Frame would take more than `max_bytes`."""
    _Count(data, max_bytes).message(pb.Frame.DESCRIPTOR, 0, len(data))


class _Count:
    def __init__(self, data: bytes, max_bytes: int) -> None:
        self._data = data
        self._max = max_bytes
        self._left = max_bytes

    def message(self, descriptor: Any, start: int, end: int) -> None:
        """Count the fields of a message at `[start, end)`; the schema bounds the recursion."""
        while start < end:
            self._take(_FIELD_COST)
            tag, start = self._varint(start, end)
            field = descriptor.fields_by_number.get(tag >> 3)
            start = self._field(field, tag & 7, start, end)

    def _field(self, field: Any, wire_type: int, start: int, end: int) -> int:
        if wire_type == _BYTES:
            length, start = self._varint(start, end)
            if length > end - start:
                raise ProtocolError("a fragmented frame does not parse: a field runs past its end")
            self._delimited(field, start, length)
            return start + length
        if wire_type == _VARINT:
            return self._varint(start, end)[1]
        if wire_type == _FIXED64:
            return start + 8
        if wire_type == _FIXED32:
            return start + 4
        raise ProtocolError(f"a fragmented frame does not parse: wire type {wire_type}")

    def _delimited(self, field: Any, start: int, length: int) -> None:
        if field is None or field.type in (field.TYPE_BYTES, field.TYPE_STRING):
            return
        if field.message_type is not None:
            self.message(field.message_type, start, start + length)
        else:
            self._take(_PACKED_COST * length)  # numbers of a byte each at least

    def _take(self, cost: int) -> None:
        self._left -= cost
        if self._left < 0:
            raise ProtocolError(f"a frame that takes more than {self._max} bytes when unfolded")

    def _varint(self, start: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if start >= end:
                raise ProtocolError("a fragmented frame does not parse: it ends within a number")
            byte = self._data[start]
            start += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, start
        raise ProtocolError("a fragmented frame does not parse: an endless number")

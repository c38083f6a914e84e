"""`Poll` and `Polled` to protobuf and back; all other frames are `swarmd.wire.frames`'s."""

from __future__ import annotations

from swarmd.core.errors import ProtocolError
from swarmd.core.frames import Poll, Polled
from swarmd.v1 import peer_pb2 as pb
from swarmd.wire import limits

_MAX_BUSY_US = 1 << 53


def poll_to_pb(frame: Poll) -> pb.Frame:
    """Return the message for a poll."""
    return pb.Frame(poll=pb.Poll(session=frame.session, epoch=frame.epoch))


def polled_to_pb(frame: Polled) -> pb.Frame:
    """Return the message for the answer to one."""
    return pb.Frame(
        polled=pb.Polled(
            session=frame.session,
            epoch=frame.epoch,
            accepted=frame.accepted,
            computed=frame.computed,
            waits=frame.waits,
            busy_us=frame.busy_us,
        )
    )


def polled_from_pb(m: pb.Polled, session: bytes, epoch: int) -> Polled:
    """Return the answer in a message whose session and epoch are checked. Raises ProtocolError."""
    if not m.computed <= m.accepted <= limits.MAX_POSITIONS:
        raise ProtocolError(f"{m.computed} of {m.accepted} positions computed")
    return Polled(session, epoch, m.accepted, m.computed, m.waits, min(m.busy_us, _MAX_BUSY_US))

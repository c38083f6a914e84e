"""What an open says of a session that a new one goes on from, and of whose it is: both ways.

All other fields of an open are `swarmd.wire.frames`'s.
"""

from __future__ import annotations

from swarmd.core.errors import ProtocolError
from swarmd.core.frames import MAX_TENANT_BYTES, SECRET_BYTES, SESSION_ID_BYTES, Past
from swarmd.v1 import peer_pb2 as pb
from swarmd.wire.limits import MAX_POSITIONS


def past_to_pb(past: Past) -> pb.Past:
    """Return the message."""
    return pb.Past(
        session=past.session,
        secret=past.secret,
        tokens=past.tokens,
        floor=past.floor,
        run=past.run,
    )


def past_from_pb(m: pb.Past, prompt_tokens: int) -> Past:
    """Return the past of a prompt of that length. Raises ProtocolError."""
    secret = secret_from_pb(m.secret)
    if not 1 <= m.tokens <= prompt_tokens:
        raise ProtocolError(f"a past of {m.tokens} positions for a prompt of {prompt_tokens}")
    if len(m.session) != SESSION_ID_BYTES:
        raise ProtocolError(f"a session id has {SESSION_ID_BYTES} bytes, not {len(m.session)}")
    if max(m.floor, m.run) > MAX_POSITIONS:
        raise ProtocolError(f"a place beyond {MAX_POSITIONS} in a past")
    return Past(m.session, secret, m.tokens, m.floor, m.run)


def secret_from_pb(value: bytes) -> bytes:
    """Return a session's secret. Raises ProtocolError if it is none."""
    if len(value) != SECRET_BYTES:
        raise ProtocolError(f"a session secret has {SECRET_BYTES} bytes, not {len(value)}")
    return value


def tenant_from_pb(value: bytes) -> bytes:
    """Return a tenant's opaque name. Raises ProtocolError if it is too long."""
    if len(value) > MAX_TENANT_BYTES:
        raise ProtocolError(f"a tenant has at most {MAX_TENANT_BYTES} bytes, not {len(value)}")
    return value

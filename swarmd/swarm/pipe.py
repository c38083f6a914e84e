"""Length-prefixed messages between a node and its directory process, over a socketpair.

Both ends use this; what the messages mean is `swarm.dht`'s and `swarm.dht_child`'s.
"""

from __future__ import annotations

import asyncio
import struct

MAX_MESSAGE_BYTES = 8 << 20

_HEADER = struct.Struct(">I")


async def read_message(reader: asyncio.StreamReader) -> bytes | None:
    """Return the next message, None at the end of the stream; raises ValueError if too long."""
    try:
        (length,) = _HEADER.unpack(await reader.readexactly(_HEADER.size))
        if length > MAX_MESSAGE_BYTES:
            raise ValueError(f"a message of {length} bytes, at most {MAX_MESSAGE_BYTES} are read")
        return await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def write_message(writer: asyncio.StreamWriter, message: bytes) -> None:
    """Queue one message; raises ValueError if it is too long."""
    if len(message) > MAX_MESSAGE_BYTES:
        raise ValueError(f"a message of {len(message)} bytes, at most {MAX_MESSAGE_BYTES} are sent")
    writer.write(_HEADER.pack(len(message)) + message)

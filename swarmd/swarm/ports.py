"""Small questions about TCP ports, asked before p2pd is let loose on them.

Addresses in libp2p's notation are `swarm.dht_child`'s business.
"""

from __future__ import annotations

import asyncio
import socket

PROBE_TIMEOUT_S = 2.0


def free_port(host: str) -> int:
    """Return a port of `host` that nobody has now."""
    with _socket(host) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def check_port(host: str, port: int) -> None:
    """Raise OSError if somebody listens there: p2pd would share the port, and halve the calls."""
    with _socket(host) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        probe.listen(1)


async def is_listening(host: str, port: int) -> bool:
    """Return whether anybody accepts connections there."""
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


def _socket(host: str) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)

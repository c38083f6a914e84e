"""gRPC channels and servers with swarmd's options: finite messages, fast detection of dead peers.

Certificates will enter here and nowhere else.
"""

from __future__ import annotations

import os

# A forked child must not inherit gRPC's threads; swarmd never forks, it execs.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc

from swarmd.core.options import join_address, split_address
from swarmd.wire import limits


def _pinged(every: float, answer: float) -> tuple[tuple[str, int], ...]:
    """Options that end a connection whose other side does not answer a ping; times in seconds."""
    timeout = int(answer * 1000)
    return (
        ("grpc.keepalive_time_ms", int(every * 1000)),
        ("grpc.keepalive_timeout_ms", timeout),
        # Without this one, gRPC waits for any ping's answer for a minute, whatever the above says.
        ("grpc.http2.ping_timeout_ms", timeout),
    )


_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", limits.RECEIVE_MESSAGE_BYTES),
    ("grpc.max_send_message_length", limits.RECEIVE_MESSAGE_BYTES),
    *_pinged(10.0, 5.0),
    ("grpc.http2.max_pings_without_data", 0),
    # A long link fills its window at once instead of probing for it: two round trips saved.
    ("grpc.http2.lookahead_bytes", 16 << 20),
    ("grpc.http2.bdp_probe", 0),
    # A proxy that this machine has for the web is no way to a peer.
    ("grpc.enable_http_proxy", 0),
)

_SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    *_OPTIONS,
    # Peers ping often on purpose; without these the server answers with GOAWAY.
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
    ("grpc.http2.max_ping_strikes", 0),
    # Two daemons must never share a port by accident.
    ("grpc.so_reuseport", 0),
)


_WATCHED = _pinged(0.5, 0.9)
"""For streams without heartbeats of their own: silence is found out as fast as on links."""


def dial(address: str, *, watched: bool = False) -> grpc.aio.Channel:
    """Return a channel to `HOST:PORT`; connecting happens on first use.

    While a call runs on a `watched` one, a host that has fallen silent is found out in 1.4 s.
    Raises ConfigError for anything else than an address: gRPC would take `unix:7420` for a file.
    """
    target = "dns:///" + join_address(*split_address(address))
    options = dict(_OPTIONS) | (dict(_WATCHED) if watched else {})
    return grpc.aio.insecure_channel(
        target, options=(*options.items(), ("grpc.use_local_subchannel_pool", 1))
    )


def new_server() -> grpc.aio.Server:
    """Return a server without services or ports."""
    return grpc.aio.server(
        options=_SERVER_OPTIONS, maximum_concurrent_rpcs=limits.MAX_LINKS + limits.MAX_CALLS
    )

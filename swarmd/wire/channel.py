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

_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", limits.RECEIVE_MESSAGE_BYTES),
    ("grpc.max_send_message_length", limits.RECEIVE_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
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


def dial(address: str) -> grpc.aio.Channel:
    """Return a channel to `HOST:PORT`; connecting happens on first use.

    Raises ConfigError for anything else: gRPC would take `unix:7420` for a file.
    """
    target = "dns:///" + join_address(*split_address(address))
    return grpc.aio.insecure_channel(
        target, options=(*_OPTIONS, ("grpc.use_local_subchannel_pool", 1))
    )


def new_server() -> grpc.aio.Server:
    """Return a server without services or ports."""
    return grpc.aio.server(options=_SERVER_OPTIONS)

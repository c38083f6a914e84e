"""HTTP for Prometheus: `GET /metrics`, one request per connection, on an address of its own.

Runs on the event loop and never waits there: what a scraper may send, how long it may take and how
many come at a time is bounded. What the text holds is `swarmd.node.metrics`'s.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from types import TracebackType
from typing import cast

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from swarmd.core import options
from swarmd.core.config import flag_name
from swarmd.core.errors import ConfigError

log = logging.getLogger(__name__)

PATH = "/metrics"
MAX_REQUEST_BYTES = 8192
TIMEOUT_S = 5.0
"""From the first byte of a connection to the last one."""
MAX_CONNECTIONS = 32
SAME_TEXT_S = 0.5
"""Those who ask again sooner get the same text: no crowd of scrapers keeps the loop busy."""

_TEXT = "text/plain; charset=utf-8"


class MetricsDoor:
    """A context manager: listens inside, unless there is no address.

    Entering raises ConfigError when the address cannot be listened on. Until `show` is called the
    answer is 503.
    """

    def __init__(self, address: str | None, now: Callable[[], float] = time.monotonic) -> None:
        self.address = address
        """`HOST:PORT`; once listening, with the port that port 0 became."""
        self._now = now
        self._registry: CollectorRegistry | None = None
        self._text = b""
        self._made_at = float("-inf")
        self._server: asyncio.Server | None = None
        self._open: set[_Connection] = set()

    async def __aenter__(self) -> MetricsDoor:
        if self.address is not None:
            self.address = await self._listen(self.address)
            log.info("metrics at http://%s%s", self.address, PATH)
        return self

    async def _listen(self, address: str) -> str:
        host, port = options.split_address(address)
        loop = asyncio.get_running_loop()
        try:
            # One address of a name, so that port 0 is one port; IPv4 where there is the choice.
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            where = min(found, key=lambda entry: entry[0] != socket.AF_INET)[4]
            self._server = await loop.create_server(self._connection, str(where[0]), port)
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {address}: {error.strerror or error}; choose another one with "
                f"{flag_name('metrics')}"
            ) from None
        return options.join_address(host, self._server.sockets[0].getsockname()[1])

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._server is not None:
            self._server.close()
            for connection in list(self._open):
                connection.abort()
            await self._server.wait_closed()

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._open)

    def show(self, collector: Collector) -> None:
        """From now on answer with these metrics, and with what the process uses."""
        registry = CollectorRegistry()
        registry.register(collector)
        ProcessCollector(registry=registry)
        self._registry = registry

    def _connection(self) -> _Connection:
        return _Connection(self._open, self._answer)

    def _answer(self, request: str) -> bytes:
        """Return the whole response to a request's first line."""
        method, _, rest = request.partition(" ")
        target, _, version = rest.partition(" ")
        if not version.startswith("HTTP/1."):
            return response("400 Bad Request", "this is HTTP/1.1\n")
        if method not in ("GET", "HEAD"):
            return response("405 Method Not Allowed", "GET it\n", "Allow: GET, HEAD")
        answer = self._get(target.partition("?")[0])
        return answer if method == "GET" else answer[: answer.index(b"\r\n\r\n") + 4]

    def _get(self, path: str) -> bytes:
        if path != PATH:
            return response("404 Not Found", f"metrics are at {PATH}\n")
        if self._registry is None:
            return response("503 Service Unavailable", "still loading\n", "Retry-After: 5")
        if self._now() >= self._made_at + SAME_TEXT_S:
            self._text = generate_latest(self._registry)
            self._made_at = self._now()
        return response("200 OK", self._text, kind=CONTENT_TYPE_PLAIN_0_0_4)


def response(status: str, body: str | bytes, *headers: str, kind: str = _TEXT) -> bytes:
    """Return a response after which the connection ends."""
    content = body.encode() if isinstance(body, str) else body
    length = f"Content-Length: {len(content)}"
    lines = (f"HTTP/1.1 {status}", f"Content-Type: {kind}", length, "Connection: close", *headers)
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + content


class _Connection(asyncio.Protocol):
    """Takes a request up to its empty line, has it answered, and goes."""

    def __init__(self, others: set[_Connection], answer: Callable[[str], bytes]) -> None:
        self._others = others
        self._answer = answer
        self._head = bytearray()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._others.add(self)
        if len(self._others) > MAX_CONNECTIONS:
            self.abort()
        else:
            self._timer = asyncio.get_running_loop().call_later(TIMEOUT_S, self.abort)

    def data_received(self, data: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        self._head += data
        head, end, _ = self._head.partition(b"\r\n\r\n")
        if len(head) > MAX_REQUEST_BYTES:
            self._end(response("431 Request Header Fields Too Large", "too long\n"))
        elif end:
            self._end(self._answer_or_500(head.partition(b"\r\n")[0].decode("latin-1")))

    def _answer_or_500(self, request: str) -> bytes:
        try:
            return self._answer(request)
        except Exception:  # a figure that cannot be had must not end the daemon
            log.exception("metrics could not be collected")
            return response("500 Internal Server Error", "see the log of the node\n")

    def _end(self, answer: bytes) -> None:
        assert self._transport is not None
        self._transport.write(answer)
        # What a slow reader has not taken when time is up is dropped.
        self._transport.close()

    def abort(self) -> None:
        """End the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._others.discard(self)
        if self._timer is not None:
            self._timer.cancel()

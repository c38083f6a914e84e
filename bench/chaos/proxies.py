"""Proxies that spoil what passes between two nodes: one of TCP, one of gRPC messages.

They listen on loopback, and pass everything on to `target` unharmed while they are not `active`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, Protocol

import grpc

from swarmd.cli.local_swarm import free_port
from swarmd.wire.channel import dial

EVERY_BYTES = 512 << 10
"""One byte in so many is flipped. With one in 64 KiB no replay of a whole context would get through
undamaged: each damaged frame ends its link."""
QUIET_BYTES = 2048
"""A connection's beginning, which is left alone so that something is there to be broken."""
LINK = "/swarmd.v1.Peer/Link"


class Proxy(Protocol):
    """Something that stands before a node."""

    address: str
    target: str
    active: bool
    spoilt: int
    """Bytes flipped, or messages said twice."""
    passed: int
    """Bytes."""

    async def listen(self) -> None:
        """Begin to take connections at `address`."""
        ...

    async def close(self) -> None:
        """Take no more, and end those that are open."""
        ...


class Flipping:
    """Flips a bit of a byte now and then, both ways."""

    def __init__(self, address: str, seed: int) -> None:
        self.address = address
        self.target = f"127.0.0.1:{free_port()}"
        self.active = False
        self.spoilt = self.passed = 0
        self._rng = random.Random(f"{seed} {address}")
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self) -> None:
        host, _, port = self.address.rpartition(":")
        self._server = await asyncio.start_server(self._serve, host, int(port))

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            host, _, port = self.target.rpartition(":")
            there, back = await asyncio.open_connection(host, int(port))
            ways = [self._pass(reader, back), self._pass(there, writer)]
            _, rest = await asyncio.wait(
                [asyncio.create_task(way) for way in ways], return_when=asyncio.FIRST_COMPLETED
            )
            for way in rest:
                way.cancel()
            back.close()
        except OSError:
            pass
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        count = 0
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                count += len(data)
                self.passed += len(data)
                if self.active and count > QUIET_BYTES:
                    data = self._spoil(data)
                writer.write(data)
                await writer.drain()

    def _spoil(self, data: bytes) -> bytes:
        if self._rng.random() > len(data) / EVERY_BYTES:
            return data
        self.spoilt += 1
        spoilt = bytearray(data)
        spoilt[self._rng.randrange(len(data))] ^= 1 << self._rng.randrange(8)
        return bytes(spoilt)


class Duplicating(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Says every message of a link twice, but for the first one each way: that is the handshake."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.target = f"127.0.0.1:{free_port()}"
        self.active = False
        self.spoilt = self.passed = 0
        self._server: grpc.aio.Server | None = None

    async def listen(self) -> None:
        self._server = grpc.aio.server(options=[("grpc.max_receive_message_length", 8 << 20)])
        self._server.add_generic_rpc_handlers((self,))
        self._server.add_insecure_port(self.address)
        await self._server.start()

    async def close(self) -> None:
        assert self._server is not None
        await self._server.stop(0)

    def service(self, call: Any) -> Any:
        method = call.method

        async def pass_on(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            async with dial(self.target) as channel:
                there = channel.stream_stream(method)(self._copies(requests, method))
                async for reply in self._copies(there, method):
                    yield reply

        return grpc.stream_stream_rpc_method_handler(pass_on)

    async def _copies(self, messages: AsyncIterator[bytes], method: str) -> AsyncIterator[bytes]:
        first = True
        async for message in messages:
            self.passed += len(message)
            yield message
            if self.active and method == LINK and not first:
                self.spoilt += 1
                yield message
            first = False

"""A link between two machines, as a TCP proxy: every byte takes its delay and its share of a wire.

Run as a process of its own (`python -m swarmd.cli.bench.proxy`), one for all links of a swarm. On
stdin it takes one JSON object per line: `{"ports": [[listen, target], ...]}` first, on which it
answers `ready`, then `{"delay_s": ..., "bytes_per_s": ...}` whenever the links change, answered by
`set`. It ends with its stdin. What the bytes mean it does not know.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import selectors
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any, Self

from swarmd.core.errors import SwarmdError

CHUNK_BYTES = 16 << 10
"""Read at once: small, so that the wire looks like one and not like a row of lorries."""
BUFFER_BYTES = 8 << 20
"""On the way per direction, beyond which the sender waits: more than 100 ms at 500 Mbit/s."""
HOST = "127.0.0.1"


class Wire:
    """One direction of a link: a token bucket without a burst, then a constant delay."""

    def __init__(self, delay_s: float = 0.0, bytes_per_s: float | None = None) -> None:
        self.delay_s = delay_s
        self.bytes_per_s = bytes_per_s
        self._free_at = 0.0

    def arrival(self, size: int, now: float) -> float:
        """Return when `size` bytes that are sent now arrive; never before what was sent before."""
        sent = max(self._free_at, now)
        if self.bytes_per_s:
            sent += size / self.bytes_per_s
        self._free_at = sent
        return sent + self.delay_s


class Link:
    """Both directions of one port: all its connections share the wires."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.out, self.back = Wire(), Wire()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection until either side has ended it."""
        try:
            there, back = await asyncio.open_connection(HOST, self.target)
        except OSError:
            writer.transport.abort()
            return
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(carry(reader, back, self.out))
                group.create_task(carry(there, writer, self.back))
        finally:
            writer.close()
            back.close()


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, wire: Wire) -> None:
    """Move bytes one way until their end, which takes its time as well; a reset at once."""
    clock = asyncio.get_running_loop().time
    on_the_way = _Pipe()
    async with asyncio.TaskGroup() as group:
        group.create_task(_deliver(on_the_way, writer))
        try:
            while data := await reader.read(CHUNK_BYTES):
                await on_the_way.put(wire.arrival(len(data), clock()), data)
        except OSError:
            writer.transport.abort()
        await on_the_way.put(wire.arrival(0, clock()), b"")


async def _deliver(pipe: _Pipe, writer: asyncio.StreamWriter) -> None:
    clock = asyncio.get_running_loop().time
    with contextlib.suppress(OSError):
        async for due, data in pipe:
            await asyncio.sleep(due - clock())
            writer.write(data)
            await writer.drain()
    pipe.close()
    with contextlib.suppress(OSError):
        if writer.can_write_eof():
            writer.write_eof()
        await writer.drain()


class _Pipe:
    """Bytes under way, bounded by their number; ends with an empty chunk."""

    def __init__(self) -> None:
        self._chunks: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        self._bytes = 0
        self._room = asyncio.Event()
        self._room.set()
        self._closed = False

    async def put(self, due: float, data: bytes) -> None:
        await self._room.wait()
        if not self._closed:
            self._bytes += len(data)
            self._chunks.put_nowait((due, data))
            self._mark()

    def close(self) -> None:
        """Nobody takes anything out any more: what is put in is gone."""
        self._closed = True
        self._room.set()

    def _mark(self) -> None:
        if self._bytes < BUFFER_BYTES or self._closed:
            self._room.set()
        else:
            self._room.clear()

    async def __aiter__(self) -> AsyncIterator[tuple[float, bytes]]:
        while True:
            due, data = await self._chunks.get()
            if not data:
                return
            self._bytes -= len(data)
            self._mark()
            yield due, data


async def serve(lines: asyncio.StreamReader, say: Any) -> None:
    """Listen and obey until the lines end."""
    ports = json.loads(await lines.readline())["ports"]
    links = [Link(target) for _, target in ports]
    servers = [
        await asyncio.start_server(link.accept, HOST, listen)
        for link, (listen, _) in zip(links, ports, strict=True)
    ]
    say("ready")
    while line := await lines.readline():
        wanted = json.loads(line)
        for link in links:
            for wire in (link.out, link.back):
                wire.delay_s, wire.bytes_per_s = wanted["delay_s"], wanted["bytes_per_s"]
        say("set")
    for server in servers:
        server.close()


class Proxy:
    """The process, as the benchmark sees it; a context manager."""

    def __init__(self, ports: Sequence[tuple[int, int]]) -> None:
        """`ports` are pairs of where to listen and where to go on to."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "swarmd.cli.bench.proxy"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            self._tell({"ports": list(ports)}, "ready")
        except BaseException:
            self.stop()
            raise

    def set(self, *, rtt_s: float, bits_per_s: float | None) -> None:
        """From now on every link has this round trip time and, each way, this speed."""
        rate = bits_per_s / 8 if bits_per_s else None
        self._tell({"delay_s": rtt_s / 2, "bytes_per_s": rate}, "set")

    def _tell(self, line: dict[str, object], answer: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(line) + "\n")
            self._process.stdin.flush()
        if self._process.stdout.readline().strip() != answer:
            raise SwarmdError("the proxy between the nodes did not start: see above")

    def stop(self) -> None:
        """End it, with all connections."""
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


async def _main() -> None:
    lines = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(lines)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    await serve(lines, lambda word: print(word, flush=True))


if __name__ == "__main__":
    # epoll and uvloop wait for whole milliseconds, select for microseconds.
    with asyncio.Runner(
        loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())
    ) as runner:
        runner.run(_main())

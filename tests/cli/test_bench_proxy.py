"""The link between machines that are one: what arrives, in which order, and not before its time."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from swarmd.cli.bench.proxy import BUFFER_BYTES, Link, Proxy, Wire
from swarmd.cli.local_swarm import free_port

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


# -- when what arrives -----------------------------------------------------------------------------


def test_every_byte_takes_the_delay_and_its_time_on_the_wire() -> None:
    wire = Wire(delay_s=0.5, bytes_per_s=1000)
    assert wire.arrival(100, now=10.0) == pytest.approx(10.6)
    # The wire is still busy with the first; then it has been idle for long.
    assert wire.arrival(200, now=10.0) == pytest.approx(10.8)
    assert wire.arrival(100, now=20.0) == pytest.approx(20.6)


def test_no_more_than_the_speed_passes_however_it_is_cut() -> None:
    for size in (1, 7, 100):
        wire = Wire(delay_s=0.0, bytes_per_s=1000)
        last = [wire.arrival(size, now=0.0) for _ in range(700 // size)][-1]
        assert last == pytest.approx(0.7)


def test_without_a_speed_only_the_delay_counts() -> None:
    wire = Wire(delay_s=0.25)
    assert [wire.arrival(1 << 30, now=n) for n in (1.0, 1.0, 2.0)] == [1.25, 1.25, 2.25]


# -- what arrives ----------------------------------------------------------------------------------


@asynccontextmanager
async def far_end() -> AsyncIterator[tuple[int, asyncio.Queue[Streams]]]:
    """A server and the connections that reach it."""
    arrived: asyncio.Queue[Streams] = asyncio.Queue()
    server = await asyncio.start_server(lambda *pair: arrived.put_nowait(pair), "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], arrived


@asynccontextmanager
async def through(link: Link) -> AsyncIterator[Streams]:
    server = await asyncio.start_server(link.accept, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        yield reader, writer
        writer.close()


async def test_bytes_and_ends_arrive_both_ways_in_their_order() -> None:
    there, back = os.urandom(300_000), os.urandom(200_000)
    async with far_end() as (port, arrived):
        link = Link(port)
        link.out.delay_s = link.back.delay_s = 0.001
        link.out.bytes_per_s = link.back.bytes_per_s = 50e6
        async with asyncio.timeout(60), through(link) as (reader, writer):
            writer.write(there)
            writer.write_eof()
            far_reader, far_writer = await arrived.get()
            # The near side has said its last; the far one still answers.
            assert await far_reader.read() == there
            far_writer.write(back)
            far_writer.close()
            assert await reader.read() == back


async def test_each_way_takes_its_delay() -> None:
    clock = asyncio.get_running_loop().time
    async with far_end() as (port, arrived):
        link = Link(port)
        link.out.delay_s, link.back.delay_s = 0.08, 0.04
        async with asyncio.timeout(60), through(link) as (reader, writer):
            sent = clock()
            writer.write(b"x")
            far_reader, far_writer = await arrived.get()
            await far_reader.readexactly(1)
            answered = clock()
            far_writer.write(b"y")
            await reader.readexactly(1)
            # It may be late, as anything may on a busy machine, and never early.
            assert answered - sent >= 0.08
            assert clock() - answered >= 0.04
            far_writer.close()


async def test_a_full_link_makes_the_sender_wait_and_loses_nothing() -> None:
    size = 3 * BUFFER_BYTES
    async with far_end() as (port, arrived):
        link = Link(port)
        link.out.delay_s = 0.2
        async with asyncio.timeout(120), through(link) as (_, writer):
            writer.write(bytes(size))
            writer.write_eof()
            far_reader, far_writer = await arrived.get()
            assert len(await far_reader.read()) == size
            far_writer.close()


async def hung_up(reader: asyncio.StreamReader) -> None:
    """Wait for the end of the connection, in either way that there is."""
    with suppress(ConnectionResetError):
        assert await reader.read() == b""


async def test_nobody_behind_the_link_looks_like_nobody() -> None:
    async with asyncio.timeout(60), through(Link(free_port())) as (reader, _):
        await hung_up(reader)


async def test_a_broken_far_end_breaks_the_near_one() -> None:
    async with far_end() as (port, arrived), through(Link(port)) as (reader, writer):
        async with asyncio.timeout(60):
            writer.write(b"x")
            _, far_writer = await arrived.get()
            far_writer.transport.abort()
            await hung_up(reader)


async def test_the_process_carries_several_ports_and_takes_new_delays() -> None:
    ports = [free_port(), free_port()]
    async with far_end() as (first, at_first), far_end() as (second, at_second):
        with await asyncio.to_thread(Proxy, [(ports[0], first), (ports[1], second)]) as proxy:
            proxy.set(rtt_s=0.1, bits_per_s=8e6)
            async with asyncio.timeout(60):
                for port, arrived in zip(ports, (at_first, at_second), strict=True):
                    began = asyncio.get_running_loop().time()
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.write(bytes(50_000))
                    reader, far_writer = await arrived.get()
                    assert await reader.readexactly(50_000) == bytes(50_000)
                    # Half of the round trip, and 50 kB at 1 MB/s.
                    assert asyncio.get_running_loop().time() - began >= 0.05 + 0.05
                    writer.close()
                    far_writer.close()

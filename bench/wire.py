"""Microseconds that a decode step costs on the wire: encode, decode, and there and back on a link.

Both ends of the link live on one event loop, so a round trip is the loop time of four passes: two
sends and two receives. The bare gRPC stream beside it says how much of that is gRPC's own.

    python bench/wire.py [--loop uvloop|asyncio] [--record]
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import platform
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

import grpc
import uvloop

from swarmd.core.errors import PeerUnreachable
from swarmd.core.frames import DType, Payload, SessionFrame, Step
from swarmd.v1 import peer_pb2_grpc
from swarmd.wire import encoding, frames, sealed
from swarmd.wire.channel import dial, new_server
from swarmd.wire.links import Links, RttSample
from swarmd.wire.sealed import add_peer_service, call_link

RESULTS = Path(__file__).parent / "results" / "wire.json"
SIZES = (4 << 10, 32 << 10)
A, B = "a" * 40, "b" * 40


def step_of(nbytes: int, session: int = 0) -> Step:
    """One decoded position of a model whose hidden state has `nbytes` bytes in bfloat16."""
    hidden = Payload(DType.BFLOAT16, (1, nbytes // 2), os.urandom(nbytes))
    return Step(session.to_bytes(16, "big"), 1, 0, 1000, (1,), hidden=hidden, wants=(1000,))


def microseconds(work: Callable[[], object], times: int = 200, runs: int = 50) -> float:
    """Mean time of a call in the best run: what other processes take away is not the code's."""
    means = []
    for _ in range(runs):
        start = time.perf_counter()
        for _ in range(times):
            work()
        means.append((time.perf_counter() - start) / times * 1e6)
    return min(means)


def codec(nbytes: int) -> dict[str, float]:
    step = step_of(nbytes)
    raw = sealed.seal(encoding.encode_steps([step]))
    return {
        "encode": microseconds(lambda: sealed.seal(encoding.encode_steps([step]))),
        "decode": microseconds(lambda: frames.decode(sealed.unseal(raw))),
    }


class Server(peer_pb2_grpc.PeerServicer):
    """Serves links if it is given some, else returns every frame unread."""

    def __init__(self, links: Links | None = None) -> None:
        self._links = links

    async def Link(self, request_iterator: object, context: Any) -> None:
        if self._links is not None:
            await self._links.accept(context)
            return
        while (frame := await context.read()) is not grpc.aio.EOF:
            await context.write(frame)

    async def start(self) -> tuple[grpc.aio.Server, str]:
        server = new_server()
        add_peer_service(self, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, f"127.0.0.1:{port}"


class End:
    """A handler that returns what it gets, or wakes whoever waits for it."""

    def __init__(self) -> None:
        self.links: Links | None = None
        self.arrived: asyncio.Future[Sequence[SessionFrame]] | None = None

    def on_frames(self, peer_id: str, batch: Sequence[SessionFrame]) -> None:
        if self.arrived is not None:
            self.arrived.set_result(batch)
        elif self.links is not None:
            self.links.send(peer_id, batch)

    takes_links = True

    def on_peer_up(self, peer_id: str) -> None:
        pass

    def on_peer_lost(self, peer_id: str, reason: str) -> None:
        if self.arrived is not None and not self.arrived.done():
            self.arrived.set_exception(PeerUnreachable(reason))

    def on_rtt(self, peer_id: str, sample: RttSample) -> None:
        pass

    def coordinate(self) -> tuple[float, ...]:
        return ()


def spawn(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    return asyncio.get_running_loop().create_task(work)


async def timed(bounce: Callable[[], Awaitable[object]], times: int = 100) -> float:
    """Mean microseconds of a round trip in the best of 40 runs."""
    means = []
    for _ in range(40):
        start = time.perf_counter()
        for _ in range(times):
            await bounce()
        means.append((time.perf_counter() - start) / times * 1e6)
    return min(means)


async def bare_stream(nbytes: int) -> float:
    server, address = await Server().start()
    frame = encoding.encode_steps([step_of(nbytes)])
    async with dial(address) as channel:
        call = call_link(channel)

        async def bounce() -> None:
            await call.write(frame)
            await call.read()

        result = await timed(bounce)
        call.cancel()
    await server.stop(0)
    return result


async def link(nbytes: int, sessions: int) -> float:
    here, there = End(), End()
    there.links = Links(B, "", there, lambda peer: None, spawn)
    server, address = await Server(there.links).start()
    links = Links(A, "", here, lambda peer: address, spawn)
    steps = [step_of(nbytes, n) for n in range(sessions)]

    async def bounce() -> None:
        here.arrived = asyncio.get_running_loop().create_future()
        links.send(B, steps)
        if len(await here.arrived) != sessions:
            raise SystemExit("the steps of one microbatch came apart")

    result = await timed(bounce)
    await links.close()
    await there.links.close()
    await server.stop(0)
    return result


async def measure() -> dict[str, float]:
    found: dict[str, float] = {}
    for nbytes in SIZES:
        name = f"{nbytes >> 10}KiB"
        found |= {f"{name} {what}": value for what, value in codec(nbytes).items()}
        found[f"{name} grpc round trip"] = await bare_stream(nbytes)
        found[f"{name} link round trip"] = await link(nbytes, sessions=1)
        found[f"{name} link round trip, 8 sessions"] = await link(nbytes, sessions=8)
    return {name: round(value, 1) for name, value in found.items()}


def record(entry: dict[str, Any]) -> None:
    """Append to the results, one line per entry."""
    entries = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    lines = ",\n".join(json.dumps(e) for e in [*entries, entry])
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(f"[\n{lines}\n]\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loop", choices=["uvloop", "asyncio"], default="uvloop")
    parser.add_argument("--record", action="store_true", help=f"append to {RESULTS.name}")
    given = parser.parse_args()
    load = os.getloadavg()[0]
    factory = uvloop.new_event_loop if given.loop == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        found = runner.run(measure())
    for name, value in found.items():
        print(f"{name:36} {value:8.1f} us")
    if given.record:
        record(
            {
                "date": datetime.date.today().isoformat(),
                "machine": f"{os.cpu_count()} cores, {platform.machine()}",
                "load_before": round(load, 1),
                "python": platform.python_version(),
                "grpcio": grpc.__version__,
                "loop": given.loop,
                "microseconds": found,
            }
        )


if __name__ == "__main__":
    main()

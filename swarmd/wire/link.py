"""One link: the handshake, a reader, a writer and a heartbeat over one stream of frames.

Which peer to dial, and what happens when a link is lost, is `swarmd.wire.links`'s business.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from swarmd.core.errors import PeerError, PeerUnreachable, ProtocolError
from swarmd.core.frames import SessionFrame
from swarmd.v1 import peer_pb2 as pb
from swarmd.wire import frames, limits
from swarmd.wire.assembler import Assembler
from swarmd.wire.outbound import Outbound
from swarmd.wire.stream import FrameStream


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """Times in seconds."""

    heartbeat: float = 0.5
    """How often a heartbeat is sent."""
    timeout: float = 1.5
    """Silence after which the peer is taken for lost."""
    handshake: float = 5.0
    """How long dialling and the first frames may take."""


@dataclass(frozen=True, slots=True)
class RttSample:
    """One measured round trip, with the coordinate that the peer gave at the time."""

    seconds: float
    coordinate: tuple[float, ...]


class Link:
    """A live stream to one peer. `run` ends, by raising PeerError, when the link is over."""

    def __init__(
        self,
        stream: FrameStream,
        peer_id: str,
        settings: LinkSettings,
        on_frames: Callable[[str, Sequence[SessionFrame]], None],
        on_rtt: Callable[[str, RttSample], None],
        coordinate: Callable[[], tuple[float, ...]],
    ) -> None:
        self.peer_id = peer_id
        self.outbound = Outbound()
        self._stream = stream
        self._settings = settings
        self._on_frames = on_frames
        self._on_rtt = on_rtt
        self._coordinate = coordinate
        self._assembler = Assembler()
        self._wake = asyncio.Event()
        self._heard_at = time.monotonic()
        self._echo: tuple[int, float] = (0, 0.0)
        self._heartbeat_due = False
        self._aborted = ""

    def send(self, batch: Sequence[SessionFrame]) -> None:
        """Queue frames; they leave in order per session. Raises QueueFull."""
        for frame in batch:
            self.outbound.put(frame)
        self._wake.set()

    def abort(self, reason: str) -> None:
        """End the link as if the peer had been lost."""
        self._aborted = reason
        self._wake.set()

    async def run(self) -> None:
        """Carry frames until the link breaks, the peer falls silent or breaks a rule."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read())
                tasks.create_task(self._write())
                tasks.create_task(self._beat())
        except* PeerError as errors:
            raise errors.exceptions[0] from None
        finally:
            self._stream.close()

    async def _read(self) -> None:
        while True:
            message = await self._stream.read()
            self._heard_at = time.monotonic()
            kind = message.WhichOneof("body")
            if kind == "heartbeat":
                self._take_heartbeat(message.heartbeat)
                continue
            if kind == "fragment":
                whole = self._assembler.add(message.fragment)
                if whole is None:
                    continue
                message = whole
            self._on_frames(self.peer_id, frames.decode(message))

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._aborted:
                raise PeerUnreachable(self._aborted)
            while self._heartbeat_due or self.outbound:
                if self._heartbeat_due:
                    self._heartbeat_due = False
                    await self._stream.write(self._heartbeat())
                message = self.outbound.next_message()
                if message is not None:
                    await self._stream.write(message)

    async def _beat(self) -> None:
        while True:
            self._heartbeat_due = True
            self._wake.set()
            before = time.monotonic()
            await asyncio.sleep(self._settings.heartbeat)
            now = time.monotonic()
            # Time in which this process itself did not run is no silence of the peer's.
            self._heard_at += max(0.0, now - before - 2 * self._settings.heartbeat)
            silent = now - self._heard_at
            if silent > self._settings.timeout:
                raise PeerUnreachable(f"peer {self.peer_id[:8]} was silent for {silent:.1f} s")

    def _heartbeat(self) -> pb.Frame:
        echo_us, heard = self._echo
        age = int((time.monotonic() - heard) * 1e6) if echo_us else 0
        return pb.Frame(
            heartbeat=pb.Heartbeat(
                sent_us=time.monotonic_ns() // 1000,
                echo_us=echo_us,
                echo_age_us=min(age, (1 << 32) - 1),
                coordinate=self._coordinate(),
            )
        )

    def _take_heartbeat(self, beat: pb.Heartbeat) -> None:
        self._echo = (beat.sent_us, time.monotonic())
        if not beat.echo_us:
            return
        rtt_us = time.monotonic_ns() // 1000 - beat.echo_us - beat.echo_age_us
        if 0 <= rtt_us < 60_000_000 and len(beat.coordinate) <= 8:
            self._on_rtt(self.peer_id, RttSample(rtt_us / 1e6, tuple(beat.coordinate)))


async def greet(stream: FrameStream, own_id: str, own_address: str) -> str:
    """Exchange `Hello`s and return the other side's peer id. Raises PeerError."""
    hello = pb.Hello(protocol=limits.PROTOCOL, peer_id=own_id, address=own_address)
    await stream.write(pb.Frame(hello=hello))
    first = await stream.read()
    if first.WhichOneof("body") != "hello":
        raise ProtocolError("the first frame on a link must be a hello")
    if first.hello.protocol != limits.PROTOCOL:
        raise ProtocolError(
            f"the peer speaks link protocol {first.hello.protocol}, this node {limits.PROTOCOL}"
        )
    return frames.peer_id(first.hello.peer_id)

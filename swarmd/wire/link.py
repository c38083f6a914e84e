"""One link: the handshake, a reader, a writer and a heartbeat over one stream of frames.

Which peer to dial, and what happens when a link is lost, is `swarmd.wire.links`'s business.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn, Protocol

from swarmd.core.errors import ConfigError, PeerUnreachable, ProtocolError, SwarmdError
from swarmd.core.frames import SessionFrame
from swarmd.v1 import peer_pb2 as pb
from swarmd.wire import frames, limits
from swarmd.wire.alarm import Alarm
from swarmd.wire.assembler import Assembler
from swarmd.wire.assembly_memory import AssemblyMemory
from swarmd.wire.encoding import encode
from swarmd.wire.outbound import Outbound
from swarmd.wire.pulse import Pulse
from swarmd.wire.stream import FrameStream

_MAX_COORDINATE = 8


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """Times in seconds. Raises ConfigError when no heartbeat fits into the timeout."""

    heartbeat: float = 0.5
    """How often something is sent at least: a heartbeat where nothing else was."""
    timeout: float = 1.5
    """Silence after which the peer is taken for lost: more than the heartbeat of any peer."""
    handshake: float = 5.0
    """How long dialling and the first frames may take, and the end of a link."""

    def __post_init__(self) -> None:
        if not 0 < self.heartbeat < self.timeout:
            raise ConfigError(
                f"a link timeout of {self.timeout:g} s must exceed the heartbeat of "
                f"{self.heartbeat:g} s"
            )


@dataclass(frozen=True, slots=True)
class RttSample:
    """One measured round trip, with the coordinate that the peer gave at the time."""

    seconds: float
    coordinate: tuple[float, ...]


class LinkEvents(Protocol):
    """Who gets what a link brings."""

    def on_frames(self, peer_id: str, batch: Sequence[SessionFrame]) -> None:
        """Frames from a peer, in order per session."""
        ...

    def on_rtt(self, peer_id: str, sample: RttSample) -> None:
        """A round trip was measured."""
        ...

    def coordinate(self) -> tuple[float, ...]:
        """This node's own network coordinate."""
        ...


class Link:
    """A live stream to one peer. `run` ends, by raising, when the link is over."""

    def __init__(
        self,
        stream: FrameStream,
        peer_id: str,
        settings: LinkSettings,
        events: LinkEvents,
        outbound: Outbound | None = None,
        memory: AssemblyMemory | None = None,
    ) -> None:
        """`outbound` may hold what has been waiting for this link; `memory` is that of all."""
        self.peer_id = peer_id
        self.outbound = outbound if outbound is not None else Outbound()
        self._stream = stream
        self._settings = settings
        self._events = events
        self._assembler = Assembler(memory=memory, on_evicted=self._end_with)
        self._ready: SessionFrame | None = None
        """What is written next, as nothing waits in line before it."""
        self._idle: asyncio.Future[None] | None = None
        """Of the writer, while it waits for something to do."""
        self._heard_at = time.monotonic()
        self._pulse = Pulse(settings.heartbeat, self._heard_at)
        self._alarm = Alarm()
        """Wakes the heartbeat: not while frames that are sent stand for it."""
        self._echo: tuple[int, float] = (0, 0.0)
        self._heartbeat_due = False
        self._finishing = False
        self._abort_error: SwarmdError | None = None
        self._aborted = asyncio.Event()

    def send(self, batch: Sequence[SessionFrame]) -> None:
        """Queue frames; they leave in order per session. Raises as `Outbound.put_all` does."""
        try:
            if self._ready is None and self.outbound.lets_pass(batch):
                self._ready = batch[0]
            else:
                self.outbound.put_all(batch)
        finally:
            self._wake()

    def finish(self) -> None:
        """Send what waits, then end the link."""
        self._finishing = True
        self._wake()

    def abort(self, reason: str) -> None:
        """End the link as if the peer had been lost."""
        self._end_with(PeerUnreachable(reason))

    def _end_with(self, error: SwarmdError) -> None:
        self._abort_error = error
        self._aborted.set()

    async def run(self) -> NoReturn:
        """Carry frames until the link breaks, the peer falls silent or breaks a rule.

        Raises PeerError, or QueueFull when there is no memory for what the peer sends; anything
        else is what `events` or this code itself raised.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read())
                tasks.create_task(self._write())
                tasks.create_task(self._beat())
                # Apart from the writer, which a peer that reads nothing holds up.
                tasks.create_task(self._watch_abort())
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            self._assembler.clear()
            self._stream.close()
        raise PeerUnreachable("the link ended")

    async def _read(self) -> NoReturn:
        while True:
            message = await self._stream.read()
            self._heard_at = time.monotonic()
            kind = message.WhichOneof("body")
            if kind == "heartbeat":
                self._take_heartbeat(message.heartbeat)
                continue
            if kind == "goodbye":
                self.finish()
                continue
            if kind == "fragment":
                whole = self._assembler.add(message.fragment)
                if whole is None:
                    continue
                message, kind = whole, None
            self._events.on_frames(self.peer_id, frames.decode(message, kind))

    def _wake(self) -> None:
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    async def _write(self) -> NoReturn:
        loop, half = asyncio.get_running_loop(), self._settings.heartbeat / 2
        while True:
            if self._heartbeat_due:
                self._heartbeat_due = False
                await self._stream.write(self._heartbeat())
            message, ready, self._ready = None, self._ready, None
            if ready is not None:
                message = encode(ready)
            elif self.outbound.pending_bytes:
                message = self.outbound.next_message()
            if message is not None:
                await self._stream.write(message)
                self._pulse.wrote(now := time.monotonic())
                if self._alarm.at < now + half:  # or it need not be put off yet
                    self._alarm.put_off(self._look_at, half)
            elif not self._heartbeat_due and self._finishing:
                await self._stream.finish()
                await asyncio.sleep(self._settings.handshake)
                raise PeerUnreachable("the peer did not end the link in time")
            elif not self._heartbeat_due:
                self._idle = loop.create_future()
                await self._idle

    async def _watch_abort(self) -> NoReturn:
        await self._aborted.wait()
        assert self._abort_error is not None
        raise self._abort_error

    async def _beat(self) -> NoReturn:
        while True:
            now = time.monotonic()
            if self._pulse.take(now):
                self._heartbeat_due = True
                self._wake()
            await self._alarm.sleep_until(max(now, self._look_at))
            # Time in which this process itself did not run is no silence of the peer's.
            self._heard_at += max(0.0, time.monotonic() - self._alarm.at)
            silent = time.monotonic() - self._heard_at
            if silent > self._settings.timeout - 1e-3:
                raise PeerUnreachable(f"peer {self.peer_id[:8]} was silent for {silent:.1f} s")

    @property
    def _look_at(self) -> float:
        """When a heartbeat is owed, or the peer has been silent for too long."""
        return min(self._pulse.due_at, self._heard_at + self._settings.timeout)

    def _heartbeat(self) -> pb.Frame:
        echo_us, heard = self._echo
        age = int((time.monotonic() - heard) * 1e6) if echo_us else 0
        return pb.Frame(
            heartbeat=pb.Heartbeat(
                sent_us=time.monotonic_ns() // 1000,
                echo_us=echo_us,
                echo_age_us=min(age, (1 << 32) - 1),
                coordinate=self._events.coordinate(),
            )
        )

    def _take_heartbeat(self, beat: pb.Heartbeat) -> None:
        self._echo = (beat.sent_us, time.monotonic())
        if len(beat.coordinate) > _MAX_COORDINATE or not all(map(math.isfinite, beat.coordinate)):
            raise ProtocolError(f"a coordinate is at most {_MAX_COORDINATE} finite numbers")
        if not beat.echo_us:
            return
        self._pulse.spares = True
        rtt = (time.monotonic_ns() // 1000 - beat.echo_us - beat.echo_age_us) / 1e6
        # What took longer than any silence may last was no way to the peer and back: this process
        # stood still while the echo lay unread, and would believe itself far from everybody.
        if 0 <= rtt < self._settings.timeout:
            self._events.on_rtt(self.peer_id, RttSample(rtt, tuple(beat.coordinate)))


async def greet_as_dialler(
    stream: FrameStream, own_id: str, own_address: str, expected: str
) -> None:
    """Make sure that `expected` answers, then say who is calling. Raises PeerError.

    The dialled side speaks first, so that nobody takes the link for open who will not have it.
    """
    found = await _read_hello(stream)
    if found != expected:
        raise PeerUnreachable(f"that is peer {found[:8]} now, not {expected[:8]}")
    await stream.write(_hello(own_id, own_address))


async def greet_as_dialled(stream: FrameStream, own_id: str, own_address: str) -> str:
    """Say who answers, and return the caller's peer id. Raises PeerError."""
    await stream.write(_hello(own_id, own_address))
    found = await _read_hello(stream)
    if found == own_id:
        raise ProtocolError("that is this node's own peer id")
    return found


def _hello(own_id: str, own_address: str) -> pb.Frame:
    hello = pb.Hello(protocol=limits.PROTOCOL, peer_id=own_id, address=own_address)
    return pb.Frame(hello=hello)


async def _read_hello(stream: FrameStream) -> str:
    first = await stream.read()
    if first.WhichOneof("body") != "hello":
        raise ProtocolError("the first frame on a link must be a hello")
    if first.hello.protocol != limits.PROTOCOL:
        raise ProtocolError(
            f"the peer speaks link protocol {first.hello.protocol}, this node {limits.PROTOCOL}"
        )
    return frames.peer_id(first.hello.peer_id)

"""The channels of one client: which node is dialled, whether it answered in time, who is let go.

What is said over a channel is `swarmd.client.generation`'s and `async_client`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc

from swarmd.client.resume import ResumePolicy
from swarmd.core.errors import PeerUnreachable, UsageError
from swarmd.v1.inference_pb2_grpc import InferenceStub
from swarmd.wire.channel import dial

_State = grpc.ChannelConnectivity
_DEAD = (_State.TRANSIENT_FAILURE, _State.SHUTDOWN)

MAX_IDLE = 32
"""Channels that are kept while nobody needs them."""
MAX_FAILED = 256
"""Addresses of nodes that did not answer when last dialled."""


@dataclass(slots=True, eq=False)
class _Line:
    """One channel, and how many dials and calls need it."""

    channel: grpc.aio.Channel
    stub: InferenceStub
    users: int = 0

    def release(self, _: object = None) -> None:
        self.users -= 1


class Nodes:
    """Open channels by address; bound to the event loop in which they are first used."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}
        """The one used last at the end."""
        self._replaced: list[_Line] = []
        """They do not connect any more; calls may still run on them, as to a node that leaves."""
        self._failed: dict[str, None] = {}
        self._closing = asyncio.Event()

    @property
    def closed(self) -> bool:
        return self._closing.is_set()

    def order(self, addresses: Sequence[str]) -> list[str]:
        """Return the addresses, those that failed when last dialled at the end."""
        return sorted(addresses, key=lambda address: address in self._failed)

    async def call(
        self, address: str, timeout_s: float, begin: Callable[[InferenceStub], Any]
    ) -> Any:
        """Return the call that `begin` makes, on a channel that is connected.

        Raises PeerUnreachable when the node does not answer the dial within `timeout_s`.
        """
        self._refuse_if_closed()
        self._remember_failure(address)
        line = self._line(address)
        line.users += 1
        try:
            await self._close_idle()
            async with asyncio.timeout(timeout_s):
                await _connected(line.channel, address)
            self._failed.pop(address, None)
            call = begin(line.stub)
            line.users += 1
            call.add_done_callback(line.release)
        except TimeoutError:
            raise PeerUnreachable(f"{address} did not answer within {timeout_s:.3g} s") from None
        except grpc.aio.UsageError:  # closed by somebody else meanwhile
            self._refuse_if_closed()
            raise PeerUnreachable(f"the connection to {address} was closed") from None
        except PeerUnreachable:
            self._refuse_if_closed()
            raise
        finally:
            line.release()
        return call

    @contextmanager
    def closing_typed(self) -> Iterator[None]:
        """Raise UsageError where grpc says "cancelled" of a call that ended with this client."""
        try:
            yield
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self.closed and not (task and task.cancelling()):
                raise UsageError("the client was closed while a call ran") from None
            raise

    async def pause(self, seconds: float) -> None:
        """Wait; raises UsageError as soon as this client is closed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()
        self._refuse_if_closed()

    async def close(self) -> None:
        """Close every channel; calls that still run on them are cancelled."""
        self._closing.set()
        lines = [*self._lines.values(), *self._replaced]
        self._lines.clear()
        self._replaced.clear()
        for line in lines:
            await line.channel.close()

    def _line(self, address: str) -> _Line:
        """A line that may be dialled at once: one that has failed would wait before it dials."""
        line = self._lines.pop(address, None)
        if line is not None and line.channel.get_state() in _DEAD:
            self._replaced.append(line)
            line = None
        if line is None:
            channel = dial(address, watched=True)
            line = _Line(channel, InferenceStub(channel))
        self._lines[address] = line
        return line

    async def _close_idle(self) -> None:
        """Of the lines that nobody needs close the replaced ones, and the least lately used."""
        idle = [address for address, line in self._lines.items() if not line.users]
        over = [self._lines.pop(address) for address in idle[:-MAX_IDLE]]
        over += [line for line in self._replaced if not line.users]
        self._replaced = [line for line in self._replaced if line.users]
        for line in over:
            await line.channel.close()

    def _remember_failure(self, address: str) -> None:
        """It counts as failed until it has answered."""
        self._failed.pop(address, None)
        self._failed[address] = None
        if len(self._failed) > MAX_FAILED:
            del self._failed[next(iter(self._failed))]

    def _refuse_if_closed(self) -> None:
        if self.closed:
            raise UsageError("this client is closed; make a new one")


async def _connected(channel: grpc.aio.Channel, address: str) -> None:
    state = channel.get_state(try_to_connect=True)
    while state is not _State.READY:
        if state in _DEAD:
            raise PeerUnreachable(f"nobody answers at {address}: is `swarmd serve` running there?")
        await channel.wait_for_state_change(state)
        state = channel.get_state(try_to_connect=True)


@dataclass(slots=True)
class Reach:
    """Where the generations of one client may begin and go on."""

    nodes: Nodes
    given: tuple[str, ...]
    policy: ResumePolicy
    connect_timeout_s: float
    known: tuple[str, ...] = ()
    """Addresses of serving nodes, from the last status."""

"""The channels of one client: which node is dialled, and whether it answered in time.

What is said over a channel is `swarmd.client.generation`'s and `async_client`'s.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc

from swarmd.client.resume import ResumePolicy
from swarmd.core.errors import PeerUnreachable, UsageError
from swarmd.v1.inference_pb2_grpc import InferenceStub
from swarmd.wire.channel import dial

_State = grpc.ChannelConnectivity
_DEAD = (_State.TRANSIENT_FAILURE, _State.SHUTDOWN)


class Nodes:
    """Open channels by address; bound to the event loop in which they are first used."""

    def __init__(self) -> None:
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._failed: set[str] = set()
        self.closed = False

    def order(self, addresses: Sequence[str]) -> list[str]:
        """Return the addresses, those that failed when last dialled at the end."""
        return sorted(addresses, key=lambda address: address in self._failed)

    async def stub(self, address: str, timeout_s: float) -> InferenceStub:
        """Return a stub on a connected channel.

        Raises PeerUnreachable when the node does not answer the dial within `timeout_s`.
        """
        self._failed.add(address)
        channel = await self._fresh(address)
        try:
            await asyncio.wait_for(_connected(channel, address), timeout_s)
        except TimeoutError:
            raise PeerUnreachable(f"{address} did not answer within {timeout_s:.3g} s") from None
        except grpc.aio.UsageError:  # closed by somebody else meanwhile
            self._refuse_if_closed()
            raise PeerUnreachable(f"the connection to {address} was closed") from None
        self._failed.discard(address)
        return InferenceStub(channel)

    async def close(self) -> None:
        """Close every channel; calls that still run on them are cancelled."""
        self.closed = True
        while self._channels:
            _, channel = self._channels.popitem()
            await channel.close()

    async def _fresh(self, address: str) -> grpc.aio.Channel:
        """A channel that may be dialled at once: one that has failed would wait before it dials."""
        self._refuse_if_closed()
        old = self._channels.get(address)
        if old is not None and old.get_state() not in _DEAD:
            return old
        channel = self._channels[address] = dial(address, watched=True)
        if old is not None:
            await old.close()
        return channel

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

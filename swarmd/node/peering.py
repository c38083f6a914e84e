"""The door for other nodes: the `Peer` service of one node, and asking others through theirs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import grpc

from swarmd import __version__
from swarmd.core.clock import Clock
from swarmd.core.errors import PeerUnreachable, ProtocolError
from swarmd.v1 import peer_pb2 as pb
from swarmd.v1 import peer_pb2_grpc
from swarmd.wire.channel import dial
from swarmd.wire.links import Links

INTRODUCE_TIMEOUT_S = 5.0
MAX_ADDRESSES = 64
MAX_ADDRESS_CHARS = 512

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class PeerService(peer_pb2_grpc.PeerServicer):
    """Serves other nodes."""

    def __init__(
        self,
        peer_id: str,
        links: Links,
        directory_addresses: Callable[[], Sequence[str]],
        peer_addresses: Callable[[], Sequence[str]],
        announced_since: Callable[[], float],
        clock: Clock,
    ) -> None:
        """`announced_since` says from when on announcements of this node are this process's."""
        self._peer_id = peer_id
        self._links = links
        self._directory_addresses = directory_addresses
        self._peer_addresses = peer_addresses
        self._announced_since = announced_since
        self._clock = clock

    async def Link(self, request_iterator: Any, context: Context) -> None:
        """Carry a link that another node has opened."""
        await self._links.accept(context)

    async def Introduce(self, request: pb.IntroduceRequest, context: Context) -> pb.IntroduceReply:
        """Tell a newcomer where the directory is, and who else is here."""
        return self.introduction()

    def introduction(self) -> pb.IntroduceReply:
        """Return what a newcomer is told."""
        return pb.IntroduceReply(
            peer_id=self._peer_id,
            version=__version__,
            directory_addresses=self._directory_addresses()[:MAX_ADDRESSES],
            peer_addresses=self._peer_addresses()[:MAX_ADDRESSES],
            wall_time_s=self._clock.wall(),
            announced_since_s=self._announced_since(),
        )


async def introduce(address: str, own_id: str) -> pb.IntroduceReply:
    """Ask the node at `HOST:PORT` for its directory. Raises PeerUnreachable or ProtocolError."""
    request = pb.IntroduceRequest(peer_id=own_id, version=__version__)
    async with dial(address) as channel:
        try:
            reply: pb.IntroduceReply = await peer_pb2_grpc.PeerStub(channel).Introduce(
                request, timeout=INTRODUCE_TIMEOUT_S
            )
        except grpc.RpcError as error:
            details = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error)
            raise PeerUnreachable(f"no swarmd node answers at {address}: {details}") from error
    lists = (reply.directory_addresses, reply.peer_addresses)
    if any(len(one) > MAX_ADDRESSES or any(map(_too_long, one)) for one in lists):
        raise ProtocolError(f"the node at {address} sent more addresses than a node may")
    return reply


def _too_long(address: str) -> bool:
    return len(address) > MAX_ADDRESS_CHARS

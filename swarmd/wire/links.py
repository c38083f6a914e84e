"""All links of one node: dialled when first needed, accepted when dialled, missed when lost.

A peer is dialled by its id, at the address that this node's own view has for it. What the frames
mean is the handler's business.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

import grpc

from swarmd.core.errors import PeerError, PeerUnreachable, QueueFull
from swarmd.core.frames import SessionFrame
from swarmd.v1 import peer_pb2_grpc
from swarmd.wire.channel import dial
from swarmd.wire.link import Link, LinkSettings, RttSample, greet
from swarmd.wire.stream import AcceptedStream, DialledStream, FrameStream

log = logging.getLogger(__name__)

MAX_LINKS = 1024
MAX_WAITING_FRAMES = 4096


class LinkHandler(Protocol):
    """Who gets what the links bring. Called on the event loop; must not block."""

    def on_frames(self, peer_id: str, batch: Sequence[SessionFrame]) -> None:
        """Frames from a peer, in order per session."""
        ...

    def on_peer_lost(self, peer_id: str, reason: str) -> None:
        """The link to a peer broke, or it could not be dialled: frames may be lost."""
        ...

    def on_rtt(self, peer_id: str, sample: RttSample) -> None:
        """A round trip was measured."""
        ...

    def coordinate(self) -> tuple[float, ...]:
        """This node's own network coordinate."""
        ...


class Links:
    """The links of one node.

    `resolve` gives the address of a peer id in the node's view, or None. `spawn` starts a task that
    the daemon owns.
    """

    def __init__(
        self,
        own_id: str,
        own_address: str,
        handler: LinkHandler,
        resolve: Callable[[str], str | None],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        settings: LinkSettings | None = None,
    ) -> None:
        self.own_id = own_id
        self._address = own_address
        self._handler = handler
        self._resolve = resolve
        self._spawn = spawn
        self._settings = settings or LinkSettings()
        self._live: dict[str, list[Link]] = {}
        self._waiting: dict[str, deque[SessionFrame]] = {}

    def send(self, peer_id: str, batch: Sequence[SessionFrame]) -> None:
        """Send frames to a peer, dialling it if need be; to this node itself without the wire.

        Never blocks. What cannot be sent ends in `on_peer_lost`.
        """
        if peer_id == self.own_id:
            asyncio.get_running_loop().call_soon(self._handler.on_frames, peer_id, batch)
            return
        live = self._live.get(peer_id)
        try:
            if live:
                live[0].send(batch)
            else:
                self._send_later(peer_id, batch)
        except QueueFull as error:
            log.warning("peer takes too little peer=%s error=%s", peer_id, error)
            for link in live or ():
                link.abort(str(error))

    def connected(self) -> list[str]:
        """Return the ids of the peers with a live link."""
        return [peer for peer, links in self._live.items() if links]

    def _send_later(self, peer_id: str, batch: Sequence[SessionFrame]) -> None:
        waiting = self._waiting.get(peer_id)
        if waiting is None:
            waiting = self._waiting[peer_id] = deque()
            self._spawn(self._dial(peer_id))
        if len(waiting) + len(batch) > MAX_WAITING_FRAMES:
            raise QueueFull(f"{len(waiting)} frames wait for the link to be opened")
        waiting.extend(batch)

    async def _dial(self, peer_id: str) -> None:
        try:
            address = self._resolve(peer_id)
            if address is None:
                raise PeerUnreachable(f"peer {peer_id[:8]} is not in this node's view")
            async with dial(address) as channel:
                call = peer_pb2_grpc.PeerStub(channel).Link()
                stream = DialledStream(channel, call)
                async with asyncio.timeout(self._settings.handshake):
                    found = await greet(stream, self.own_id, self._address)
                if found != peer_id:
                    raise PeerUnreachable(f"{address} is peer {found[:8]} now, not {peer_id[:8]}")
                await self._carry(stream, peer_id)
        except (PeerError, TimeoutError, grpc.RpcError) as error:
            self._waiting.pop(peer_id, None)
            self._lost(peer_id, str(error) or "no answer in time")

    async def accept(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Serve `Peer.Link`: carry the link until it is over."""
        stream = AcceptedStream(context)
        if sum(map(len, self._live.values())) >= MAX_LINKS:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{MAX_LINKS} links are open")
        try:
            async with asyncio.timeout(self._settings.handshake):
                peer_id = await greet(stream, self.own_id, self._address)
        except (PeerError, TimeoutError) as error:
            log.info("link refused reason=%s", error or "no hello in time")
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error) or "no hello in time")
        if peer_id == self.own_id:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "that is this node's own id")
        try:
            await self._carry(stream, peer_id)
        except PeerError as error:
            self._lost(peer_id, str(error))

    async def _carry(self, stream: FrameStream, peer_id: str) -> None:
        link = Link(
            stream,
            peer_id,
            self._settings,
            self._handler.on_frames,
            self._handler.on_rtt,
            self._handler.coordinate,
        )
        # The first link to a peer stays the one to send on, so that frames keep their order;
        # when both sides dial at once, the second one only receives.
        links = self._live.setdefault(peer_id, [])
        links.append(link)
        waiting = self._waiting.pop(peer_id, None)
        if waiting:
            links[0].send(tuple(waiting))
        log.info("link up peer=%s", peer_id)
        try:
            await link.run()
        finally:
            links.remove(link)
            if not links:
                self._live.pop(peer_id, None)

    def _lost(self, peer_id: str, reason: str) -> None:
        log.info("link lost peer=%s reason=%s", peer_id, reason)
        self._handler.on_peer_lost(peer_id, reason)

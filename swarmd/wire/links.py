"""All links of one node: dialled when first needed, accepted when dialled, missed when lost.

A peer is dialled by its id, at the address that this node's own view has for it. What the frames
mean is the handler's business.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, NoReturn, Protocol

import grpc

from swarmd.core.errors import ConfigError, PeerError, PeerUnreachable, QueueFull, SwarmdError
from swarmd.core.frames import SessionFrame
from swarmd.wire import limits
from swarmd.wire.assembly_memory import AssemblyMemory
from swarmd.wire.channel import dial
from swarmd.wire.link import (
    Link,
    LinkEvents,
    LinkSettings,
    RttSample,
    greet_as_dialled,
    greet_as_dialler,
)
from swarmd.wire.outbound import Outbound
from swarmd.wire.status import abort
from swarmd.wire.stream import AcceptedStream, DialledStream, FrameStream

__all__ = ["LinkHandler", "LinkSettings", "Links", "RttSample"]

log = logging.getLogger(__name__)


class LinkHandler(LinkEvents, Protocol):
    """Who gets what the links bring. Called on the event loop; must not block.

    A ProtocolError that `on_frames` raises ends the link on which the frames came. So does any
    other exception, which is logged as the error of this node that it is.
    """

    @property
    def takes_links(self) -> bool:
        """Whether peers may open links by now."""
        ...

    def on_peer_up(self, peer_id: str) -> None:
        """A link to a peer is live; it may not be the only one."""
        ...

    def on_peer_lost(self, peer_id: str, reason: str) -> None:
        """A link to a peer broke, or it could not be dialled: frames may be lost, both ways.

        Another link to the same peer may be alive (see `Links.connected`), or be dialled anew by
        the next `send`.
        """
        ...


class Links:
    """The links of one node.

    `resolve` gives the address of a peer id in the node's view, or None. `spawn` starts a task that
    the daemon owns; these tasks raise nothing but CancelledError.
    """

    def __init__(
        self,
        own_id: str,
        own_address: str,
        handler: LinkHandler,
        resolve: Callable[[str], str | None],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        settings: LinkSettings | None = None,
        memory: AssemblyMemory | None = None,
        appears: Callable[[str], Awaitable[str | None]] | None = None,
    ) -> None:
        """`appears` waits a little for a peer that the view does not show yet, as `resolve`."""
        self.own_id = own_id
        self._address = own_address
        self._handler = handler
        self._resolve = resolve
        self._appears = appears
        self._spawn = spawn
        self._settings = settings or LinkSettings()
        self.memory = memory or AssemblyMemory()
        """What frames take that have come in part, over all links."""
        self._live: dict[str, list[Link]] = {}
        self._waiting: dict[str, Outbound] = {}
        self._dials: set[asyncio.Task[None]] = set()
        self._accepted = 0
        self._closing = False
        self._all_ended = asyncio.Event()

    def send(self, peer_id: str, batch: Sequence[SessionFrame]) -> None:
        """Send frames to a peer, dialling it if need be; to this node itself without the wire.

        With no frames the peer is dialled all the same, if there is no link.
        Never blocks. What cannot be sent ends in `on_peer_lost`, never during this call. Raises
        ProtocolError for a frame that is larger than any peer would accept. To be called on the
        event loop; does nothing once `close` has begun.
        """
        if self._closing:
            return
        if peer_id == self.own_id:
            asyncio.get_running_loop().call_soon(self._deliver_here, batch)
        elif live := self._live.get(peer_id):
            try:
                live[0].send(batch)  # always the first link, so that frames keep their order
            except QueueFull as error:
                live[0].abort(f"the peer takes too little: {error}")
        else:
            self._send_later(peer_id, batch)

    def pending(self, peer_id: str) -> int:
        """Return how many bytes wait for the link to a peer."""
        live = self._live.get(peer_id)
        outbound = live[0].outbound if live else self._waiting.get(peer_id)
        return 0 if outbound is None else outbound.pending_bytes

    def connected(self) -> list[str]:
        """Return the ids of the peers with a live link."""
        return list(self._live)

    async def accept(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Serve `Peer.Link`: carry the link until it is over."""
        if self._closing:
            await _refuse(context, grpc.StatusCode.UNAVAILABLE, "this node is leaving")
        if not self._handler.takes_links:
            # A link says that its peer is at work: while blocks are loaded nobody is to wait here.
            await _refuse(context, grpc.StatusCode.UNAVAILABLE, "this node is loading")
        if self._accepted >= limits.MAX_LINKS:
            reason = f"{limits.MAX_LINKS} links are open here"
            await _refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, reason)
        self._accepted += 1
        try:
            await self._serve(context)
        finally:
            self._accepted -= 1

    async def close(self, grace: float = 1.0) -> None:
        """End every link; what waits still leaves, for at most `grace` seconds.

        No peer is reported as lost from now on. To be called before the server is stopped.
        """
        self._closing = True
        self._waiting.clear()
        for link in self._links():
            link.finish()
        self._check_ended()
        if not await self._ended_within(grace):
            for link in self._links():
                link.abort("this node is leaving")
            await self._ended_within(grace)
        dials = list(self._dials)
        for task in dials:
            task.cancel()
        await asyncio.gather(*dials, return_exceptions=True)

    async def _ended_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return await self._all_ended.wait()
        except TimeoutError:
            return False

    def _links(self) -> list[Link]:
        return [link for links in self._live.values() for link in links]

    def _check_ended(self) -> None:
        if self._closing and not self._live:
            self._all_ended.set()

    def _deliver_here(self, batch: Sequence[SessionFrame]) -> None:
        if not self._closing:
            self._handler.on_frames(self.own_id, batch)

    def _send_later(self, peer_id: str, batch: Sequence[SessionFrame]) -> None:
        waiting = self._waiting.get(peer_id)
        if waiting is None:
            waiting = self._waiting[peer_id] = Outbound()
            task = self._spawn(self._dial(peer_id, waiting))
            self._dials.add(task)
            task.add_done_callback(self._dials.discard)
        try:
            waiting.put_all(batch)
        except QueueFull as error:
            waiting.clear()  # better none than some, and the loss said
            reason = f"the link is not open yet: {error}"
            asyncio.get_running_loop().call_soon(self._lost, peer_id, reason)

    async def _dial(self, peer_id: str, waiting: Outbound) -> None:
        try:
            await self._dial_and_carry(peer_id)
            return
        except (PeerError, ConfigError) as error:
            reason = str(error)
        except TimeoutError:
            reason = f"no answer to a dial within {self._settings.handshake:g} s"
        except Exception as error:
            log.exception("dialling failed peer=%s", peer_id)
            reason = f"dialling failed: {error!r}"
        # The peer may have dialled this node meanwhile, and that link taken what was waiting.
        if self._waiting.get(peer_id) is waiting:
            del self._waiting[peer_id]
            self._lost(peer_id, reason)

    async def _dial_and_carry(self, peer_id: str) -> None:
        address = self._resolve(peer_id)
        if address is None and self._appears is not None:
            address = await self._appears(peer_id)
        if address is None:
            raise PeerUnreachable(f"peer {peer_id[:8]} is not in this node's view")
        async with dial(address) as channel:
            stream = DialledStream(channel)
            async with asyncio.timeout(self._settings.handshake):
                await greet_as_dialler(stream, self.own_id, self._address, peer_id)
            await self._carry(stream, peer_id)

    async def _serve(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        stream = AcceptedStream(context)
        try:
            async with asyncio.timeout(self._settings.handshake):
                peer_id = await greet_as_dialled(stream, self.own_id, self._address)
        except (PeerError, TimeoutError) as error:
            reason = str(error) or f"no hello within {self._settings.handshake:g} s"
            await _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, reason)
        if len(self._live.get(peer_id, ())) >= limits.MAX_LINKS_PER_PEER:
            reason = f"{limits.MAX_LINKS_PER_PEER} links with this peer are open"
            await _refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, reason)
        try:
            ended = await self._carry(stream, peer_id)
        except asyncio.CancelledError:
            # gRPC's way to say that the caller has gone, or that the server stops.
            self._lost(peer_id, "the peer closed the link")
            raise
        if isinstance(ended, QueueFull):
            await abort(context, ended)

    async def _carry(self, stream: FrameStream, peer_id: str) -> SwarmdError | None:
        """Return why the link has ended, where it is no fault of this code."""
        if self._closing:
            return None
        waiting = self._waiting.pop(peer_id, None)
        link = Link(stream, peer_id, self._settings, self._handler, waiting, self.memory)
        # When both sides dial at once there are two links, and each side sends on its first one.
        self._live.setdefault(peer_id, []).append(link)
        log.info("link up peer=%s", peer_id)
        ended: SwarmdError | None = None
        try:
            self._handler.on_peer_up(peer_id)
            await link.run()
        except (PeerError, QueueFull) as error:
            ended, reason = error, str(error)
        except Exception as error:
            log.exception("link dropped for an error of this node peer=%s", peer_id)
            reason = f"this node failed: {error!r}"
        finally:
            self._remove(link)
        self._lost(peer_id, reason)
        return ended

    def _remove(self, link: Link) -> None:
        links = self._live[link.peer_id]
        links.remove(link)
        if not links:
            del self._live[link.peer_id]
        self._check_ended()

    def _lost(self, peer_id: str, reason: str) -> None:
        if self._closing:
            return
        log.info("link lost peer=%s reason=%s", peer_id, reason)
        try:
            self._handler.on_peer_lost(peer_id, reason)
        except Exception:
            log.exception("could not take the loss of a peer peer=%s", peer_id)


async def _refuse(
    context: grpc.aio.ServicerContext[Any, Any], code: grpc.StatusCode, reason: str
) -> NoReturn:
    log.info("link refused reason=%s", reason)
    await context.abort(code, reason)
    raise AssertionError("abort raises")

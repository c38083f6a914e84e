"""A node's place in its swarm: directory, links, announcement and view, from joining to leaving.

What is announced is `describe`'s, whom a view leads to is decided elsewhere, and when a node joins
and leaves is `daemon`'s business.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from swarmd.core import options
from swarmd.core.clock import Clock
from swarmd.core.config import NodeConfig
from swarmd.core.errors import DirectoryError
from swarmd.core.peers import Announcement, NodeState
from swarmd.core.span import Span
from swarmd.node.describe import Description
from swarmd.node.exchange import Exchange
from swarmd.node.loading import Opened
from swarmd.node.peering import PeerService, introduce
from swarmd.node.presence import Presence
from swarmd.swarm.dht import DhtConfig, DhtDirectory
from swarmd.swarm.identity import Identity
from swarmd.swarm.placement import choose_span
from swarmd.v1 import peer_pb2 as pb
from swarmd.wire.assembly_memory import AssemblyMemory
from swarmd.wire.link import LinkSettings
from swarmd.wire.links import Links

log = logging.getLogger(__name__)

JOIN_WAIT_S = 10.0
"""How long a node that chooses its own span waits to see the others first."""
SETTLE_S = 1.5
"""How long it waits to see what others chose at the same moment."""


class Membership:
    """One node among others. `join` makes it."""

    def __init__(
        self,
        config: NodeConfig,
        own_id: str,
        address: str,
        directory: DhtDirectory,
        clock: Clock,
        state: Callable[[], NodeState],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        ask: Callable[[str, str], Awaitable[pb.IntroduceReply]] = introduce,
        pid: int = 0,
    ) -> None:
        """`address` is where others reach this node, `state` where it is in its life.

        `ask` has the door at an address introduce itself; `pid` tells this process from the one
        before it, by default the operating system's.
        """
        self.own_id = own_id
        self.address = address
        self.directory = directory
        self.description: Description | None = None
        self.leaves = False
        """Whether it leaves soon, unless others do who were told so, too: see `Dismissal`."""
        self.ask = ask
        self._config = config
        self._state = state
        self._spawn = spawn
        self._clock = clock
        self._pid = pid or os.getpid()
        self.presence = Presence(
            own_id,
            directory,
            config.peers,
            config.lease,
            config.state_dir,
            clock,
            self._describe,
            lambda: self.exchange.on_view_changed(),
            ask,
        )
        self.exchange = Exchange(self.presence)
        self._links = self._new_links()
        self.exchange.links = self._links
        self.peering = PeerService(
            own_id,
            self._links,
            self.presence.directory_addresses,
            lambda: [address, *self.presence.peer_addresses()],
            self.presence.announced_since,
            clock,
        )

    def _new_links(self) -> Links:
        return Links(
            self.own_id,
            self.address,
            self.exchange,
            self.presence.address_of,
            self._spawn,
            LinkSettings(timeout=self._config.link_timeout),
            AssemblyMemory(self._config.link_memory),
            self.presence.appears,
        )

    @classmethod
    async def join(
        cls,
        config: NodeConfig,
        identity: Identity,
        address: str,
        clock: Clock,
        state: Callable[[], NodeState],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> Membership:
        """Start the directory. Raises DirectoryError."""
        host, port = options.split_address(config.dht_address)
        dht = DhtConfig(
            state_dir=config.state_dir,
            host=await _address_of(host),
            port=port,
            announce_host=options.split_address(address)[0],
        )
        directory = await DhtDirectory.start(dht, identity, clock)
        return cls(config, identity.peer_id, address, directory, clock, state, spawn)

    def keep_up(self) -> None:
        """From now on look for others, and keep view and announcement fresh."""
        for loop in (self.presence.join, self.presence.keep_fresh, self.presence.keep_announced):
            self._spawn(loop())

    async def leave(self, grace: float) -> None:
        """Tell everybody, and end the links; what waits there may take `grace` seconds."""
        await self.presence.leave()
        await self._links.close(grace)

    def announcement(self) -> Announcement:
        """Return what this node announces now, once there is something to announce."""
        own = self._describe()
        assert own is not None
        return own

    def _describe(self) -> Announcement | None:
        if self.description is None:
            return None
        coordinate = self.presence.coordinate
        return self.description.now(self._state(), coordinate, leaves=self.leaves)

    async def see_others(self, patience: float) -> None:
        """Have a fresh view, after the first door has answered, if both is soon."""
        await self._find_a_door(patience)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self.presence.see()

    async def _find_a_door(self, patience: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self.presence.joined.wait()

    async def choose_span(self, opened: Opened) -> Span:
        """Take the span of the configuration, or the one that the swarm needs most."""
        if self._config.blocks != "auto":
            span = Span.parse(self._config.blocks, opened.info.num_blocks)
            await self._plan(opened, span)
            return span
        await self._find_a_door(JOIN_WAIT_S)
        await self.presence.see()
        span = self._best_span(opened, None)
        while True:
            await self._plan(opened, span)
            await asyncio.sleep(SETTLE_S)
            await self.presence.see()
            better = self._best_span(opened, span)
            if better == span:
                return span
            log.info("span chosen anew span=%s instead_of=%s", better, span)
            span = better

    def _best_span(self, opened: Opened, current: Span | None) -> Span:
        info, most = opened.info, opened.max_blocks
        view = self.presence.view
        return choose_span(view, info.digest, info.num_blocks, most, self.own_id, current)

    async def _plan(self, opened: Opened, span: Span) -> None:
        """Let others see what is being loaded here."""
        dtype, device = opened.dtype, self._config.device
        self.description = Description(
            self.own_id,
            self.address,
            opened.info,
            span,
            dtype,
            device,
            self._clock,
            self._pid,
            moves=self.moves,
        )
        await self.presence.announce()

    async def announce_move(self, opened: Opened, span: Span) -> None:
        """Let others see that this node has left its blocks and loads these."""
        with contextlib.suppress(DirectoryError):  # tried again soon
            await self._plan(opened, span)
        assert self.description is not None
        self.description.plan = span
        self.presence.changed()

    @property
    def moves(self) -> bool:
        """Whether this node goes where the swarm needs it."""
        return self._config.blocks == "auto" and not self._config.no_rebalance


async def _address_of(host: str) -> str:
    """Look a name up: libp2p listens on addresses only. IPv4 where there is the choice."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return str(min(found, key=lambda entry: entry[0] != socket.AF_INET)[4][0])

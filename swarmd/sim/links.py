"""The links of a simulated process: what `swarmd.wire.links` does, without gRPC.

A link keeps the order of each session's frames; those of different sessions may overtake each
other. What carries them, and loses them, is `network`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from swarmd.core.frames import SessionFrame, Step
from swarmd.node.presence import APPEARS_S
from swarmd.sim.timeline import ProcessLoop
from swarmd.wire.link import RttSample
from swarmd.wire.links import LinkHandler

if TYPE_CHECKING:
    from swarmd.sim.network import Network

TICK = 1e-6


class Wire:
    """One link between two processes."""

    __slots__ = ("_lanes", "broken", "ends", "floor", "lost_after", "open")

    def __init__(self, dialler: SimLinks, dialled: SimLinks) -> None:
        self.ends = {dialler.own_id: dialler, dialled.own_id: dialled}
        self.open = dict.fromkeys(self.ends, False)
        """Whether each end takes the link for live."""
        self.broken = False
        """Whether what is sent from now on is lost."""
        self.lost_after = float("inf")
        """What would come after this moment is lost."""
        self.floor = 0.0
        """Nothing that the dialler sends comes before its greeting."""
        self._lanes: dict[tuple[str, bytes], float] = {}

    def other(self, peer_id: str) -> SimLinks:
        return next(links for peer, links in self.ends.items() if peer != peer_id)

    def in_order(self, src: str, lanes: Sequence[bytes], at: float) -> float:
        """Return when a message comes, behind all that came before it for its sessions."""
        before = (self._lanes.get((src, lane), 0.0) + TICK for lane in lanes)
        at = max(at, self.floor, *before)
        self._lanes.update(dict.fromkeys(((src, lane) for lane in lanes), at))
        return at

    def drained_at(self, src: str, now: float) -> float:
        """Return when all that this side has sent has come."""
        return max((at for (peer, _), at in self._lanes.items() if peer == src), default=now)


class SimLinks:
    """The links of one process: the public face of `wire.links.Links`."""

    def __init__(
        self,
        network: Network,
        own_id: str,
        address: str,
        handler: LinkHandler,
        resolve: Callable[[str], str | None],
        loop: ProcessLoop,
    ) -> None:
        self.own_id, self.address = own_id, address
        self.handler, self.loop = handler, loop
        self.closing = False
        self._network = network
        self.resolve = resolve
        self.live: dict[str, list[Wire]] = {}
        self.waiting: dict[str, list[SessionFrame]] = {}

    def send(self, peer_id: str, batch: Sequence[SessionFrame]) -> None:
        """Send frames to a peer, dialling it if need be."""
        if self.closing or not self.loop.alive:
            return
        self._network.watch(self.own_id, peer_id, batch)
        if peer_id == self.own_id:
            self.loop.call_soon(self._deliver_here, tuple(batch))
        elif wires := self.live.get(peer_id):
            self._network.carry(wires[0], self, peer_id, batch)
        elif peer_id in self.waiting:
            self.waiting[peer_id] += batch
        else:
            waiting = self.waiting[peer_id] = list(batch)
            self._network.dial(self, peer_id, waiting, self.loop.time() + APPEARS_S)

    def pending(self, peer_id: str) -> int:
        """Nothing waits for a link that is open: what is sent is on its way."""
        frames = self.waiting.get(peer_id, ())
        return sum(f.hidden.nbytes for f in frames if isinstance(f, Step) and f.hidden)

    def connected(self) -> list[str]:
        """Return the ids of the peers with a live link."""
        return list(self.live)

    async def close(self, grace: float = 1.0) -> None:
        """End every link; what is on its way still comes."""
        self.closing = True
        self.waiting.clear()
        for wires in list(self.live.values()):
            for wire in list(wires):
                wire.open[self.own_id] = False
                self._network.finish(wire, self)
        self.live.clear()

    def _deliver_here(self, batch: Sequence[SessionFrame]) -> None:
        if not self.closing:
            self.handler.on_frames(self.own_id, batch)

    # What the network tells.

    def up(self, wire: Wire) -> None:
        """A link is open on this side."""
        peer = wire.other(self.own_id)
        wire.open[self.own_id] = True
        self.live.setdefault(peer.own_id, []).append(wire)
        self.handler.on_peer_up(peer.own_id)
        waiting = self.waiting.pop(peer.own_id, ())
        if waiting:
            self._network.carry(wire, self, peer.own_id, waiting)
        sample = RttSample(self._network.rtt(self.own_id, peer.own_id), peer.handler.coordinate())
        self.handler.on_rtt(peer.own_id, sample)

    def receive(self, wire: Wire | None, src: str, batch: Sequence[SessionFrame]) -> None:
        """Frames have come; without a wire, some that somebody sends again."""
        if wire.open[self.own_id] if wire else src in self.live:
            self.handler.on_frames(src, batch)

    def down(self, wire: Wire, reason: str) -> None:
        """A link is over on this side."""
        if not wire.open[self.own_id]:
            return
        wire.open[self.own_id] = False
        wire.broken = True
        peer = wire.other(self.own_id).own_id
        self.live[peer].remove(wire)
        if not self.live[peer]:
            del self.live[peer]
        if not self.closing:
            self.handler.on_peer_lost(peer, reason)

    def dial_failed(self, peer_id: str, waiting: list[SessionFrame], reason: str) -> None:
        """A dial was in vain, unless the peer has dialled this process meanwhile."""
        if self.waiting.get(peer_id) is waiting and not self.closing:
            del self.waiting[peer_id]
            self.handler.on_peer_lost(peer_id, reason)

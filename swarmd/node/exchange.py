"""Between the links and this node's two roles: frames for a hop go to the host, others to drivers.

Counts what passes. What frames mean is `swarmd.pipeline`'s business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swarmd.core.frames import (
    Copied,
    Failed,
    Gap,
    Leaving,
    Opened,
    Polled,
    SessionFrame,
    Step,
    Token,
)
from swarmd.node.coordinator import Coordinator
from swarmd.node.host import StageHost
from swarmd.node.knocks import Knocks
from swarmd.node.presence import Presence
from swarmd.node.routes import Routes
from swarmd.pipeline import events as ev
from swarmd.wire.link import RttSample
from swarmd.wire.links import Links

_FOR_DRIVERS_ONLY = (Opened, Token, Gap, Leaving, Polled)
_FOR_DRIVERS = (*_FOR_DRIVERS_ONLY, Failed, Copied)


@dataclass(slots=True)
class LinkStats:
    """What has passed the links of this node; what it sends to itself does not count."""

    frames_sent: int = 0
    frames_received: int = 0
    activation_bytes_sent: int = 0
    """Hidden states only."""
    activation_bytes_received: int = 0
    peers_lost: int = 0


class Exchange:
    """The `LinkHandler` of a node. Until `open`, frames are dropped: nothing has been promised."""

    links: Links

    def __init__(self, presence: Presence) -> None:
        self.stats = LinkStats()
        self._presence = presence
        self._host: StageHost | None = None
        self._coordinator: Coordinator | None = None
        self._routes: Routes | None = None
        self.knocks = Knocks(
            presence.own_id, lambda peer_id: self.send(peer_id, ()), lambda: self.links.connected()
        )

    def open(self, host: StageHost, coordinator: Coordinator, routes: Routes) -> None:
        """From now on give frames to these."""
        self._host, self._coordinator, self._routes = host, coordinator, routes

    @property
    def takes_links(self) -> bool:
        """Whether what comes over links has a meaning here yet."""
        return self._host is not None

    def on_view_changed(self) -> None:
        """Peers that were started anew are trusted again, and sessions that wait for some look."""
        if self._routes is not None and self._coordinator is not None:
            self._routes.look()
            self._coordinator.on_view_changed()

    def send(self, peer_id: str, batch: Sequence[SessionFrame]) -> None:
        """Send frames to a peer, or to this node itself."""
        if peer_id != self.links.own_id:
            self.stats.frames_sent += len(batch)
            self.stats.activation_bytes_sent += _hidden_bytes(batch)
        self.links.send(peer_id, batch)

    def pending(self, peer_id: str) -> int:
        """Return how many bytes wait for the link to a peer."""
        return self.links.pending(peer_id)

    def on_frames(self, peer_id: str, batch: Sequence[SessionFrame]) -> None:
        """Give each frame to the role that it is meant for."""
        if peer_id != self.links.own_id:
            self.stats.frames_received += len(batch)
            self.stats.activation_bytes_received += _hidden_bytes(batch)
        host, coordinator = self._host, self._coordinator
        if host is None or coordinator is None:
            return
        answers, orders = [], []
        for frame in batch:
            # A hop's failure is for the coordinator; one from downstream also for the hop before.
            # How far a copy reaches is for the coordinator and the hop that sends it.
            if isinstance(frame, _FOR_DRIVERS):
                answers.append(frame)
            if not isinstance(frame, _FOR_DRIVERS_ONLY):
                orders.append(frame)
        if answers:
            coordinator.on_frames(peer_id, answers)
        if orders:
            host.on_frames(peer_id, orders)

    def on_peer_up(self, peer_id: str) -> None:
        """There is a link: who waits for one can go on."""
        self.knocks.up(peer_id)

    def on_peer_lost(self, peer_id: str, reason: str) -> None:
        """Tell both roles; they know which sessions it concerns."""
        self.stats.peers_lost += 1
        if self._host is None or self._coordinator is None or self._routes is None:
            return
        known = self._presence.address_of(peer_id) is not None
        self._routes.failed(peer_id)
        self._host.handle(ev.PeerLost(peer_id, known))
        self._coordinator.on_peer_lost(peer_id)
        self.knocks.lost(peer_id)

    def on_rtt(self, peer_id: str, sample: RttSample) -> None:
        """Let the measured round trip move this node's network coordinate."""
        if self._routes is not None:
            self._routes.heard(peer_id)
        self._presence.on_rtt(peer_id, sample)

    def coordinate(self) -> tuple[float, ...]:
        """This node's own network coordinate."""
        return self._presence.coordinate


def _hidden_bytes(batch: Sequence[SessionFrame]) -> int:
    total = 0
    for frame in batch:
        if isinstance(frame, Step) and frame.hidden is not None:
            total += frame.hidden.nbytes
    return total

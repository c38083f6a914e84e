"""The network of a simulated swarm: links that delay, duplicate, break and lose what is under way.

What a node makes of a frame, or of its loss, is `swarmd.simulation`'s business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from swarmd.core.frames import Close, Keep, SessionFrame, Step
from swarmd.pipeline.events import LinksKnown, NeedLinks

if TYPE_CHECKING:
    from swarmd.simulation import SimRun, Swarm


@dataclass(frozen=True, slots=True)
class Weather:
    """How rough the network and the machines are. Times are in seconds."""

    delay: tuple[float, float] = (0.001, 0.02)
    compute: tuple[float, float] = (0.001, 0.01)
    """Per step."""
    duplicates: float = 0.0
    """Chance that a frame comes twice."""
    notice: tuple[float, float] = (0.001, 0.08)
    """From the break of a link to each end's noticing it."""
    compute_failures: float = 0.0
    """Chance that a step cannot be computed."""


class LossyLinks:
    """Links between any two nodes: in order, until they break and lose what is under way."""

    def __init__(self, swarm: Swarm) -> None:
        self._swarm = swarm
        self._last: dict[tuple[str, str], float] = {}
        self._cut_at: dict[tuple[str, str], float] = {}
        self._deaf_until: dict[tuple[str, str], float] = {}
        self.activation_bytes: dict[str, int] = {}
        """Bytes of hidden states that each peer has sent."""

    def send(self, src: str, dst: str, frame: SessionFrame) -> None:
        """Carry a frame, or tell the sender that its peer cannot be reached."""
        swarm, now = self._swarm, self._swarm.now
        if isinstance(frame, Step) and frame.hidden is not None:
            count = self.activation_bytes.get(src, 0)
            self.activation_bytes[src] = count + frame.hidden.nbytes
        if dst not in swarm.nodes or not swarm.nodes[dst].alive:
            if not isinstance(frame, Close | Keep):
                swarm.tell_lost(src, dst)
            return
        if now < self._deaf_until.get((src, dst), 0.0):
            return
        at = now if src == dst else now + swarm.draw(swarm.weather.delay)
        copies = 2 if swarm.random.random() < swarm.weather.duplicates else 1
        for _ in range(copies):
            at = self._last[src, dst] = max(at, self._last.get((src, dst), 0.0)) + 1e-6
            self._deliver(src, dst, frame, at)

    def reach(self, run: SimRun, need: NeedLinks) -> None:
        """Say which peers can be dialled."""
        swarm = self._swarm
        gone = frozenset(p for p in need.peers if p not in swarm.nodes or not swarm.nodes[p].alive)
        at = swarm.now + (swarm.draw(swarm.weather.notice) if gone else 0.0)
        swarm.at(at, lambda: run.node.when_awake(lambda: run.handle(LinksKnown(need.ask, gone))))

    def _deliver(self, src: str, dst: str, frame: SessionFrame, at: float) -> None:
        sent, receiver = self._swarm.now, self._swarm.nodes[dst]

        def arrive() -> None:
            cut = self._cut_at.get((src, dst), -1.0)
            if not sent <= cut <= at:
                receiver.when_awake(lambda: receiver.receive(src, frame))

        self._swarm.at(at, arrive)

    def cut(self, one: str, other: str) -> None:
        """Break the link between two peers; both will notice, each in its time, and may redial."""
        for src, dst in ((one, other), (other, one)):
            self._cut_at[src, dst] = self._swarm.now
            notice = self._swarm.now + self._swarm.draw(self._swarm.weather.notice)
            self._deaf_until[src, dst] = notice
            self._swarm.tell_lost(src, dst, notice)

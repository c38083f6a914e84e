"""The network of a simulated swarm: opens links, carries their frames, and breaks them.

A link breaks at both ends at different times, and then its last frames are lost, while some come
later than the first of the link that follows. Both sides may dial at once, which makes two links.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from swarmd.core.frames import Keep, SessionFrame, Step, Token
from swarmd.sim.links import TICK, SimLinks, Wire
from swarmd.sim.timeline import Timeline
from swarmd.wire.limits import MAX_LINKS_PER_PEER
from swarmd.wire.link import LinkSettings

SETTINGS = LinkSettings()
LOOK_S = 0.02
"""How often the view is looked at for a peer that it does not show yet."""


@dataclass(frozen=True, slots=True)
class Climate:
    """How rough network, machines and directory are. Times are in seconds."""

    delay: tuple[float, float] = (0.001, 0.02)
    compute: tuple[float, float] = (0.001, 0.01)
    """Per microbatch."""
    notice: tuple[float, float] = (0.001, 0.08)
    """From the break of a link to each end's noticing it."""
    duplicates: float = 0.0
    """Chance that a frame comes twice."""
    replays: float = 0.0
    """Chance that a frame comes again some seconds later, whatever has become of its link."""
    compute_failures: float = 0.0
    """Chance that a step cannot be computed."""
    view_delay: tuple[float, float] = (0.02, 1.0)
    """From an announcement to an observer's hearing of it; each has its own."""


class Network:
    """Carries frames between processes, and loses them as it is told to."""

    def __init__(self, timeline: Timeline, draw: random.Random, climate: Climate) -> None:
        self.climate = climate
        self.watch: Callable[[str, str, Sequence[SessionFrame]], None] = lambda *_: None
        """Told of everything that is sent."""
        self._timeline = timeline
        self._random = draw
        self._listening: dict[str, SimLinks] = {}
        self._off: set[str] = set()
        """Addresses of machines that do not even refuse."""
        self._wires: list[Wire] = []
        self._down: dict[tuple[str, str], float] = {}
        self._slow: dict[tuple[str, str], tuple[float, float]] = {}

    # Paths.

    def delay(self, src: str, dst: str) -> float:
        """Draw how long something takes from one machine to another now."""
        factor, until = self._slow.get((src, dst), (1.0, 0.0))
        drawn = self._random.uniform(*self.climate.delay)
        return drawn * factor if self._timeline.now < until else drawn

    def rtt(self, src: str, dst: str) -> float:
        return self.delay(src, dst) + self.delay(dst, src)

    def up_at(self, src: str, dst: str) -> float:
        """Return when the path carries again; not later than now if it does."""
        return self._down.get((src, dst), 0.0)

    def cut(self, src: str, dst: str, seconds: float) -> None:
        """Let nothing through from one machine to another for a while; the way back is apart."""
        until = max(self._timeline.now + seconds, self.up_at(src, dst))
        self._down[src, dst] = until
        for wire in self._between(src, dst):
            self._watch_silence(wire, src, dst)

    def slow(self, one: str, other: str, factor: float, seconds: float) -> None:
        """Make the path between two machines slow for a while."""
        until = self._timeline.now + seconds
        self._slow[one, other] = self._slow[other, one] = (factor, until)

    # Processes.

    def listen(self, links: SimLinks) -> None:
        """A process takes links at its address from now on."""
        self._off.discard(links.address)
        self._listening[links.address] = links

    def links_at(self, address: str) -> SimLinks | None:
        """Return who listens there."""
        return self._listening.get(address)

    def died(self, links: SimLinks, *, silently: bool) -> None:
        """A process is gone; silently: with its machine, so that only silence tells."""
        if self._listening.get(links.address) is links:
            del self._listening[links.address]
        if silently:
            self._off.add(links.address)
        for wire in self._of(links):
            if silently:
                wire.broken = True
                self._watch_silence(wire, links.own_id, wire.other(links.own_id).own_id)
            else:
                self.break_(wire)

    def froze(self, links: SimLinks) -> None:
        """A process stands still: others will miss its heartbeats."""
        for wire in self._of(links):
            self._watch_silence(wire, links.own_id, wire.other(links.own_id).own_id)

    def _of(self, links: SimLinks) -> list[Wire]:
        self._wires = [wire for wire in self._wires if any(wire.open.values()) or not wire.broken]
        return [wire for wire in self._wires if wire.ends.get(links.own_id) is links]

    def _between(self, one: str, other: str) -> list[Wire]:
        return [wire for wire in self._wires if one in wire.ends and other in wire.ends]

    def break_between(self, one: str, other: str) -> None:
        """Break the links between two machines, as a box in between may do; they may redial."""
        for wire in self._between(one, other):
            self.break_(wire)

    def break_(self, wire: Wire) -> None:
        """Both ends will notice, each in its time; until then some of what is under way comes."""
        now = self._timeline.now
        notices = [self._random.uniform(*self.climate.notice) for _ in wire.ends]
        wire.broken = True
        wire.lost_after = min(wire.lost_after, now + max(notices) * self._random.random())
        for links, notice in zip(wire.ends.values(), notices, strict=True):
            self._end(wire, links, now + notice, "the link broke")

    def finish(self, wire: Wire, links: SimLinks) -> None:
        """End a link in good order: all that was sent before comes."""
        other = wire.other(links.own_id)
        wire.broken = True
        at = max(wire.drained_at(links.own_id, 0.0) + TICK, self._timeline.now)
        at = max(at, self.up_at(links.own_id, other.own_id))
        self._end(wire, other, at, "the peer ended the link")

    def _end(self, wire: Wire, links: SimLinks, at: float, reason: str) -> None:
        end = functools.partial(links.down, wire, reason)
        self._timeline.at(at, functools.partial(links.loop.do, end))

    def _watch_silence(self, wire: Wire, src: str, dst: str) -> None:
        heard = self._random.uniform(0, SETTINGS.heartbeat)
        check = functools.partial(self._check_silence, wire, src, dst)
        self._timeline.after(SETTINGS.timeout - heard, check)

    def _check_silence(self, wire: Wire, src: str, dst: str) -> None:
        silent, hearer = wire.ends[src], wire.ends[dst]
        if not wire.open[dst] or not hearer.loop.alive:
            return
        if hearer.loop.frozen:  # its own standing still is no silence of the peer's
            again = functools.partial(self._check_silence, wire, src, dst)
            self._timeline.at(hearer.loop.frozen_until + SETTINGS.timeout, again)
            return
        now = self._timeline.now
        speaks = silent.loop.alive and not silent.loop.frozen and wire.open[src]
        if self.up_at(src, dst) > now or not speaks:
            hearer.loop.do(functools.partial(hearer.down, wire, "the peer was silent"))
            if self.up_at(dst, src) <= now:
                self._end(wire, silent, now + self.delay(dst, src), "the peer ended the link")
            else:
                self._watch_silence(wire, dst, src)

    # Dialling.

    def dial(
        self, links: SimLinks, peer_id: str, waiting: list[SessionFrame], appears_by: float
    ) -> None:
        """Open a link, or tell the dialler that it cannot be opened."""
        if links.waiting.get(peer_id) is not waiting:
            return  # the peer has dialled this process meanwhile
        failed = functools.partial(links.dial_failed, peer_id, waiting)
        address = links.resolve(peer_id)
        if address is None:
            if self._timeline.now < appears_by:
                links.loop.call_later(LOOK_S, self.dial, links, peer_id, waiting, appears_by)
            else:
                links.loop.call_soon(failed, "not in the view")
            return
        until = self._timeline.now + SETTINGS.handshake
        self._timeline.at(until, lambda: links.loop.do(functools.partial(failed, "no answer")))
        self.way(links.own_id, peer_id, lambda: self._knock(links, peer_id, address, failed, until))

    def way(self, src: str, dst: str, act: Callable[[], None]) -> None:
        """Let something happen at the other end of a path, once that carries."""
        up_at = self.up_at(src, dst)
        self._timeline.at(max(self._timeline.now, up_at) + self.delay(src, dst), act)

    def _knock(
        self,
        links: SimLinks,
        peer_id: str,
        address: str,
        failed: Callable[[str], None],
        until: float,
    ) -> None:
        target = self._listening.get(address)
        if target is None or target.own_id != peer_id:
            if address not in self._off:
                refused = functools.partial(links.loop.do, functools.partial(failed, "refused"))
                self.way(peer_id, links.own_id, refused)
            return
        wire = Wire(links, target)
        accept = functools.partial(self._accept, wire, links, target, failed, until)
        target.loop.do(accept)

    def _accept(
        self,
        wire: Wire,
        links: SimLinks,
        target: SimLinks,
        failed: Callable[[str], None],
        until: float,
    ) -> None:
        too_many = len(target.live.get(links.own_id, ())) >= MAX_LINKS_PER_PEER
        if target.closing or too_many or not target.handler.takes_links:
            refused = functools.partial(links.loop.do, functools.partial(failed, "refused"))
            self.way(target.own_id, links.own_id, refused)
            return

        def greet() -> None:
            if self._timeline.now >= until or links.closing:
                return
            self._wires.append(wire)
            wire.floor = max(
                self._timeline.now + self.delay(links.own_id, target.own_id),
                self.up_at(links.own_id, target.own_id) + TICK,
            )
            come = functools.partial(self._come_up, wire, target)
            self._timeline.at(wire.floor - TICK / 2, functools.partial(target.loop.do, come))
            links.up(wire)
            self._look_after(wire)

        self.way(target.own_id, links.own_id, lambda: links.loop.do(greet))

    def _look_after(self, wire: Wire) -> None:
        """What has befallen its ends or its path while a link came to be, befalls it too."""
        for links in wire.ends.values():
            other = wire.other(links.own_id).own_id
            down = self.up_at(links.own_id, other) > self._timeline.now
            if links.address in self._off or links.loop.frozen or down:
                self._watch_silence(wire, links.own_id, other)
            elif not links.loop.alive:
                self.break_(wire)

    def _come_up(self, wire: Wire, target: SimLinks) -> None:
        if not wire.broken and not target.closing:
            target.up(wire)

    # Carrying.

    def carry(self, wire: Wire, links: SimLinks, dst: str, batch: Sequence[SessionFrame]) -> None:
        """Take frames from one end of a link to the other."""
        if wire.broken:
            return  # the sender does not know yet
        src = links.own_id
        for message in _messages(batch):
            soonest = self._timeline.now + self.delay(src, dst)
            at = wire.in_order(src, [_lane(frame) for frame in message], soonest)
            self._arrive_at(at, wire, src, dst, message)
            chance = self._random.random()
            if chance < self.climate.duplicates:
                self._arrive_at(at + TICK / 2, wire, src, dst, message)
            elif chance > 1 - self.climate.replays:
                target = functools.partial(self._replay, src, wire.ends[dst].address, message)
                self._timeline.at(at + self._random.uniform(0, 5), target)

    def _arrive_at(
        self, at: float, wire: Wire, src: str, dst: str, message: Sequence[SessionFrame]
    ) -> None:
        self._timeline.at(at, functools.partial(self._arrive, wire, src, dst, message))

    def _arrive(self, wire: Wire, src: str, dst: str, message: Sequence[SessionFrame]) -> None:
        now, up_at = self._timeline.now, self.up_at(src, dst)
        if up_at > now:
            self._arrive_at(up_at, wire, src, dst, message)  # what is lost is sent again
        elif now <= wire.lost_after:
            links = wire.ends[dst]
            links.loop.do(functools.partial(links.receive, wire, src, message))

    def _replay(self, src: str, address: str, message: Sequence[SessionFrame]) -> None:
        links = self._listening.get(address)
        if links is not None:
            links.loop.do(functools.partial(links.receive, None, src, message))


def _lane(frame: SessionFrame) -> bytes:
    return b"" if isinstance(frame, Keep) else frame.session


def _messages(batch: Sequence[SessionFrame]) -> Iterator[Sequence[SessionFrame]]:
    """Cut what is sent together into messages: steps, or tokens, of several sessions share one."""
    message: list[SessionFrame] = []
    for frame in batch:
        alike = message and type(frame) is type(message[0]) and isinstance(frame, Step | Token)
        if message and not (alike and all(_lane(f) != _lane(frame) for f in message)):
            yield tuple(message)
            message = []
        message.append(frame)
    if message:
        yield tuple(message)

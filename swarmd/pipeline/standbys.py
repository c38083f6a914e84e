"""Peers that hold a second copy of some hop's KV: found, opened, watched, and put in its place.

A hop gets one because it is about to leave (its session is then handed off to the copy), or because
the request asks for standbys. Hops send the KV (`copies.Copies`); when a session pauses, and goes
on over another route, is `moving.Moving`'s business.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from swarmd.core.frames import Copied, Copy, Opened
from swarmd.core.route import Hop, Route
from swarmd.pipeline import repair
from swarmd.pipeline.events import DriverAction, NeedRoute, Send
from swarmd.pipeline.feed import Feed
from swarmd.pipeline.request import Request, open_frames

LOOKS = 2
"""A copy that lacks too much is given up when so many looks in a row have not found it nearer."""
REST_CAP = 5
"""Times that the rest of a peer doubles whose copy has been given up."""
RETRY_CAP = 8.0
"""Seconds between two searches at most. That there is news of peers is told in any case."""


@dataclass(slots=True)
class Standby:
    """What is to take a hop's place: one peer, or several that share its blocks."""

    hop: Hop
    leaving: bool = False
    """The hop is about to go: the session is handed off as soon as the copy is whole."""
    left: bool = False
    """It was about to go in the epoch before, and may not have said so again yet."""
    ask: int | None = None
    """Of the question for peers that is open."""
    look_at: float | None = 0.0
    """When to look for peers, if there are none."""
    misses: int = 0
    """How often there were none, one time after the other."""
    peers: Route = ()
    held: dict[str, int] = field(default_factory=dict)
    """By peer, how many positions it holds; no entry until it has answered to its open."""
    seen: dict[str, int] = field(default_factory=dict)
    """The same as of the last look, to tell copies that stand still."""
    least: dict[str, int] = field(default_factory=dict)
    """By peer that lacks too much, the least that it has lacked since."""
    in_vain: Counter[str] = field(default_factory=Counter)
    """By such a peer, how many looks in a row have not found it any nearer than that."""

    @property
    def is_open(self) -> bool:
        """Whether all peers have agreed."""
        return bool(self.peers) and len(self.held) == len(self.peers)

    @property
    def reaches(self) -> int:
        """Positions `[0, reaches)` are held by all peers."""
        return min(self.held.values()) if self.is_open else 0

    def suits(self, peers: Route) -> bool:
        """Whether peers may hold the copy, as far as precision goes.

        What stands by promises the same bits. A hop that leaves is better followed by anybody.
        """
        return self.leaving or self.left or repair.is_same_precision(self.hop, peers)

    def drop_peers(self, look_at: float) -> Route:
        """Do without these peers; return them."""
        gone, self.peers, self.ask, self.look_at = self.peers, (), None, look_at
        self.held.clear()
        self.seen.clear()
        self.least.clear()
        self.in_vain.clear()
        return gone

    def lags(self, peer_id: str, lacks: int, most: int) -> bool:
        """Whether a copy is to be given up for what it lacks at this look."""
        least = self.least.get(peer_id)
        if lacks <= most:
            self.least.pop(peer_id, None)
            del self.in_vain[peer_id]
        elif least is None or lacks < least:
            self.least[peer_id] = lacks
            self.in_vain[peer_id] = 0
        else:
            self.in_vain[peer_id] += 1
        return self.in_vain[peer_id] >= LOOKS


class Standbys:
    """The standbys of one session's hops."""

    def __init__(
        self, request: Request, feed: Feed, retry: float, retry_cap: float = RETRY_CAP
    ) -> None:
        """`retry` is how many seconds to wait before peers are looked for again.

        Each time that there are none it doubles, up to `retry_cap`, unless the hop is leaving.
        """
        self._request = request
        self._feed = feed
        self._retry = retry
        self._retry_cap = retry_cap
        self._of: dict[str, Standby] = {}
        self.given_up = 0
        """Copies that lagged too far behind."""
        self._rests: dict[str, tuple[int, float]] = {}
        """By peer whose copies lagged: how often, and until when no other is begun there."""

    def __iter__(self) -> Iterator[Standby]:
        return iter(self._of.values())

    @property
    def exist(self) -> bool:
        """Whether there are any, or are to be."""
        return bool(self._of)

    @property
    def peers(self) -> Route:
        """All peers that hold copies, or are asked to."""
        return tuple(hop for standby in self for hop in standby.peers)

    @property
    def open_peers(self) -> Route:
        """Those that have agreed to hold a copy."""
        return tuple(hop for standby in self if standby.is_open for hop in standby.peers)

    @property
    def due(self) -> float | None:
        """When to look for peers again."""
        if not self._of:
            return None
        times = [s.look_at for s in self if s.look_at is not None and not s.peers and s.ask is None]
        return min(times, default=None)

    def take_over(self, route: Route, peers: Route) -> None:
        """Begin with those that another coordinator had, which may be put in place at once."""
        for hop in route:
            found = sorted(
                (p for p in peers if hop.blocks.covers(p.blocks) and p.peer_id != hop.peer_id),
                key=lambda peer: peer.blocks,
            )
            if _covers(hop, found) and repair.is_same_precision(hop, tuple(found)):
                standby = self._of[hop.peer_id] = Standby(hop, peers=tuple(found))
                standby.held = dict.fromkeys((peer.peer_id for peer in found), 0)

    def want(self, hop: Hop, look_at: float, *, leaving: bool) -> None:
        """Find a standby for a hop from some time on, if there is none, or make it its successor.

        That of a hop that leaves is looked for no later than that either.
        """
        standby = self._of.setdefault(hop.peer_id, Standby(hop, look_at=look_at))
        standby.leaving |= leaving
        if leaving and standby.look_at is not None:
            standby.look_at = min(standby.look_at, look_at)

    @property
    def is_hurried(self) -> bool:
        """Whether a hop waits for its copy to leave."""
        return any(standby.leaving for standby in self)

    def leaves(self, peer_id: str) -> bool:
        """Whether that hop is about to go."""
        return peer_id in self._of and self._of[peer_id].leaving

    def stay(self, peer_id: str) -> Route:
        """A hop that was about to go stays; return the peers that need no copy of it any more."""
        standby = self._of.get(peer_id)
        if standby is None or not (standby.leaving or standby.left):
            return ()
        standby.leaving = standby.left = False
        if not self._is_wanted(standby):
            return self._of.pop(peer_id).peers
        return () if standby.suits(standby.peers) else standby.drop_peers(look_at=0.0)

    # A new epoch, and the end.

    def open_again(self) -> None:
        """A new epoch is opened: hops that are about to go say so again, others have stayed.

        Their copies are kept until then: some of these hops may answer after the last other one.
        """
        for standby in self:
            standby.left, standby.leaving = standby.leaving, False

    def stayed(self) -> list[tuple[str, Route]]:
        """Return hops that were to go and have not said so again, and the peers of their copies."""
        stayed = [standby for standby in self if standby.left and not standby.leaving]
        peers = [(standby.hop.peer_id, self.stay(standby.hop.peer_id)) for standby in stayed]
        return [(donor, spares) for donor, spares in peers if spares]

    def _is_wanted(self, standby: Standby) -> bool:
        return standby.leaving or standby.left or self._request.standby > 0

    def begin(self, route: Route, epoch: int) -> list[DriverAction]:
        """Open all copies again in a new epoch, and forget those of hops that have gone."""
        hops = {hop.peer_id: hop for hop in route}
        for peer_id, standby in list(self._of.items()):
            hop = hops.get(peer_id)
            if hop is None or hop.blocks != standby.hop.blocks or not self._is_wanted(standby):
                del self._of[peer_id]
                continue
            standby.hop = hop  # another process, perhaps
            if any(peer.peer_id in hops for peer in standby.peers) or not standby.suits(
                standby.peers
            ):
                standby.drop_peers(look_at=0.0)
            else:
                if standby.ask is not None:
                    standby.look_at = 0.0  # the answer to that counts no more
                standby.ask = None
                standby.held.clear()
                standby.least.clear()
                standby.in_vain.clear()
        actions: list[DriverAction] = []
        for standby in self:
            actions += self._open(standby, route, epoch)
        return actions

    def _open(self, standby: Standby, route: Route, epoch: int) -> Iterator[DriverAction]:
        """Open the copy. It is to keep what the hops hold for sure, of the ids that are known."""
        kept = [hop for hop in route if hop.peer_id != standby.hop.peer_id]
        planned = repair.splice(kept, standby.peers) if standby.peers else ()
        names = {peer.peer_id for peer in standby.peers}
        ids, sure = tuple(self._feed.ids), self._feed.reached
        for hop, order in open_frames(self._request, planned, epoch, False, ids, sure):
            if hop.peer_id in names:
                yield Send(hop.peer_id, replace(order, donor=standby.hop.peer_id))

    # Finding peers.

    def look(self, ask: int, route: Route, exclude: frozenset[str], now: float) -> NeedRoute | None:
        """Ask for peers for one hop that has none, if it is time to; None if there is none."""
        for standby in self:
            due = standby.look_at is not None and standby.look_at <= now
            if due and not standby.peers and standby.ask is None:
                standby.ask, standby.look_at = ask, None
                used = {hop.peer_id for hop in (*route, *self.peers)}
                if not standby.leaving:
                    used |= {peer for peer, (_, until) in self._rests.items() if until > now}
                kept = tuple(hop for hop in route if hop.peer_id != standby.hop.peer_id)
                lost, same = (standby.hop.blocks,), (standby.hop.precision,)
                return NeedRoute(ask, lost, exclude | used, kept, same, spare=not standby.leaving)
        return None

    def found(
        self, ask: int, hops: Route, route: Route, epoch: int, now: float
    ) -> list[DriverAction]:
        """Open a copy on the peers that a question has brought, if it is still open."""
        standby = next((s for s in self if s.ask == ask), None)
        if standby is None:
            return []
        standby.ask = None
        taken = {hop.peer_id for hop in (*route, *self.peers)}
        fits = _covers(standby.hop, hops) and standby.suits(hops)
        if not fits or any(hop.peer_id in taken for hop in hops):
            self._missed(standby, now)
            return []
        standby.peers, standby.misses = hops, 0
        return list(self._open(standby, route, epoch))

    def missing(self, ask: int, now: float) -> None:
        """There are no such peers now."""
        for standby in self:
            if standby.ask == ask:
                standby.ask = None
                self._missed(standby, now)

    def _missed(self, standby: Standby, now: float) -> None:
        pause = self._retry if standby.leaving else self._retry * 2.0 ** min(standby.misses, 16)
        standby.look_at = now + min(self._retry_cap, pause)
        standby.misses += 1

    def look_again(self, now: float) -> None:
        """There may be new peers."""
        for standby in self:
            if standby.look_at is not None:
                standby.look_at, standby.misses = now, 0

    # What peers say.

    def opened(self, peer_id: str, answer: Opened) -> list[DriverAction] | None:
        """Have the hop send what the peer lacks. None when that peer is no standby."""
        standby = self.of(peer_id)
        if standby is None:
            return None
        standby.held[peer_id] = answer.kv_length
        return [self._copy(standby, peer_id, answer.epoch)]

    def _copy(self, standby: Standby, peer_id: str, epoch: int) -> Send:
        peer = next(peer for peer in standby.peers if peer.peer_id == peer_id)
        held = standby.held[peer_id]
        round, sure = self._feed.round, self._feed.reached
        copy = Copy(self._request.session, epoch, peer_id, peer.blocks, held, round, sure)
        return Send(standby.hop.peer_id, copy)

    def rewound(self) -> None:
        """The hops compute something once more, and send it anew."""
        for standby in self:
            for peer_id, held in standby.held.items():
                standby.held[peer_id] = min(held, self._feed.reached)

    def copied(self, peer_id: str, news: Copied) -> None:
        """Note how far a copy reaches."""
        standby = self.of(peer_id)
        if standby is not None and peer_id in standby.held:
            standby.held[peer_id] = news.kv_length

    def drop(self, standby: Standby, now: float) -> Route:
        """Do without a copy, as a peer is gone or will not hold it; look for another one soon."""
        return standby.drop_peers(now + self._retry)

    def lagging(self, reached: int, most: int) -> list[str]:
        """Look at the copies; return peers that lack more than `most`, and get no nearer.

        `reached` is what the hops are known to have computed. Successors of hops that leave are
        left alone: what they lack is copied, however long it takes.
        """
        return [
            peer_id
            for standby in self
            for peer_id, held in standby.held.items()
            if standby.lags(peer_id, reached - held, most) and not standby.leaving
        ]

    def rest(self, peer_id: str, rest: float, now: float) -> None:
        """Begin no copy for a while at a peer whose copy is given up as it lags.

        That while doubles each time: a copy that is begun anew takes the link that was too slow.
        """
        times, _ = self._rests.get(peer_id, (0, 0.0))
        self._rests[peer_id] = times + 1, now + rest * 2.0 ** min(times, REST_CAP)
        self.given_up += 1

    def renew(self, epoch: int) -> list[DriverAction]:
        """Begin those copies anew that have stood still, as frames may be lost with a link."""
        actions: list[DriverAction] = []
        for standby in self:
            for peer_id, held in standby.held.items():
                if held < self._feed.known - 1 and standby.seen.get(peer_id) == held:
                    actions.append(self._copy(standby, peer_id, epoch))
            standby.seen = dict(standby.held)
        return actions

    def of(self, peer_id: str) -> Standby | None:
        """The standby that a peer with a copy belongs to."""
        return next((s for s in self if any(p.peer_id == peer_id for p in s.peers)), None)

    # Taking a hop's place.

    def successors(self, reach: int) -> list[Standby]:
        """Those of leaving hops whose copies reach that far."""
        return [s for s in self if s.leaving and s.is_open and s.reaches >= reach]

    def instead_of(self, hop: Hop) -> Route:
        """Who can take the place of a hop that is lost; nobody if its copy has not begun.

        Nor if it has been given other blocks since.
        """
        standby = self._of.get(hop.peer_id)
        fits = standby is not None and standby.is_open and _covers(hop, standby.peers)
        return standby.peers if standby is not None and fits else ()


def _covers(hop: Hop, peers: Iterable[Hop]) -> bool:
    """Whether peers, in order, hold exactly the blocks of a hop."""
    reached = hop.blocks.start
    for peer in peers:
        if peer.blocks.start != reached:
            return False
        reached = peer.blocks.end
    return reached == hop.blocks.end

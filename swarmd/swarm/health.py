"""How far each peer is to be trusted with a route: penalties that fade.

Who reports what is the node's business; what a penalty costs on a route is `swarm.router`'s.
"""

from __future__ import annotations

import enum

HALF_LIFE_S = 30.0
MAX_PENALTY = 64.0
DEMOTED_AT = 1.0
"""A peer with so much penalty gets work only where the others have a lot, or do not exist."""
MAX_PEERS = 1024
"""Of these penalties are kept; who has least is forgotten first."""
_FORGET_BELOW = 0.01


class Fault(enum.Enum):
    """What a peer did wrong; the value is the penalty that it adds."""

    FAILED = 2.0
    """A link broke, or a step was answered with an error."""
    TIMED_OUT = 3.0
    """No answer before the deadline: costs a stream more time than a link that breaks at once."""
    LAGGED = 2.5
    """It lives, but held a session up for much longer than usual."""
    DISAGREED = 32.0
    """It computed something else than others did: five half-lives until one failure's worth."""


LOSSES = frozenset({Fault.FAILED, Fault.TIMED_OUT})
"""What a process answers for, not its machine: one that is started again has not done it."""


class Health:
    """Penalties by peer id. `now` is seconds of any one clock; it is never read here."""

    def __init__(self) -> None:
        self._penalties: dict[str, tuple[float, float, float]] = {}
        """For losses, for everything else, and since when."""

    def report(self, peer_id: str, fault: Fault, now: float) -> None:
        """Add the fault's penalty to what is left of earlier ones."""
        losses, others = self._left(peer_id, now)
        if fault in LOSSES:
            losses = min(MAX_PENALTY, losses + fault.value)
        else:
            others = min(MAX_PENALTY, others + fault.value)
        self._penalties[peer_id] = (losses, others, now)
        if len(self._penalties) > MAX_PEERS:
            self._make_room(now)

    def succeeded(self, peer_id: str, now: float) -> None:
        """Halve what is left of losses: a peer that works again earns its place back sooner.

        How slow a peer was, or how wrong, is not made good by that.
        """
        if peer_id in self._penalties:
            losses, others = self._left(peer_id, now)
            self._keep(peer_id, losses / 2, others, now)

    def restarted(self, peer_id: str, now: float) -> None:
        """Forgive the losses of a process that is no more, or that is back."""
        if peer_id in self._penalties:
            self._keep(peer_id, 0.0, self._left(peer_id, now)[1], now)

    def lost_after_all(self, peer_id: str, fault: Fault, now: float) -> None:
        """Count what was reported of a peer just now as part of the loss that came after it."""
        if peer_id in self._penalties:
            losses, others = self._left(peer_id, now)
            part = min(others, fault.value)
            self._keep(peer_id, losses + part, others - part, now)

    def penalty(self, peer_id: str, now: float) -> float:
        """Return the penalty, 0 for a peer in good standing; it halves every `HALF_LIFE_S`."""
        if peer_id not in self._penalties:
            return 0.0
        return min(MAX_PENALTY, sum(self._left(peer_id, now)))

    def distrusted(self, now: float) -> frozenset[str]:
        """Return the peers that have at least `DEMOTED_AT` of penalty left."""
        return frozenset(p for p in self._penalties if self.penalty(p, now) >= DEMOTED_AT)

    def forget(self, now: float) -> None:
        """Drop what has faded, so that the table stays as small as the trouble."""
        for peer_id in list(self._penalties):
            self._keep(peer_id, *self._left(peer_id, now), now)

    def _make_room(self, now: float) -> None:
        self.forget(now)
        while len(self._penalties) > MAX_PEERS:
            del self._penalties[min(self._penalties, key=lambda p: self.penalty(p, now))]

    def _left(self, peer_id: str, now: float) -> tuple[float, float]:
        losses, others, since = self._penalties.get(peer_id, (0.0, 0.0, now))
        fading: float = 0.5 ** (max(0.0, now - since) / HALF_LIFE_S)
        return losses * fading, others * fading

    def _keep(self, peer_id: str, losses: float, others: float, now: float) -> None:
        if losses + others < _FORGET_BELOW:
            del self._penalties[peer_id]
        else:
            self._penalties[peer_id] = (losses, others, now)

    def __contains__(self, peer_id: str) -> bool:
        return peer_id in self._penalties

    def __len__(self) -> int:
        return len(self._penalties)
